"""Requests under way in a pipeline."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.planner.credits import credits_for, room_for
from shoal_controlplane.planner.partition.problem import (
    DeviceType,
    Link,
    Partition,
    Problem,
    Segment,
    Stage,
)


def partition(stages: int, bottleneck_ms: float, latency_ms: float) -> Partition:
    stage = Stage(0, 1, 0, ("a",), 1.0, 1.0, 1.0, 1, 1, 1)
    many = tuple(replace(stage, first=i, last=i + 1) for i in range(stages))
    return Partition(many, bottleneck_ms, latency_ms, bottleneck_ms, "exact")


def test_credits_keep_the_slowest_stage_busy() -> None:
    assert credits_for(partition(1, 10.0, 10.0)) == 2
    assert credits_for(partition(3, 10.0, 35.0)) == 7
    assert credits_for(partition(2, 1.0, 1000.0)) == 32


@given(st.integers(1, 12), st.floats(0, 1e6), st.floats(0, 1e9))
def test_credits_are_bounded(stages: int, bottleneck_ms: float, latency_ms: float) -> None:
    assert 2 <= credits_for(partition(stages, bottleneck_ms, latency_ms)) <= 32


def test_room_is_what_the_memory_of_the_tightest_stage_allows() -> None:
    kind = DeviceType("d", ("a",), 1000, (1.0, 1.0))
    segment = Segment("s", 1, 1, 10, 1.0, 1)
    link = Link(1e6)
    problem = Problem((segment, segment), (kind,), ((link,),), (link,), (link,), 10, in_flight=4)
    stage = Stage(0, 1, 0, ("a",), 1.0, 1.0, 1.0, 700, 10, 10)
    tight = replace(stage, memory_bytes=849)
    assert room_for(problem, Partition((stage,), 1.0, 1.0, 1.0, "exact")) == 4 + 7
    assert room_for(problem, Partition((stage, tight), 1.0, 1.0, 1.0, "exact")) == 4
