"""How long the segments of a model take on a type of board. Pure.

Whatever was measured of the model on such a board counts; a roofline only shares it out among
segments, and stands in where nothing was measured. A run over the segments [a, b) is taken to
cost an overhead, the same for every run, plus the times of its segments. Overhead and times are
fitted by least squares to all ranges that were measured, however they overlap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal_controlplane.planner.partition.problem import Segment
from shoal_controlplane.plans.draft import Basis
from shoal_shared.messages import Accelerator

Range: TypeAlias = tuple[int, int]
"""Segments [first, last)."""

DEFAULT_OVERHEAD_MS = 0.3
_OVERHEAD_SHARE = 0.1
"""An overhead that was not measured is at most this part of the shortest range."""

_CORE_MACS = 6e9
_MOST_CORES = 8
_CPU_BYTES = 8e9
_SMALLEST_MS = 1e-4
"""What a segment without any work is taken to cost by the roofline."""

_NOISE = 0.02
_SHORTEST_NOISE_MS = 0.005
_TRUST = 1.0
"""How far a cell may be off the share that the roofline gives it of what was measured, as a part
of it: much further than any noise, so that what was measured prevails."""
_FAR_OFF = 1e4
"""What was measured of one part, which may have no work to speak of, says at most so much of
parts of which nothing was measured, in multiples of the roofline."""
_FLOOR = 0.01
_COVERED = 0.5
"""Part of a model from which its times count as measured."""


@dataclass(frozen=True, slots=True)
class Roof:
    """What a board reaches on real networks one request at a time, not its data sheet's peak:
    multiply-accumulates and bytes a second, and the overhead of a run."""

    macs_per_s: float
    bytes_per_s: float
    overhead_ms: float = DEFAULT_OVERHEAD_MS

    def milliseconds(self, segment: Segment) -> float:
        """Time of a segment: compute or memory, whichever takes longer."""
        compute = segment.macs / self.macs_per_s
        memory = segment.moved_bytes / self.bytes_per_s
        return max(1e3 * compute, 1e3 * memory, _SMALLEST_MS)


# From published single-stream times of ResNet-50 (4.09e9 multiply-accumulates): Jetson Orin Nano
# 3.3 ms, Orin NX 1.1 ms; Jetson Nano 28 ms; QCS6490 2.7 ms, Ascend 310 4.3 ms.
_TENSOR_GPU = Roof(1.5e12, 60e9, 0.6)
_PLAIN_GPU = Roof(1.5e11, 20e9, 0.8)
_ROOFS = {"npu": Roof(1.0e12, 30e9, 0.4), "dla": Roof(5e11, 30e9, 0.6)}

TYPICAL = _ROOFS["npu"]
"""For the proportions of a model where no board is in question."""


def roof(accelerators: Sequence[Accelerator], cores: int) -> Roof:
    """The roof of a board by what it says of itself. `accelerators` are only those that its
    runtimes use; without any the processor's cores count."""
    count = min(max(cores, 1), _MOST_CORES)
    found = [Roof(count * _CORE_MACS, _CPU_BYTES, 0.1)]
    for accelerator in accelerators:
        if accelerator.kind == "gpu":
            known = accelerator.precisions
            found.append(_PLAIN_GPU if known and "int8" not in known else _TENSOR_GPU)
        elif accelerator.kind in _ROOFS:
            found.append(_ROOFS[accelerator.kind])
    return max(found, key=lambda r: r.macs_per_s)


@dataclass(frozen=True, slots=True)
class Costs:
    """Times of the segments, all above 0, the overhead of a run, and what both rest on."""

    times_ms: tuple[float, ...]
    overhead_ms: float
    basis: Basis

    def milliseconds(self, first: int, last: int) -> float:
        """Time of a run over the segments [first, last)."""
        return self.overhead_ms + sum(self.times_ms[first:last])


