from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runtimes import CPU_SET, CpuRuntime, OnCpu

from shoal_agent.runtimes.base import LoadedModel
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array
from shoal_simulators.throttled import CALIBRATION_RUNS, ThrottledBoard, ThrottledRuntime


class Clocks:
    """Two clocks that move when somebody computes; only that on the wall when somebody sleeps."""

    def __init__(self) -> None:
        self.wall_s = self.processor_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.wall_s += seconds

    def compute(self, seconds: float) -> None:
        self.wall_s += seconds
        self.processor_s += seconds


class FakeModel(OnCpu):
    signature = ModelSignature(inputs=(), outputs=())
    providers = ("CPUExecutionProvider",)

    def __init__(self, clocks: Clocks, seconds: list[float]) -> None:
        self._clocks, self._seconds = clocks, iter(seconds)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._clocks.compute(next(self._seconds))
        return {"y": inputs["x"]}

    def close(self) -> None:
        pass


class FakeRuntime(CpuRuntime):
    def __init__(self, model: FakeModel) -> None:
        self._model = model
        self.options: Mapping[str, Any] = {}

    def load(self, path: Path, options: Mapping[str, Any], *_: Any) -> LoadedModel:
        self.options = options
        return self._model


def throttled(clocks: Clocks, factor: float, seconds: list[float]) -> LoadedModel:
    runtime = FakeRuntime(FakeModel(clocks, seconds))
    slow = ThrottledRuntime(
        runtime, factor, lambda: clocks.wall_s, lambda: clocks.processor_s, clocks.sleep
    )
    model = slow.load(Path("m.onnx"), {"intra_op_threads": 4}, CPU_SET)
    assert runtime.options == {"intra_op_threads": 1}
    return model


def wall_s(clocks: Clocks, model: LoadedModel, inputs: Mapping[str, Array]) -> float:
    began = clocks.wall_s
    assert model.run(inputs) == {"y": inputs["x"]}
    return clocks.wall_s - began


def test_every_run_lasts_factor_times_the_least_of_the_first_ones() -> None:
    clocks = Clocks()
    calibration = [0.02, *[0.01] * (CALIBRATION_RUNS - 1)]
    model = throttled(clocks, 10, [*calibration, 0.013, 0.03, 0.2])
    inputs = {"x": np.zeros((1, 2), np.float32)}
    assert wall_s(clocks, model, inputs) == pytest.approx(sum(calibration) + 0.1)
    assert wall_s(clocks, model, inputs) == pytest.approx(0.1)
    # Slower than the board: nothing can be slept away.
    assert wall_s(clocks, model, inputs) == pytest.approx(0.2)


def test_inputs_of_other_shapes_are_measured_for_themselves() -> None:
    clocks = Clocks()
    model = throttled(clocks, 4, [*[0.01] * (CALIBRATION_RUNS + 1), *[0.03] * 9, 0.01])
    small, large = ({"x": np.zeros((n, 2), np.float32)} for n in (1, 3))
    wall_s(clocks, model, small)
    wall_s(clocks, model, large)
    assert wall_s(clocks, model, large) == pytest.approx(0.12)
    assert wall_s(clocks, model, small) == pytest.approx(0.04)


@pytest.mark.parametrize("factor", [0.5, 0.0, float("nan")])
def test_a_board_is_never_faster_than_this_machine(factor: float) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        ThrottledRuntime(FakeRuntime(FakeModel(Clocks(), [])), factor)


def test_a_board_has_its_own_memory_all_of_it_for_models() -> None:
    board = ThrottledBoard(12.0, 256 << 20)
    assert board.facts.memory_bytes == 256 << 20
    assert board.facts.description.simulated
    assert board.read().memory_used_bytes == 0
