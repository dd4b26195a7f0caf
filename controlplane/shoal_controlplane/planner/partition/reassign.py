"""Other devices for the stages that a plan has, for the day that one of its own is gone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from shoal_controlplane.planner.partition.assignment import Assignment, evaluate, hand_out
from shoal_controlplane.planner.partition.check import check
from shoal_controlplane.planner.partition.optimum import Optimum
from shoal_controlplane.planner.partition.problem import (
    MEMORY_SHARE,
    DeviceType,
    Objective,
    Partition,
    Problem,
    Segment,
)
from shoal_controlplane.planner.partition.tables import tabulate

_TRIES = 20_000
"""Assignments of stages to shared devices that are looked at."""


def reassign(
    problem: Problem,
    bounds: Sequence[int],
    spare: Mapping[str, int],
    held: Mapping[str, Collection[int]] | None = None,
) -> Partition | None:
    """The best devices for given stages; None if nothing fits.

    `bounds` are the boundaries of the stages, from 0 to the number of segments. `spare` is memory
    in bytes that other stages of the plan take on a device already; `held` gives the stages, by
    their index, that a device has loaded and that `spare` counts, so that they need no more. A
    device takes two stages only if there is no plan in which none does; then as few as possible
    do. Raises `ValueError` if the problem or the bounds make no sense.
    """
    check(problem)
    edges = list(pairwise(bounds))
    covers = bool(edges) and bounds[0] == 0 and bounds[-1] == len(problem.segments)
    if not covers or any(last <= first for first, last in edges):
        raise ValueError("the bounds of the stages do not cover the model in order")
    holds = {device: frozenset(stages) for device, stages in (held or {}).items()}
    return _distinct(problem, edges, spare, holds) or _shared(problem, edges, spare, holds)


def _distinct(
    problem: Problem,
    edges: list[tuple[int, int]],
    spare: Mapping[str, int],
    holds: Mapping[str, frozenset[int]],
) -> Partition | None:
    """The best plan in which every device has one stage at most: that of a model whose segments
    are the stages, on a fleet whose types have the same memory left."""
    if not problem.types or len(edges) > sum(len(kind.devices) for kind in problem.types):
        return None
    groups: dict[tuple[int, int, frozenset[int]], list[str]] = defaultdict(list)
    for v, kind in enumerate(problem.types):
        for device in kind.devices:
            groups[v, spare.get(device, 0), holds.get(device, frozenset())].append(device)
    kinds = [v for v, _, _ in groups]
    coarse = replace(
        problem,
        segments=tuple(_joined(problem.segments[first:last]) for first, last in edges),
        types=tuple(
            _coarse_type(problem, v, tuple(devices), edges) for (v, _, _), devices in groups.items()
        ),
        links=tuple(tuple(problem.links[u][v] for v in kinds) for u in kinds),
        entries=tuple(problem.entries[v] for v in kinds),
        exits=tuple(problem.exits[v] for v in kinds),
        known_ms={},
        known_bytes={},
    )
    tables = tabulate(coarse)
    tables.cost[:] = np.inf
    for n, (v, taken, stages) in enumerate(groups):
        for s, (first, last) in enumerate(edges):
            if s in stages or _fits(problem, first, last, v, taken):
                tables.cost[n, s, s + 1] = coarse.types[n].times_ms[s]
    found = Optimum(coarse, tables).best(problem.objective, len(edges))
    if found is None:
        return None
    handed = hand_out(coarse, found.plan)
    return evaluate(
        problem,
        [(*edges[first], kinds[kind], devices) for first, _, kind, devices in handed],
    )


def _coarse_type(
    problem: Problem, kind: int, devices: tuple[str, ...], edges: list[tuple[int, int]]
) -> DeviceType:
    times = tuple(problem.compute_ms(first, last, kind) for first, last in edges)
    return replace(problem.types[kind], devices=devices, times_ms=times, overhead_ms=0.0)


def _joined(inside: Sequence[Segment]) -> Segment:
    return Segment(
        name=inside[-1].name,
        weight_bytes=sum(segment.weight_bytes for segment in inside),
        peak_bytes=max(segment.peak_bytes for segment in inside),
        out_bytes=inside[-1].out_bytes,
        macs=sum(segment.macs for segment in inside),
        moved_bytes=sum(segment.moved_bytes for segment in inside),
    )


def _fits(problem: Problem, first: int, last: int, kind: int, taken: int) -> bool:
    free = MEMORY_SHARE * problem.types[kind].memory_bytes
    return problem.memory_bytes(first, last, kind) + taken <= free


class _Sharing:
    """Branch and bound over all assignments of one device to each stage, the largest stage first;
    after `_TRIES` it takes the best that it has."""

    def __init__(
        self,
        problem: Problem,
        edges: list[tuple[int, int]],
        spare: Mapping[str, int],
        holds: Mapping[str, frozenset[int]],
    ) -> None:
        self._problem = problem
        self._edges = edges
        self._holds = holds
        self._fleet = [(v, d) for v, kind in enumerate(problem.types) for d in kind.devices]
        self._taken = {device: spare.get(device, 0) for _, device in self._fleet}
        weight = {
            s: sum(x.weight_bytes for x in problem.segments[slice(*edge)])
            for s, edge in enumerate(edges)
        }
        self._order = sorted(weight, key=lambda s: -weight[s])
        self._chosen: dict[int, tuple[int, str]] = {}
        self._tries = 0
        self.best: tuple[int, float, Partition] | None = None

    def run(self, depth: int = 0) -> None:
        used = Counter(device for _, device in self._chosen.values())
        doubled = len(self._chosen) - len(used)
        if self._tries >= _TRIES or (self.best is not None and doubled > self.best[0]):
            return
        if depth == len(self._order):
            self._note(doubled)
            return
        stage = self._order[depth]
        first, last = self._edges[stage]

        def preference(place: tuple[int, str]) -> tuple[int, float]:
            return used[place[1]], self._problem.compute_ms(first, last, place[0])

        for kind, device in sorted(self._fleet, key=preference):
            self._tries += 1
            own = stage in self._holds.get(device, ())
            if not own and not _fits(self._problem, first, last, kind, self._taken[device]):
                continue
            size = 0 if own else self._problem.memory_bytes(first, last, kind)
            self._taken[device] += size
            self._chosen[stage] = (kind, device)
            self.run(depth + 1)
            del self._chosen[stage]
            self._taken[device] -= size

    def _note(self, doubled: int) -> None:
        stages: list[Assignment] = []
        for s, edge in enumerate(self._edges):
            kind, device = self._chosen[s]
            stages.append((*edge, kind, (device,)))
        plan = evaluate(self._problem, stages)
        throughput = self._problem.objective is Objective.THROUGHPUT
        value = plan.bottleneck_ms if throughput else plan.latency_ms
        if self.best is None or (doubled, value) < self.best[:2]:
            self.best = (doubled, value, plan)


def _shared(
    problem: Problem,
    edges: list[tuple[int, int]],
    spare: Mapping[str, int],
    holds: Mapping[str, frozenset[int]],
) -> Partition | None:
    """The best plan in which devices may have several stages, as few of them as possible."""
    sharing = _Sharing(problem, edges, spare, holds)
    sharing.run()
    return sharing.best[2] if sharing.best is not None else None
