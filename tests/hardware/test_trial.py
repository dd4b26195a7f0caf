"""Trials in a child beside each runtime, for real: the very sentences that operators read."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.selftest import self_test
from shoal_agent.runtimes.trial import TrialTask, try_in_child
from shoal_shared.golden import encode
from shoal_shared.placement import Proof

ENV = os.environ.get("SHOAL_HARDWARE_ENV", "")
if ENV not in ("qnn", "cann", "gpu"):
    pytest.skip(
        "for the environments qnn, cann and gpu: make test-hardware", allow_module_level=True
    )

JETPACK = "(on a Jetson: sudo apt install nvidia-jetpack)"
QNN = "QNNExecutionProvider"


def provider_set(name: str) -> ProviderSet:
    for known in RuntimeRegistry.discover().provider_sets("onnx", {}):
        if known.name == name:
            return known
    pytest.skip(f"{name} is not in the environment {ENV}: make test-hardware has all")


@pytest.fixture
def task(tmp_path: Path) -> TrialTask:
    test = self_test()
    model, golden = tmp_path / "model.onnx", tmp_path / "golden"
    model.write_bytes(test.model)
    golden.write_bytes(encode(test.golden))
    return TrialTask(
        format="onnx",
        path=str(model),
        options={},
        provider_set=ProviderSet(name="", providers=()),
        golden=str(golden),
        absolute=0.02,
        runs=1,
    )


def on(task: TrialTask, chosen: ProviderSet) -> TrialTask:
    return msgspec.structs.replace(task, provider_set=chosen)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "cann",
            "libascendcl.so not found: install CANN 8.x and source "
            "/usr/local/Ascend/ascend-toolkit/set_env.sh",
        ),
        ("cuda", f"libcublasLt.so.13 not found: install CUDA 13 {JETPACK}"),
        ("tensorrt", f"libcublas.so.13 not found: install CUDA 13 {JETPACK}"),
    ],
)
async def test_a_missing_toolkit_is_named(task: TrialTask, name: str, sentence: str) -> None:
    with pytest.raises(RuntimeLoadError) as caught:
        await try_in_child(on(task, provider_set(name)))
    assert str(caught.value) == sentence


async def test_qnn_runs_every_node(task: TrialTask) -> None:
    outcome = await try_in_child(on(task, provider_set("qnn-htp")))
    assert (outcome.placement.proof, outcome.placement.accelerated) == (Proof.GRAPH, 1.0)
    assert set(outcome.placement.nodes) == {QNN}
    assert outcome.agrees
    assert outcome.milliseconds is not None


async def test_a_backend_that_is_not_there_is_told(task: TrialTask) -> None:
    """ONNX Runtime makes a session and runs everything on the CPU: only the log tells why."""
    providers = ((QNN, {"backend_path": "libQnnNone.so"}), ("CPUExecutionProvider", {}))
    chosen = ProviderSet(name="qnn-none", providers=providers, accelerated=True)
    if ENV != "qnn":
        pytest.skip("for the environment qnn: make test-hardware")
    outcome = await try_in_child(on(task, chosen))
    assert outcome.placement.accelerated == 0.0
    assert outcome.complaint == (
        "libQnnNone.so not found: install Qualcomm AI Engine Direct (QNN) 2.x"
    )
