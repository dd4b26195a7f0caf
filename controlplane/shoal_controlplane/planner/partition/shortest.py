"""The exact programme for sums: the plan with the least total, one device a stage.

`h[boundary][last type][devices used by type]` is the least sum up to a boundary, an array over the
devices used for every boundary and type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal_controlplane.planner.partition.tables import Choice, Floats, Tables


@dataclass(frozen=True, slots=True)
class Sums:
    """What adds up. Shapes: `stage` (V, L+1, L+1), infinite where it cannot be; `step` (V, V, L+1)
    between the stage on type u before a boundary and that on v after it; `start` and `end` (V,).
    `caps` is the number of devices by type."""

    stage: Floats
    step: Floats
    start: Floats
    end: Floats
    caps: tuple[int, ...]


def latency_sums(tables: Tables) -> Sums:
    """Sums that make the latency of one request."""
    return Sums(
        stage=tables.cost,
        step=tables.transfer + tables.latency,
        start=tables.entry + tables.entry_latency,
        end=tables.exit + tables.exit_latency,
        caps=tables.caps,
    )


def relaxed(sums: Sums) -> tuple[float, list[Choice]] | None:
    """The least sum if there were any number of devices of each type: a lower bound, and the
    answer where it needs no more than there are. None where no stages fit at all."""
    kinds, size, _ = sums.stage.shape
    least = np.full((size, kinds), np.inf)
    ready = np.full((size, kinds), np.inf)
    came = np.zeros((size, kinds), np.int64)
    before = np.zeros((size, kinds), np.int64)
    ready[0] = sums.start
    for j in range(1, size):
        through = ready[:j].T + sums.stage[:, :j, j]
        came[j] = np.argmin(through, axis=1)
        least[j] = through[np.arange(kinds), came[j]]
        onward = least[j][:, None] + sums.step[:, :, j]
        before[j] = np.argmin(onward, axis=0)
        ready[j] = np.min(onward, axis=0)
    total = least[-1] + sums.end
    v, j = int(np.argmin(total)), size - 1
    if not np.isfinite(total[v]):
        return None
    choices: list[Choice] = []
    while j:
        i = int(came[j, v])
        choices.append((i, j, v, 1))
        j, v = i, int(before[i, v])
    return float(total.min()), choices[::-1]


def within(choices: list[Choice], caps: tuple[int, ...]) -> bool:
    """Whether there are devices enough."""
    return all(sum(c[3] for c in choices if c[2] == v) <= cap for v, cap in enumerate(caps))


def least_sum(sums: Sums, stages: int | None = None) -> tuple[float, list[Choice]] | None:
    """The least sum, and a plan that has it; of those with exactly `stages` stages where given.
    None where nothing fits."""
    there = [v for v, cap in enumerate(sums.caps) if cap]
    few = Sums(
        stage=sums.stage[there],
        step=sums.step[np.ix_(there, there)],
        start=sums.start[there],
        end=sums.end[there],
        caps=tuple(sums.caps[v] for v in there),
    )
    found = relaxed(few) if stages is None else None
    if found is None or not within(found[1], few.caps):
        found = _Programme(few).solve(stages)
    if found is None:
        return None
    return found[0], [(first, last, there[v], r) for first, last, v, r in found[1]]


class _Programme:
    def __init__(self, sums: Sums) -> None:
        self._sums = sums
        self._kinds, self._size, _ = sums.stage.shape
        shape = tuple(cap + 1 for cap in sums.caps)
        self._used = np.indices(shape).sum(axis=0)
        self._least = np.full((self._size, self._kinds, *shape), np.inf)
        self._ready = np.full((self._size, self._kinds, *shape), np.inf)
        # No device is used yet.
        self._ready.reshape(self._size, self._kinds, -1)[0, :, 0] = sums.start
        for j in range(1, self._size):
            self._reach(j)

    def _reach(self, j: int) -> None:
        for v in range(self._kinds):
            starts = np.flatnonzero(np.isfinite(self._sums.stage[v, :, j]))
            target = self._least[j, v][self._window(v, 1, None)]
            source = self._ready[:, v][(slice(None), *self._window(v, None, -1))]
            for i in starts:
                np.minimum(target, source[i] + self._sums.stage[v, i, j], out=target)
        for v in range(self._kinds):
            for u in range(self._kinds):
                onward = self._least[j, u] + self._sums.step[u, v, j]
                np.minimum(self._ready[j, v], onward, out=self._ready[j, v])

    def _window(self, v: int, first: int | None, last: int | None) -> tuple[slice, ...]:
        """A shift by one device along the axis of type v."""
        return tuple(slice(first, last) if n == v else slice(None) for n in range(self._kinds))

    def solve(self, stages: int | None) -> tuple[float, list[Choice]] | None:
        ends = self._sums.end.reshape(-1, *(1 for _ in self._sums.caps))
        total = self._least[-1] + ends
        if stages is not None:
            total = np.where(self._used == stages, total, np.inf)
        v, *used = (int(n) for n in np.unravel_index(np.argmin(total), total.shape))
        value = float(total[(v, *used)])
        if not np.isfinite(value):
            return None
        choices: list[Choice] = []
        j = self._size - 1
        while j:
            used[v] -= 1
            state = np.ravel_multi_index(used, self._used.shape)
            ready = self._ready.reshape(self._size, self._kinds, -1)[:j, v, state]
            i = int(np.argmin(ready + self._sums.stage[v, :j, j]))
            choices.append((i, j, v, 1))
            if i:
                least = self._least.reshape(self._size, self._kinds, -1)[i, :, state]
                v = int(np.argmin(least + self._sums.step[:, v, i]))
            j = i
        return value, choices[::-1]
