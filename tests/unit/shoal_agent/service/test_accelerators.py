"""The doctor on accelerators, with trials that say what the test wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
)
from shoal_shared.messages import Accelerator, Board
from shoal_shared.placement import Placement, of_nodes
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

    return list(await check_inference(RuntimeRegistry([Runtime(*sets)]), trial))


ON_GPU = outcome(of_nodes({"CUDAExecutionProvider": 2}))
ON_CPU = outcome(of_nodes({"CPUExecutionProvider": 2}))


def test_what_the_board_has_is_said() -> None:
    assert check_accelerators(ORIN).detail == "Ampere (gpu, fp16, int8, compute capability 8.7)"
    assert check_drivers(ORIN).detail == "cuda 12.6, l4t 36.4, power mode 15W"
    bare = replace(ORIN, accelerators=(), toolkits={}, power_mode="")
    assert "models run on the CPU" in check_accelerators(bare).detail
    assert check_drivers(bare).detail == "none was found"


def test_notes_of_the_board_become_warnings() -> None:
    noted = replace(ORIN, notes=("the NPU's driver is missing: install it", "odd"))
    first, second = check_notes(noted)
    assert (first.detail, first.remedy) == ("the NPU's driver is missing", "install it")
    assert not first.blocks
    assert second.remedy


@pytest.mark.parametrize(
    ("family", "python", "remedy"),
    [
        ("jetson", (3, 12), "install 'shoal[jetson]'"),
        ("jetson", (3, 10), "NVIDIA's onnxruntime-gpu wheel for your JetPack"),
        ("ascend", (3, 10), "install 'shoal[ascend]'"),
        ("snapdragon", (3, 11), "install 'shoal[qualcomm]'"),
    ],
)
def test_an_accelerator_without_a_runtime_is_a_problem(
    family: str, python: tuple[int, int], remedy: str
) -> None:
    facts = replace(ORIN, description=Board(family=family, model="x"))
    finding = check_coverage(facts, [CPU_SET], python)
    assert finding.blocks
    assert remedy in finding.remedy
    assert check_coverage(facts, [CUDA, CPU_SET], python).ok
    assert check_coverage(replace(facts, accelerators=()), [CPU_SET], python).ok


async def test_a_self_inference_tells_where_it_ran() -> None:
    (gpu, cpu) = await inference({"cuda": ON_GPU, "cpu": ON_CPU}, CUDA, CPU_SET)
    assert gpu.ok
    assert gpu.detail == "2 of 2 nodes on CUDAExecutionProvider, 1.25 ms, right within 0.0004"
    assert cpu.ok


async def test_a_missing_library_is_named_with_what_mends_it() -> None:
    missing = "libcublas.so.13 not found: install CUDA 13"
    (finding, _) = await inference({"cuda": missing, "cpu": ON_CPU}, CUDA, CPU_SET)
    assert (finding.detail, finding.remedy) == ("libcublas.so.13 not found", "install CUDA 13")
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


async def test_a_device_without_onnx_runtime_has_nothing_to_try() -> None:
    async def trial(task: TrialTask) -> TrialOutcome:
        raise AssertionError

    assert await check_inference(RuntimeRegistry([]), trial) == ()


def test_the_self_test_is_always_the_same() -> None:
    assert self_test().model == self_test().model
    assert len(self_test().model) < 1024
