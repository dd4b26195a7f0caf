"""Options of targets of kind `tpu`, and what workers are told by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.target import CloudModel
from shoal_controlplane.offload.tpu.options import (
    ACCELERATOR,
    RESOURCE,
    TOPOLOGY,
    batches_of,
    check_options,
    options_of,
    worker_arguments,
)
from shoal_shared.signature import ModelSignature, TensorSpec


def model_of(batches: tuple[int, ...] = (1, 4), max_batch: int = 8, first: int = -1) -> CloudModel:
    spec = TensorSpec(name="x", datatype="FP32", shape=(first, 3))
    return CloudModel(
        name="m",
        version="1",
        format="onnx",
        artifact=Path("/m.onnx"),
        digest="sha256:00",
        url="http://shoal/artifacts/00",
        signature=ModelSignature(inputs=(spec,), outputs=(spec,)),
        max_batch=max_batch,
        batches=batches,
    )


def test_options_in_full_are_options() -> None:
    full = check_options({"launch": "process", "shapes": {"m": {"x": [3, 640]}}})
    assert full["platform"] == "tpu"
    assert check_options(full) == full


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"moonbeam": 1}, "moonbeam"),
        ({"launch": "rocket"}, "option launch"),
        ({"platform": "gpu"}, "option platform"),
        ({"topology": "two by two"}, "option topology"),
        ({"accelerator": "TPU v5e"}, "option accelerator"),
        ({"chips": 9}, "option chips"),
        ({"chips": 0}, "option chips: a pod needs at least one"),
        ({"shapes": {"m": {"x": [0]}}}, "option shapes"),
        ({"folder": "relative"}, "option folder"),
        ({"kubeconfig": "relative"}, "option kubeconfig"),
        ({"endpoint": "ftp://x"}, "option endpoint"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        check_options(options)


def test_pods_go_where_the_tpus_are() -> None:
    cluster = options_of({"chips": 4, "topology": "2x2"}).cluster()
    assert (cluster.gpu, cluster.gpu_resource) == (4, RESOURCE)
    assert cluster.node_selector == {ACCELERATOR: "tpu-v5-lite-podslice", TOPOLOGY: "2x2"}
    assert cluster.tolerations == ("google.com/tpu:NoSchedule",)


def test_without_a_tpu_any_node_will_do() -> None:
    cluster = options_of({"platform": "cpu"}).cluster()
    assert (cluster.gpu, cluster.node_selector, cluster.tolerations) == (0, {}, ())


@pytest.mark.parametrize(
    ("model", "batches"),
    [
        (model_of(), (1, 4)),
        (model_of((1, 4, 16)), (1, 4)),
        (model_of((16,)), (1,)),
        (model_of(max_batch=0), ()),
        (model_of(first=2), ()),
    ],
)
def test_batches_are_those_that_the_model_takes(
    model: CloudModel, batches: tuple[int, ...]
) -> None:
    assert batches_of(model) == batches


def test_workers_are_told_digest_batches_and_shapes() -> None:
    options = options_of({"platform": "cpu", "shapes": {"m": {"x": [3, 640]}, "n": {"y": [1]}}})
    assert worker_arguments(model_of(), options) == [
        "--digest=sha256:00",
        "--platform=cpu",
        "--batches=1,4",
        "--shape=x=3,640",
    ]
