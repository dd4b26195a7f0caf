from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import onnx_models
from support.runtimes import CPU_SET, CpuRuntime, OnCpu

from shoal_agent.runtimes.base import LoadedModel, ProviderSet
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array
from shoal_simulators.boards import VirtualBoard
from shoal_simulators.cost import CostModel
from shoal_simulators.paced import PacedRuntime, paced_registry
from shoal_simulators.profiles import PROFILES, RESNET50_MACS


class Time:
    """A clock that only moves when somebody computes or sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class FakeModel(OnCpu):
    signature = ModelSignature(inputs=(), outputs=())
    providers = ("CPUExecutionProvider",)

    def __init__(self, time: Time, seconds: float) -> None:
        self._time, self._seconds = time, seconds
        self.closed = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._time.pass_by(self._seconds)
        return {"y": inputs["x"]}

    def close(self) -> None:
        self.closed = True


class FakeRuntime(CpuRuntime):
    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def load(self, path: Path, options: Mapping[str, Any], *_: Any) -> LoadedModel:
        return self._model


@pytest.mark.parametrize("batch", [1, 8])
def test_a_fast_cpu_is_slowed_to_the_published_time(tmp_path: Path, batch: int) -> None:
    path = onnx_models.dense(tmp_path / "m.onnx", 512, 512)
    profile, time = PROFILES["jetson-nano"], Time()
    runtime = PacedRuntime(FakeRuntime(FakeModel(time, 1e-6)), profile, time, time.pass_by)
    model = runtime.load(path, {})
    x = np.ones((batch, 512), np.float32)
    assert model.run({"x": x})["y"] is x
    expected = profile.intercept_ms + profile.slope_ms * batch * 512 * 512 / RESNET50_MACS
    assert time.now * 1e3 == pytest.approx(expected)


def test_a_slow_cpu_is_not_slowed_further(tmp_path: Path) -> None:
    path = onnx_models.dense(tmp_path / "m.onnx", 16, 4)
    time = Time()
    fake = FakeModel(time, 2.0)
    runtime = PacedRuntime(FakeRuntime(fake), PROFILES["jetson-agx-orin"], time, time.pass_by)
    model = runtime.load(path, {})
    model.run({"x": np.ones((1, 16), np.float32)})
    assert time.now == 2.0
    model.close()
    assert fake.closed


def test_a_virtual_board_has_the_cpu_of_its_host_and_no_accelerator(tmp_path: Path) -> None:
    class Accelerated(FakeRuntime):
        def provider_sets(self, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
            fast = ProviderSet(name="npu", providers=(("NPU", {}),), accelerated=True)
            return (fast, *super().provider_sets(options))

    fake = FakeModel(Time(), 0.0)
    runtime = PacedRuntime(Accelerated(fake), PROFILES["jetson-nano"])
    assert runtime.provider_sets({}) == (CPU_SET,)
    model = runtime.load(onnx_models.dense(tmp_path / "m.onnx"), {}, CPU_SET)
    assert (model.placement, model.providers) == (fake.placement, fake.providers)
    assert (runtime.version, runtime.note) == ("fake 1", None)


def test_costs_of_products_and_batches(tmp_path: Path) -> None:
    cost = CostModel(onnx_models.dense(tmp_path / "m.onnx", 16, 4))
    assert cost.macs({"x": (1, 16)}) == 64
    assert cost.macs({"x": (5, 16)}) == 320


def test_the_registry_has_every_installed_runtime() -> None:
    registry = paced_registry(PROFILES["ascend-310"])
    assert {fmt for info in registry.infos() for fmt in info.formats} >= {"onnx"}
    assert isinstance(registry.for_format("onnx"), PacedRuntime)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_virtual_board_says_that_it_is_simulated(name: str) -> None:
    facts = VirtualBoard.of(name).facts
    assert facts.description.simulated
    assert facts.notes[0].startswith("simulated")
    assert facts.cores == PROFILES[name].cores
    assert VirtualBoard.of(name).read().temperature_c is None
