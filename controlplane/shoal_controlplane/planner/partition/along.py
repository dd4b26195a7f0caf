"""The best plan of stages that are given: for files that were cut already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from shoal_controlplane.planner.partition.assignment import evaluate
from shoal_controlplane.planner.partition.problem import Partition, Problem, Segment
from shoal_controlplane.planner.partition.solve import solve

Amount = TypeVar("Amount", int, float)


def solve_along(problem: Problem, bounds: Sequence[int]) -> Partition | None:
    """The best devices for the stages between `bounds`, segments from 0 to their number; None
    where nothing fits. Raises `ValueError` for bounds that are none."""
    ranges = list(pairwise(bounds))
    if not ranges or bounds[0] != 0 or bounds[-1] != len(problem.segments):
        raise ValueError(f"{list(bounds)} are no bounds of {len(problem.segments)} segments")
    merged = replace(
        problem,
        segments=tuple(_merged(problem.segments[a:b]) for a, b in ranges),
        types=tuple(
            replace(kind, times_ms=tuple(sum(kind.times_ms[a:b]) for a, b in ranges))
            for kind in problem.types
        ),
        stages=len(ranges),
        known_ms=_renumbered(problem.known_ms, bounds),
        known_bytes=_renumbered(problem.known_bytes, bounds),
    )
    best = solve(merged).best
    if best is None:
        return None
    stages = [(bounds[s.first], bounds[s.last], s.kind, s.devices) for s in best.stages]
    return evaluate(problem, stages)


def _merged(segments: Sequence[Segment]) -> Segment:
    return Segment(
        name=segments[-1].name,
        weight_bytes=sum(segment.weight_bytes for segment in segments),
        peak_bytes=max(segment.peak_bytes for segment in segments),
        out_bytes=segments[-1].out_bytes,
        macs=sum(segment.macs for segment in segments),
        moved_bytes=sum(segment.moved_bytes for segment in segments),
    )


def _renumbered(
    known: Mapping[tuple[int, int, int], Amount], bounds: Sequence[int]
) -> dict[tuple[int, int, int], Amount]:
    """What is known of stages, by the numbers of the parts instead of their segments."""
    part = {bound: number for number, bound in enumerate(bounds)}
    return {
        (part[first], part[last], kind): amount
        for (first, last, kind), amount in known.items()
        if first in part and last in part
    }
