"""The exact programme for throughput: the least bottleneck that any plan has.

Whether a bottleneck T is possible is a question of reachability, over the same states as
PipeEdge's programme `h[segments][devices used by type][last type]`: which numbers of devices by
type can serve the segments before a boundary with nothing slower than T. A set of such numbers is
one integer used as a bit set (a mixed-radix index with a digit for each type), so that one `|`
handles all of them. T is bisected over the costs that occur, hence the result is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shoal_controlplane.planner.partition.tables import Choice, Floats, Tables

_Reached: TypeAlias = dict[int, int]
"""By the least number of replicas that the last stage has: the bit set."""


@dataclass(frozen=True, slots=True)
class States:
    """How many devices of each type are used, as an index; where `stages` is not 0, the topmost
    digit counts stages up to that number."""

    caps: tuple[int, ...]
    stages: int
    strides: tuple[int, ...]
    slice_size: int
    room: tuple[tuple[int, ...], ...]
    """`room[v][r]`: bit set of the states in which r more devices of type v are free, and one
    more stage is allowed."""
    devices: NDArray[np.int64]
    """How many devices are used in each state, stages left out."""

    @classmethod
    def of(cls, tables: Tables, stages: int = 0) -> States:
        strides = np.cumprod([1, *(cap + 1 for cap in tables.caps)]).tolist()
        size = strides.pop()
        index = np.arange(size)
        room = []
        devices = np.zeros(size, np.int64)
        for cap, stride, most in zip(tables.caps, strides, tables.replicas, strict=True):
            digit = index // stride % (cap + 1)
            devices += digit
            masks = [_bits(digit + r <= cap) for r in range(most + 1)]
            room.append(tuple(_repeat(mask, size, max(1, stages)) for mask in masks))
        return cls(tables.caps, stages, tuple(strides), size, tuple(room), devices)

    @staticmethod
    def count(caps: Sequence[int], stages: int = 0) -> int:
        """Number of states that there would be."""
        size = stages + 1
        for cap in caps:
            size *= cap + 1
        return size

    def shift(self, kind: int, replicas: int) -> int:
        """How far a stage moves the index."""
        return replicas * self.strides[kind] + (self.slice_size if self.stages else 0)

    def best(self, reached: int, stages: int | None) -> int | None:
        """The state in `reached` with `stages` stages (the fewest where None), and of those the
        one with the fewest devices; None if there is none."""
        numbers = range(self.stages + 1) if stages is None else (stages,)
        size = self.slice_size
        for number in numbers if self.stages else (0,):
            part = (reached >> number * size) & ((1 << size) - 1)
            if part:
                raw = np.frombuffer(part.to_bytes(size // 8 + 1, "little"), np.uint8)
                there = np.flatnonzero(np.unpackbits(raw, bitorder="little"))
                return int(there[np.argmin(self.devices[there])]) + number * size
        return None


def _bits(mask: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")


def _repeat(mask: int, size: int, times: int) -> int:
    result = 0
    for n in range(times):
        result |= mask << n * size
    return result


class Reach:
    """Everything reachable with no stage or link slower than `limit` ms.

    `before[i][v]` are stages that end at boundary i on type v.
    """

    def __init__(self, tables: Tables, states: States, limit: float) -> None:
        self._states = states
        self._kinds = range(tables.kinds)
        self._length = tables.length
        self._most = tables.replicas
        self._links = _needed(tables.transfer, max(tables.replicas), limit).tolist()
        self._in = _needed(tables.entry, max(tables.replicas), limit).tolist()
        self._out = _needed(tables.exit, max(tables.replicas), limit).tolist()
        self._entries = _entries(tables, limit)
        self._before: list[list[_Reached]] = []
        self._fill()

    def _fill(self) -> None:
        states, room = self._states, self._states.room
        ready: list[list[_Reached]] = []
        for j in range(self._length + 1):
            if j:
                row: list[_Reached] = []
                for v in self._kinds:
                    base: dict[int, int] = {}
                    for i, need in self._entries[v][j]:
                        for link, bits in ready[i][v].items():
                            r = max(need, link)
                            base[r] = base.get(r, 0) | bits
                    reached: _Reached = {}
                    for least in self._wanted(v, j):
                        moved: dict[int, int] = {}
                        for r, bits in base.items():
                            n = max(r, least)
                            moved[n] = moved.get(n, 0) | bits
                        total = 0
                        for r, bits in moved.items():
                            total |= (bits & room[v][r]) << states.shift(v, r)
                        if total:
                            reached[least] = total
                    row.append(reached)
                self._before.append(row)
            else:
                self._before.append([{} for _ in self._kinds])
            if j < self._length:
                ready.append([self._ready(j, v) for v in self._kinds])

    def _wanted(self, u: int, j: int) -> list[int]:
        """Numbers of replicas that the stage before boundary j may need for what follows."""
        if j == self._length:
            needs = {self._out[u]}
        else:
            needs = {
                self._links[u][v][j] for v in self._kinds if self._links[u][v][j] <= self._most[v]
            }
        return [need for need in needs if need <= self._most[u]]

    def _ready(self, j: int, v: int) -> _Reached:
        """States from which a stage on type v can start at boundary j, by the replicas that the
        link into it needs."""
        if j == 0:
            return {self._in[v]: 1} if self._in[v] <= self._most[v] else {}
        ready: _Reached = {}
        for u in self._kinds:
            need = self._links[u][v][j]
            bits = self._before[j][u].get(need, 0)
            if bits and need <= self._most[v]:
                ready[need] = ready.get(need, 0) | bits
        return ready

    def _end(self, u: int) -> int:
        return self._before[self._length][u].get(self._out[u], 0)

    def possible(self, stages: int | None = None) -> bool:
        """Whether `plan` finds one."""
        return any(self._states.best(self._end(u), stages) is not None for u in self._kinds)

    def plan(self, stages: int | None = None) -> list[Choice] | None:
        """A plan with `stages` stages, if they are counted; else any, or that with the fewest."""
        found = [(self._states.best(self._end(u), stages), u) for u in self._kinds]
        ends = [(state, u) for state, u in found if state is not None]
        if not ends:
            return None
        state, u = min(ends, key=lambda end: (end[0] // self._states.slice_size, end[0]))
        j, least = self._length, self._out[u]
        choices: list[Choice] = []
        while True:
            i, replicas, source = self._step_back(j, u, least, state)
            choices.append((i, j, u, replicas))
            if source is None:
                return choices[::-1]
            state -= self._states.shift(u, replicas)
            j, (u, least) = i, source

    def _step_back(
        self, j: int, v: int, least: int, state: int
    ) -> tuple[int, int, tuple[int, int] | None]:
        """Where the stage that ends in `state` starts, its replicas, and the stage before it."""
        states = self._states
        for i, need in self._entries[v][j]:
            sources = [None] if i == 0 else list(self._kinds)
            for u in sources:
                link = self._in[v] if u is None else self._links[u][v][i]
                if link > self._most[v]:
                    continue
                r = max(need, link, least)
                origin = state - states.shift(v, r)
                if origin < 0 or not states.room[v][r] >> origin & 1:
                    continue
                reached = 1 if u is None else self._before[i][u].get(link, 0)
                if reached >> origin & 1:
                    return i, r, None if u is None else (u, link)
        raise AssertionError("a state that was reached has a way to it")


def _needed(times: Floats, most: int, limit: float) -> NDArray[np.int64]:
    """The fewest devices that share `times` so that each has at most `limit`; more than `most` if
    they are not enough."""
    need = np.ones(times.shape, np.int64)
    for r in range(1, most + 1):
        need += times / r > limit
    return need


def _entries(tables: Tables, limit: float) -> list[list[list[tuple[int, int]]]]:
    """By type and end: starts of the stages that are possible, with the replicas needed."""
    result = []
    for v in range(tables.kinds):
        need = _needed(tables.cost[v], tables.replicas[v], limit)
        by_end = []
        for j in range(tables.length + 1):
            starts = np.flatnonzero(need[:, j] <= tables.replicas[v])
            by_end.append(list(zip(starts.tolist(), need[starts, j].tolist(), strict=True)))
        result.append(by_end)
    return result


def candidates(tables: Tables, least: float) -> list[float]:
    """Every cost from `least` on that a stage or link can have, in order."""
    most = max(tables.replicas)
    values = []
    for times in (tables.cost, tables.transfer, tables.entry, tables.exit):
        finite = times[np.isfinite(times)]
        values += [finite / r for r in range(1, most + 1)]
    found = np.unique(np.concatenate(values))
    return [*found[found >= least].tolist()]


def least_bottleneck(
    tables: Tables, least: float, stages: int | None = None
) -> tuple[float, list[Choice]] | None:
    """The least bottleneck, which is at least `least`, and a plan that has it; None where nothing
    fits. With `stages`, of the plans with exactly that many."""
    states = States.of(tables, stages or 0)
    values = candidates(tables, least)
    low, high = 0, len(values) - 1
    best: Reach | None = None
    # Whatever is possible with one bottleneck is so with any that is larger.
    middle = high
    while low < high or (best is None and low == high):
        reach = Reach(tables, states, values[middle])
        if reach.possible(stages):
            best, high = reach, middle
        else:
            low = middle + 1
        middle = (low + high) // 2
    plan = best.plan(stages) if best is not None else None
    return (values[high], plan) if plan is not None else None


def fewest_stages(tables: Tables, limit: float, most: int) -> list[Choice] | None:
    """The plan with the fewest stages, `most` or less, of those with a bottleneck up to `limit`."""
    return Reach(tables, States.of(tables, most), limit).plan()
