"""How many requests may be under way in a pipeline at once. Pure."""

from __future__ import annotations

import math

from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Partition, Problem

LEAST = 2
MOST = 32


def credits_for(partition: Partition) -> int:
    """How many requests may be under way in a pipeline.

    By Little's law as many as the slowest stage answers in the time that one request takes keep
    it busy; one more for each stage lets the next request wait where the last one is computed.
    """
    busy = math.ceil(partition.latency_ms / max(partition.bottleneck_ms, 1e-6))
    return min(max(busy + len(partition.stages), LEAST), MOST)


def room_for(problem: Problem, partition: Partition) -> int:
    """The most requests under way for which every stage has the memory: at least those that the
    plan was made for."""
    extra = min(
        (MEMORY_SHARE * problem.types[stage.kind].memory_bytes - stage.memory_bytes)
        / max(stage.in_bytes + stage.out_bytes, 1)
        for stage in partition.stages
    )
    return problem.in_flight + int(min(max(extra, 0.0), MOST))
