"""The doctor on accelerators, with trials that say what the test wants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.runtimes import CPU_SET, CpuRuntime

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import LoadedModel, ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.selftest import self_test
from shoal_agent.runtimes.trial import TrialOutcome, TrialTask
from shoal_agent.service.accelerators import (
    check_accelerators,
    check_coverage,
    check_drivers,
    check_inference,
    check_notes,
    provider_sets,
)
from shoal_shared.golden import decode
from shoal_shared.messages import Accelerator, Board
from shoal_shared.placement import Placement, Proof, of_nodes
from shoal_shared.signature import ModelSignature

CUDA = ProviderSet(name="cuda", providers=(("CUDAExecutionProvider", {}),), accelerated=True)
TENSORRT = ProviderSet(
    name="tensorrt", providers=(("TensorrtExecutionProvider", {}),), accelerated=True
)
ORIN = BoardFacts(
    description=Board(family="jetson", model="Orin"),
    cores=6,
    memory_bytes=2**33,
    accelerators=(
        Accelerator(
            kind="gpu", name="Ampere", precisions=("fp16", "int8"), compute_capability="8.7"
        ),
    ),
    toolkits={"cuda": "12.6", "l4t": "36.4"},
    power_mode="15W",
)


class Runtime(CpuRuntime):
    def __init__(self, *sets: ProviderSet) -> None:
        self._sets = sets

    def provider_sets(self, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
        return self._sets

    def load(self, *_: Any) -> LoadedModel:
        raise NotImplementedError


def outcome(placement: Placement, **more: Any) -> TrialOutcome:
    values: dict[str, Any] = {
        "providers": tuple(placement.nodes),
        "signature": ModelSignature(inputs=(), outputs=()),
        "load_s": 0.1,
        "milliseconds": 1.25,
        "golden_error": 0.0004,
    }
    return TrialOutcome(placement=placement, **{**values, **more})


async def inference(results: dict[str, TrialOutcome | str], *sets: ProviderSet) -> list[Any]:
    async def trial(task: TrialTask) -> TrialOutcome:
        result = results[task.provider_set.name]
        if isinstance(result, str):
            raise RuntimeLoadError(result)
        return result

    registry = RuntimeRegistry([Runtime(*sets)])
    return list(await check_inference(ORIN, provider_sets(registry), trial))


ON_GPU = outcome(of_nodes({"CUDAExecutionProvider": 2}))
ON_CPU = outcome(of_nodes({"CPUExecutionProvider": 2}))


def test_what_the_board_has_is_said() -> None:
    assert check_accelerators(ORIN).detail == "Ampere (gpu, fp16, int8, compute capability 8.7)"
    assert check_drivers(ORIN).detail == "cuda 12.6, l4t 36.4, power mode 15W"
    bare = replace(ORIN, accelerators=(), toolkits={}, power_mode="")
    assert check_accelerators(bare).detail == "none was found"
    assert check_drivers(bare).detail == "none was found"


@pytest.mark.parametrize(
    ("note", "detail", "remedy"),
    [
        ("The NPU's driver is missing: install it", "The NPU's driver is missing", "install it"),
        (
            "The GPU cannot be used: /dev/nvmap is missing. Start it with --runtime nvidia.",
            "The GPU cannot be used: /dev/nvmap is missing",
            "Start it with --runtime nvidia",
        ),
        (
            "The release is unknown: /etc/nv_tegra_release is missing.",
            "The release is unknown: /etc/nv_tegra_release is missing",
            "check that driver and runtime fit, then shoal-agent doctor",
        ),
    ],
)
def test_notes_of_the_board_become_warnings(note: str, detail: str, remedy: str) -> None:
    (finding,) = check_notes(replace(ORIN, notes=(note,)))
    assert (finding.detail, finding.remedy) == (detail, remedy)
    assert not finding.ok
    assert not finding.blocks


@pytest.mark.parametrize(
    ("family", "python", "remedy"),
    [
        ("jetson", (3, 12), "pip install 'shoal[jetson]'"),
        ("jetson", (3, 10), "NVIDIA's onnxruntime-gpu wheel for your JetPack"),
        ("ascend", (3, 10), "pip install 'shoal[ascend]'"),
        ("snapdragon", (3, 11), "pip install 'shoal[qualcomm]'"),
        ("snapdragon", (3, 10), "install Python 3.11 or 3.12"),
        ("new", (3, 11), "CONTRIBUTING"),
    ],
)
def test_an_accelerator_without_a_runtime_is_a_problem(
    family: str, python: tuple[int, int], remedy: str
) -> None:
    facts = replace(ORIN, description=Board(family=family, model="x"))
    (finding,) = check_coverage(facts, [CPU_SET], python)
    assert finding.blocks
    assert remedy in finding.remedy
    assert check_coverage(facts, [CUDA, CPU_SET], python) == ()
    assert check_coverage(replace(facts, accelerators=()), [CPU_SET], python) == ()


def test_the_plain_runtime_makes_room_for_the_boards_own() -> None:
    def remedy(family: str, python: tuple[int, int]) -> str:
        facts = replace(ORIN, description=Board(family=family, model="x"))
        return check_coverage(facts, [CPU_SET], python, ["onnxruntime"])[0].remedy

    assert re.search(r"uninstall -y onnxruntime && .* install 'shoal\[j", remedy("jetson", (3, 12)))
    assert "uninstall -y onnxruntime, then install NVIDIA's" in remedy("jetson", (3, 10))
    assert "uninstall" not in remedy("snapdragon", (3, 11))


async def test_a_self_inference_tells_where_it_ran() -> None:
    (gpu, cpu) = await inference({"cuda": ON_GPU, "cpu": ON_CPU}, CUDA, CPU_SET)
    assert gpu.ok
    assert gpu.detail == "2 of 2 nodes on CUDAExecutionProvider, 1.250 ms, right within 0.0004"
    assert cpu.ok


async def test_a_missing_library_is_named_with_what_mends_it() -> None:
    missing = "libcublas.so.12 not found: install CUDA 12"
    (finding, _) = await inference({"cuda": missing, "cpu": ON_CPU}, CUDA, CPU_SET)
    assert (finding.detail, finding.remedy) == ("libcublas.so.12 not found", "install CUDA 12")
    assert finding.blocks


async def test_one_of_two_ways_to_the_accelerator_is_enough() -> None:
    results = {"tensorrt": "libnvinfer.so.10 not found: install", "cuda": ON_GPU, "cpu": ON_CPU}
    findings = await inference(results, TENSORRT, CUDA, CPU_SET)
    assert [f.ok for f in findings] == [False, True, True]
    assert not findings[0].blocks


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (outcome(of_nodes({"CPUExecutionProvider": 2}), complaint="no device"), "no device"),
        (outcome(of_nodes({"CUDAExecutionProvider": 2}), agrees=False), "its answer is wrong"),
        ("CUDAExecutionProvider crashed (SIGSEGV) while it loaded the model: x", "crashed"),
    ],
)
async def test_what_only_seems_to_run_is_a_problem(result: TrialOutcome | str, text: str) -> None:
    (finding, _) = await inference({"cuda": result, "cpu": ON_CPU}, CUDA, CPU_SET)
    assert not finding.ok
    assert finding.blocks
    assert text in finding.detail
    assert finding.remedy


async def test_a_runtime_that_does_not_tell_its_nodes_is_not_taken_for_broken() -> None:
    """On so small a model the accelerator is slower than the CPU, which proves nothing."""
    slow = Placement(accelerated=0.0, proof=Proof.TIMING)
    on_gpu = outcome(slow, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    (finding, _) = await inference({"cuda": on_gpu, "cpu": ON_CPU}, CUDA, CPU_SET)
    assert finding.ok
    assert "does not tell which nodes run there" in finding.detail
    fell_back = outcome(slow, providers=("CPUExecutionProvider",))
    (finding, _) = await inference({"cuda": fell_back, "cpu": ON_CPU}, CUDA, CPU_SET)
    assert finding.blocks


async def test_a_machine_without_an_accelerator_may_do_without_its_runtime() -> None:
    async def trial(task: TrialTask) -> TrialOutcome:
        raise RuntimeLoadError("libascendcl.so not found: install CANN 8.x")

    bare = replace(ORIN, accelerators=())
    (finding,) = await check_inference(bare, [("onnx", CUDA)], trial)
    assert finding.blocks
    assert finding.remedy.startswith("install CANN 8.x; without such an accelerator, ")
    (finding,) = await check_inference(ORIN, [("onnx", CUDA)], trial)
    assert finding.remedy == "install CANN 8.x"


async def test_a_jetson_needs_the_runtime_that_fits_its_cuda() -> None:
    results = {"cuda": "libcublasLt.so.13 not found: install CUDA 13", "cpu": ON_CPU}
    (finding, _) = await inference(results, CUDA, CPU_SET)
    assert "NVIDIA's onnxruntime-gpu wheel for your JetPack" in finding.remedy
    assert finding.remedy.endswith("(this one needs CUDA 13, the board has 12.6)")
    results["cuda"] = "libcublasLt.so.12 not found: install CUDA 12"
    (finding, _) = await inference(results, CUDA, CPU_SET)
    assert finding.remedy == "install CUDA 12"


async def test_the_cpu_that_fails_is_a_problem_of_its_own() -> None:
    results = {"cuda": ON_GPU, "cpu": "onnxruntime is installed but cannot be imported"}
    (_, cpu) = await inference(results, CUDA, CPU_SET)
    assert cpu.blocks
    assert cpu.remedy


async def test_each_format_is_tried_with_a_model_of_its_own() -> None:
    seen: dict[str, bytes] = {}

    async def trial(task: TrialTask) -> TrialOutcome:
        seen[task.format] = Path(task.path).read_bytes()
        assert decode(Path(task.golden).read_bytes()).cases
        return ON_CPU

    findings = await check_inference(ORIN, [("onnx", CPU_SET), ("tflite", CPU_SET)], trial)
    assert [f.check for f in findings] == ["onnx on cpu", "tflite on cpu"]
    assert seen == {fmt: self_test(fmt).model for fmt in ("onnx", "tflite")}


async def test_a_device_without_a_runtime_has_nothing_to_try() -> None:
    assert provider_sets(RuntimeRegistry([])) == ()
    assert await check_inference(ORIN, (), unasked) == ()


async def unasked(task: TrialTask) -> TrialOutcome:
    raise AssertionError