def costs(segments: Sequence[Segment], measured: Mapping[Range, float], board: Roof) -> Costs:
    """Times of `segments` on a board. `measured` holds the ms of ranges of them, the whole model
    among them as (0, number of segments); what is no range, or no time, is left out."""
    count = len(segments)
    shape = np.array([board.milliseconds(segment) for segment in segments])
    known = {
        (first, last): ms
        for (first, last), ms in sorted(measured.items())
        if 0 <= first < last <= count and 0 < ms < 1e9
    }
    if not known:
        return Costs(tuple(map(float, shape)), board.overhead_ms, Basis.ESTIMATED)
    overhead, times = _fit(shape, known, board.overhead_ms)
    parts = {r for r in known if r != (0, count) or count == 1}
    covered = sum(shape[i] for i in range(count) if any(a <= i < b for a, b in parts))
    basis = Basis.MEASURED if covered >= _COVERED * shape.sum() else Basis.SCALED
    return Costs(tuple(map(float, times)), overhead, basis)


def chunks(segments: Sequence[Segment], limit: int = 12) -> list[Range]:
    """What to measure on a board: at most `limit` ranges that cover all segments and cost about
    the same, and the union of two neighbours in the middle, which tells the overhead of a run."""
    done = [0.0, *accumulate(TYPICAL.milliseconds(segment) for segment in segments)]
    wanted = min(limit, len(segments))
    bounds = {0, len(segments)}
    for number in range(1, wanted):
        target = done[-1] * number / wanted
        after = bisect_left(done, target)
        bounds.add(min(after - 1, after, key=lambda i: abs(done[i] - target)))
    ranges = list(pairwise(sorted(bounds)))
    if len(ranges) > 2:
        middle = len(ranges) // 2
        ranges.append((ranges[middle - 1][0], ranges[middle][1]))
    elif len(ranges) == 2:
        ranges.append((0, len(segments)))
    return ranges


def _fit(
    shape: npt.NDArray[np.float64], known: Mapping[Range, float], usual_ms: float
) -> tuple[float, npt.NDArray[np.float64]]:
    """Overhead and times that agree best with all `known` ranges.

    Between two neighbouring bounds of ranges nothing tells segments apart, so that only the time
    of such a cell is unknown, and the roofline shares it out. Every cell starts from its share of
    the shortest range that holds it, and is held there loosely where ranges leave it open.
    """
    bounds = sorted({0, len(shape), *(bound for r in known for bound in r)})
    cells = list(pairwise(bounds))
    done = np.concatenate(([0.0], np.cumsum(shape)))
    work = np.array([done[b] - done[a] for a, b in cells])
    usual = min(usual_ms, _OVERHEAD_SHARE * min(known.values()))

    def pace(a: int, b: int) -> float:
        return float((known[a, b] - usual) / (done[b] - done[a]))

    everywhere = float(np.clip(np.median([pace(*r) for r in known]), 1 / _FAR_OFF, _FAR_OFF))
    prior = np.empty(len(cells))
    for number, (a, b) in enumerate(cells):
        holding = [r for r in known if r[0] <= a and b <= r[1]]
        best = min(holding, key=lambda r: (done[r[1]] - done[r[0]], r), default=None)
        prior[number] = work[number] * (everywhere if best is None else pace(*best))

    rows, values = [], []  # Of the unknowns, the overhead comes first.
    for (a, b), ms in known.items():
        sigma = max(_NOISE * ms, _SHORTEST_NOISE_MS)
        inside = np.array([1.0, *(float(a <= c and d <= b) for c, d in cells)])
        rows.append(inside / sigma)
        values.append(ms / sigma)
    start = np.concatenate(([usual], prior))
    loose = np.concatenate(([max(known.values())], _TRUST * prior))
    rows.extend(np.diag(1 / loose))
    values.extend(start / loose)
    least = np.concatenate(([0.0], _FLOOR * prior))
    solution = _least_squares(np.array(rows), np.array(values), least)
    times = np.concatenate(
        [shape[a:b] * (t / w) for (a, b), t, w in zip(cells, solution[1:], work, strict=True)]
    )
    return float(solution[0]), times


def _least_squares(
    matrix: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    least: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """The x >= `least` that brings `matrix` x close to `values`: what falls below its bound is
    held there, and the others are fitted anew."""
    held = np.zeros(len(least), dtype=bool)
    while True:
        x = least.copy()
        if not held.all():
            rest = values - matrix[:, held] @ least[held]
            x[~held] = np.linalg.lstsq(matrix[:, ~held], rest, rcond=None)[0]
        below = (x < least) & ~held
        if not below.any():
            return x
        held |= below
