"""Drafts of plans: a chain of segments over boards, and ways to place it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from support.fleet import model_version

from shoal_controlplane.planner.cuts.analysis import Analysis, BoundaryTensor
from shoal_controlplane.planner.partition.problem import (
    DeviceType,
    Link,
    Objective,
    Outcome,
    Partition,
    Problem,
    Segment,
    Stage,
)
from shoal_controlplane.plans.draft import Basis, Draft

LINK = Link(bytes_per_s=10e6, latency_ms=1.0)


def problem(
    boards: Sequence[tuple[str, tuple[str, ...], float]] = (
        ("jetson", ("jetson-1", "jetson-2"), 4.0),
        ("ascend", ("ascend-1",), 3.0),
    ),
    count: int = 4,
    link: Link = LINK,
    objective: Objective = Objective.THROUGHPUT,
    stages: int | None = None,
) -> Problem:
    """`count` equal segments of which 20 kB come out, and `boards` as name, devices, ms for each
    segment; all links alike, 10 kB in."""
    segments = tuple(
        Segment(f"node{n}", 1 << 20, 1 << 20, 20_000, 1e6, 1 << 20) for n in range(count)
    )
    types = tuple(
        DeviceType(name, devices, 1 << 30, (each,) * count) for name, devices, each in boards
    )
    row = (link,) * len(types)
    return Problem(
        segments, types, (row,) * len(types), row, row, 10_000, objective=objective, stages=stages
    )


def partition(asked: Problem, *stages: tuple[int, int, int, tuple[str, ...]]) -> Partition:
    """The plan with `stages` (first, last, type, devices), its figures as the links have them."""
    made: list[Stage] = []
    for first, last, kind, devices in stages:
        coming, going = asked.in_bytes(first), asked.out_bytes(last)
        made.append(
            Stage(
                first,
                last,
                kind,
                devices,
                asked.compute_ms(first, last, kind),
                LINK.transfer_ms(coming),
                asked.exits[kind].transfer_ms(going),
                asked.memory_bytes(first, last, kind),
                coming,
                going,
            )
        )
    slowest = max(max(s.compute_ms, s.receive_ms, s.send_ms) / len(s.devices) for s in made)
    alone = sum(s.compute_ms + s.receive_ms for s in made) + made[-1].send_ms
    throughput = asked.objective is Objective.THROUGHPUT
    return Partition(tuple(made), slowest, alone, slowest if throughput else alone, "exact")


def draft(asked: Problem, outcome: Outcome, reason: str = "") -> Draft:
    """What was `asked` of the model cat:1 and the `outcome`; `reason` as in an analysis."""
    cuts = tuple(
        (BoundaryTensor(segment.name, "FP32", (1, segment.out_bytes // 4), segment.out_bytes),)
        for segment in asked.segments[:-1]
    )
    tensor = BoundaryTensor("x", "FP32", (1, asked.input_bytes // 4), asked.input_bytes)
    analysis = Analysis(
        asked.segments, cuts, (tensor,), (replace(tensor, name="y"),), {"x": tensor.shape}, reason
    )
    return Draft(
        model_version("cat"),
        {},
        analysis,
        asked,
        outcome,
        (Basis.MEASURED,) * len(asked.types),
        tuple(kind.name for kind in asked.types),
    )
