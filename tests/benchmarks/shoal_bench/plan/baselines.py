"""How others cut a model: each rule as a function from a problem to stages.

Stages are what `solve.evaluate` takes. None where the rule overfills a device, which is where its
users run out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from shoal_controlplane.planner.partition.problem import Link, Objective, Problem
from shoal_controlplane.planner.partition.solve import solve

Stages: TypeAlias = list[tuple[int, int, int, tuple[str, ...]]]
"""(first, last, kind, devices) of each stage in order."""


def equal_split(problem: Problem) -> Stages | None:
    """The same number of segments on every device, in the fleet's order."""
    return _stages(problem, [1.0] * len(_fleet(problem)))


def ram_proportional(problem: Problem) -> Stages | None:
    """Segments in proportion to free memory: `allocate_layers_proportionally` of exo, which takes
    the largest remainders and leaves nobody without a layer."""
    return _stages(problem, [float(problem.types[v].memory_bytes) for v, _ in _fleet(problem)])


def flops_proportional(problem: Problem) -> Stages | None:
    """Segments in proportion to each device's speed on the whole model."""
    return _stages(problem, [1 / sum(problem.types[v].times_ms) for v, _ in _fleet(problem)])


def pipeedge(problem: Problem) -> Stages | None:
    """PipeEdge's exact programme (Hu et al., 2022; its `schedule.cpp`).

    It knows the compute of each segment, memory, and one bandwidth of each device, here that of
    its best link; a link has the lower one of its two ends. It may leave devices out, has no
    replicas, and takes no account of the way in and out, nor of what each run costs besides.
    """
    kinds = range(len(problem.types))
    nominal = [max(link.bytes_per_s for link in problem.links[u]) for u in kinds]
    known = replace(
        problem,
        types=tuple(replace(kind, overhead_ms=0.0) for kind in problem.types),
        links=tuple(tuple(Link(min(nominal[u], nominal[v])) for v in kinds) for u in kinds),
        entries=(Link(math.inf),) * len(kinds),
        exits=(Link(math.inf),) * len(kinds),
        objective=Objective.THROUGHPUT,
        stages=None,
        replicate=False,
        known_ms={},
    )
    best = solve(known).best
    if best is None:
        return None
    return [(stage.first, stage.last, stage.kind, stage.devices) for stage in best.stages]


def _fleet(problem: Problem) -> list[tuple[int, str]]:
    """Every device with its type, in the problem's order."""
    return [(v, device) for v, kind in enumerate(problem.types) for device in kind.devices]


def _stages(problem: Problem, weights: Sequence[float]) -> Stages | None:
    """Segments in proportion to `weights` of the devices, which follow each other in order."""
    stages: Stages = []
    first = 0
    counts = _largest_remainder(len(problem.segments), weights)
    for (kind, device), count in zip(_fleet(problem), counts, strict=True):
        if count == 0:
            continue
        if not problem.fits(first, first + count, kind):
            return None
        stages.append((first, first + count, kind, (device,)))
        first += count
    return stages


def _largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """`total` whole things in proportion to `weights`, at least one for each where they suffice."""
    whole = sum(weights)
    raw = [weight / whole * total for weight in weights]
    counts = [int(share) for share in raw]
    order = sorted(range(len(raw)), key=lambda i: raw[i] - counts[i], reverse=True)
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    for i in range(min(len(counts), total)):
        if counts[i] == 0:
            largest = max(range(len(counts)), key=counts.__getitem__)
            if counts[largest] > 1:
                counts[largest] -= 1
                counts[i] = 1
    return counts
