"""Each runtime in its own environment, for real: QNN's HTP simulator, and CANN, CUDA and TensorRT
without their toolkits, where the fallback must be caught. See `make test-hardware`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.selftest import SelfTest, self_test
from shoal_agent.runtimes.trial import TrialOutcome, TrialTask, try_in_child
from shoal_shared.golden import encode
from shoal_shared.placement import Proof

ENV = os.environ.get("SHOAL_HARDWARE_ENV", "")
QNN = "QNNExecutionProvider"

TEST: SelfTest = self_test()
CASE = TEST.golden.cases[0]


def only_in(*names: str) -> pytest.MarkDecorator:
    reason = f"for the environments {', '.join(names)}: make test-hardware"
    return pytest.mark.skipif(ENV not in names, reason=reason)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(TEST.model)
    return path


def registry() -> RuntimeRegistry:
    return RuntimeRegistry.discover()


def provider_set(name: str) -> ProviderSet:
    return next(s for s in registry().provider_sets("onnx", {}) if s.name == name)


async def trial(
    path: Path, chosen: ProviderSet | str, compiled: Path | None = None
) -> TrialOutcome:
    golden = path.with_name("golden")
    golden.write_bytes(encode(TEST.golden))
    task = TrialTask(
        format="onnx",
        path=str(path),
        options={},
        provider_set=provider_set(chosen) if isinstance(chosen, str) else chosen,
        compiled=str(compiled or ""),
        golden=str(golden),
        absolute=0.01,
        runs=1,
    )
    return await try_in_child(task)


@only_in("qnn", "cann", "gpu")
async def test_the_cpu_serves_everywhere(model: Path) -> None:
    outcome = await trial(model, "cpu")
    assert outcome.agrees
    assert (outcome.placement.accelerated, outcome.placement.proof) == (0.0, Proof.GRAPH)


@only_in("qnn")
async def test_qnn_compiles_once_and_every_node_is_proven(model: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    first = await trial(model, "qnn-htp", code)
    assert (first.placement.accelerated, first.placement.proof) == (1.0, Proof.GRAPH)
    assert set(first.placement.nodes) == {QNN}
    assert first.agrees
    assert first.compiled_here
    assert [p.name for p in code.iterdir() if p.name.startswith(".")] == []
    second = await trial(model, "qnn-htp", code)
    assert second.placement == first.placement
    assert not second.compiled_here


@only_in("qnn")
def test_qnn_runs_larger_batches_than_it_compiled(model: Path) -> None:
    loaded = registry().for_format("onnx").load(model, {}, provider_set("qnn-htp"))
    x = np.concatenate([CASE.inputs["x"]] * 3)
    y = loaded.run({"x": x})["y"]
    assert np.allclose(y, np.concatenate([CASE.outputs["y"]] * 3), atol=0.01)
    assert loaded.signature.batchable


@only_in("qnn")
async def test_code_that_is_no_code_is_refused(model: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    await trial(model, "qnn-htp", code)
    for file in code.iterdir():
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(RuntimeLoadError, match=r"cannot load the model|crashed"):
        await trial(model, "qnn-htp", code)


@only_in("qnn")
async def test_a_chip_that_qnn_does_not_know_is_not_served_on_the_cpu_in_silence(
    model: Path,
) -> None:
    """ONNX Runtime makes a session, lists QNN, and runs everything on the CPU."""
    sets = registry().provider_sets("onnx", {"provider_options": {QNN: {"soc_model": "99999"}}})
    assert sets[0].target == "qualcomm-soc99999"
    outcome = await trial(model, sets[0])
    assert QNN in outcome.providers
    assert not outcome.placement.is_accelerated
    assert "Failed to create device" in outcome.complaint


@only_in("cann")
async def test_cann_without_its_toolkit_says_what_to_install(model: Path) -> None:
    with pytest.raises(RuntimeLoadError, match=r"^libascendcl\.so not found: install CANN 8\.x"):
        await trial(model, "cann")


@only_in("gpu")
@pytest.mark.parametrize("name", ["tensorrt", "cuda"])
async def test_cuda_and_tensorrt_without_their_toolkits(model: Path, name: str) -> None:
    with pytest.raises(RuntimeLoadError, match=r"^libcu\w+\.so\.\d+ not found: install CUDA"):
        await trial(model, name)


@only_in("gpu")
def test_cuda_that_is_only_listed_never_counts(model: Path) -> None:
    """ONNX Runtime makes a session on the CPU without a word where CUDA is missing."""
    with pytest.raises(RuntimeLoadError, match="CUDAExecutionProvider could not be used"):
        registry().for_format("onnx").load(model, {}, provider_set("cuda"))


@only_in("tflite")
def test_tflite_runtime_is_accepted_in_place_of_its_successor() -> None:
    runtime = registry().for_format("tflite")
    assert runtime.info.name == "tflite-runtime"
    assert [s.name for s in runtime.provider_sets({})] == ["cpu"]
    assert runtime.version.startswith("tflite-runtime 2.")
