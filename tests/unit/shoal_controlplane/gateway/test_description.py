from __future__ import annotations

import pytest

from shoal_controlplane.gateway.description import config, metadata, server_metadata
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_shared.profiles import fit
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY


def model(max_batch: int, datatype: str = "FP32", **changes: object) -> ServedModel:
    signature = ModelSignature(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=(-1, 3, -1)),),
        outputs=(
            TensorSpec(name="y", datatype=datatype, shape=(-1, 5)),
            TensorSpec(name="z", datatype="BYTES", shape=(-1,)),
        ),
    )
    settings: dict[str, object] = {"labels": {"y": ("cat", "dog")}} | changes
    return ServedModel("m", "2", "onnxruntime_onnx", signature, max_batch, **settings)  # type: ignore[arg-type]


def test_server_metadata_names_only_what_is_served() -> None:
    server = server_metadata()
    assert server["name"] == "shoal"
    assert server["version"]
    assert "binary_tensor_data" in server["extensions"]
    assert not {"system_shared_memory", "cuda_shared_memory", "trace"} & set(server["extensions"])


@pytest.mark.parametrize("max_batch", [0, 8])
def test_metadata_shows_the_batch_dimension(max_batch: int) -> None:
    assert metadata(model(max_batch), ["1", "2"]) == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, -1]}],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 5]},
            {"name": "z", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def test_config_of_a_batched_model_hides_the_batch_dimension() -> None:
    answer = config(model(8))
    assert answer["max_batch_size"] == 8
    assert answer["backend"] == "onnxruntime"
    assert answer["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3, -1]}]
    assert [o["dims"] for o in answer["output"]] == [[5], []]
    assert "dynamic_batching" in answer


def test_config_of_an_unbatched_model_shows_all_dimensions() -> None:
    answer = config(model(0))
    assert answer["max_batch_size"] == 0
    assert answer["input"][0]["dims"] == [-1, 3, -1]
    assert "dynamic_batching" not in answer


def test_config_tells_which_outputs_have_labels() -> None:
    named, plain = config(model(8))["output"]
    assert named["label_filename"]
    assert not plain["label_filename"]


def test_config_counts_replicas_as_instances() -> None:
    replicas = tuple(Replica(d, fit([(1, 2.0)])) for d in ("a", "b"))
    (group,) = config(model(8, replicas=replicas))["instance_group"]
    assert group["count"] == 2


@pytest.mark.parametrize("datatype", NUMPY)
def test_config_names_every_datatype_as_triton_does(datatype: str) -> None:
    name = config(model(8, datatype))["input"][0]["data_type"]
    assert name == ("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")
