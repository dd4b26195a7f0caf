"""What a profiling job on a device would tell of a model's segments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shoal_agent.runtimes.onnx import OnnxRuntime
from shoal_bench.netfleet import Board
from shoal_controlplane.planner.costs import TYPICAL, Range, costs
from shoal_controlplane.planner.cuts.analysis import Analysis, StageFile
from shoal_controlplane.planner.partition.problem import DeviceType
from shoal_shared.tensors import NUMPY
from shoal_simulators.throttled import ThrottledRuntime


class Stopwatch:
    """Times stages on a board of factor 1, to which a throttled board holds itself; each once."""

    def __init__(self) -> None:
        self._runtime = ThrottledRuntime(OnnxRuntime(), 1.0)
        self._known: dict[str, float] = {}

    def milliseconds(self, file: StageFile, path: Path) -> float:
        """One run of a stage's file."""
        if file.digest not in self._known:
            model = self._runtime.load(path, {})
            inputs = {t.name: np.zeros(t.shape, NUMPY[t.datatype]) for t in file.inputs}
            try:
                self._known[file.digest] = model.undisturbed_s(inputs) * 1e3
            finally:
                model.close()
        return self._known[file.digest]


def device_types(
    analysis: Analysis, measured: Mapping[Range, float], boards: tuple[Board, ...]
) -> tuple[DeviceType, ...]:
    """Each board as a type of its own, with the segments' times on it."""
    types = []
    for board in boards:
        on_board = {r: ms * board.factor for r, ms in measured.items()}
        found = costs(analysis.segments, on_board, TYPICAL)
        types.append(
            DeviceType(
                name=board.name,
                devices=(board.name,),
                memory_bytes=board.memory_bytes,
                times_ms=found.times_ms,
                overhead_ms=found.overhead_ms,
            )
        )
    return tuple(types)
