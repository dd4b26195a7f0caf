from __future__ import annotations

from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.partition import MB, fleet_of, problems

from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Objective, Problem
from shoal_controlplane.planner.partition.solve import evaluate, reassign, solve, without


@given(problems(max_segments=5, max_devices=4, replicate=False), st.data())
@settings(max_examples=150)
def test_the_best_devices_for_given_stages(problem: Problem, data: st.DataObject) -> None:
    length = len(problem.segments)
    inner = data.draw(st.sets(st.integers(1, max(1, length - 1))))
    bounds = sorted({0, length} | {b for b in inner if b < length})
    edges = list(pairwise(bounds))
    fleet = [(v, device) for v, kind in enumerate(problem.types) for device in kind.devices]
    spare = {d: data.draw(st.sampled_from([0, 30 * MB, 200 * MB])) for _, d in fleet}

    def fits(stage: tuple[int, int], place: tuple[int, str]) -> bool:
        free = MEMORY_SHARE * problem.types[place[0]].memory_bytes
        return problem.memory_bytes(*stage, place[0]) + spare[place[1]] <= free

    plans = [
        evaluate(problem, [(*e, v, (d,)) for e, (v, d) in zip(edges, chosen, strict=True)])
        for chosen in permutations(fleet, len(edges))
        if all(map(fits, edges, chosen))
    ]
    found = reassign(problem, bounds, spare)
    if found is not None:
        assert [(s.first, s.last) for s in found.stages] == edges
        for stage in found.stages:
            assert fits((stage.first, stage.last), (stage.kind, stage.devices[0]))
    if plans:
        assert found is not None
        throughput = problem.objective is Objective.THROUGHPUT
        values = [p.bottleneck_ms if throughput else p.latency_ms for p in plans]
        assert (found.bottleneck_ms if throughput else found.latency_ms) == pytest.approx(
            min(values)
        )
        assert len({s.devices for s in found.stages}) == len(edges)


def test_one_device_takes_two_stages_if_there_is_no_other_way() -> None:
    problem = fleet_of([[1.0] * 4, [3.0] * 4], [1, 1])
    plan = reassign(problem, [0, 1, 2, 4], {})
    assert plan is not None
    # The fast one takes two stages, so that each has 3 ms.
    assert [stage.devices for stage in plan.stages] in (
        [("d00",), ("d10",), ("d00",)],
        [("d10",), ("d00",), ("d00",)],
    )
    assert plan.bottleneck_ms == pytest.approx(3.0)


def test_two_stages_on_one_device_need_memory_for_both() -> None:
    alone = fleet_of([[1.0, 1.0]], [1], memory=80 * MB)
    assert reassign(alone, [0, 2], {}) is None
    assert reassign(alone, [0, 1, 2], {}) is None
    room = fleet_of([[1.0, 1.0]], [1], memory=200 * MB)
    assert reassign(room, [0, 1, 2], {}) is not None
    assert reassign(room, [0, 1, 2], {"d00": 100 * MB}) is None


def test_a_stage_that_is_loaded_needs_no_more_memory() -> None:
    problem = fleet_of([[1.0, 1.0]], [2], memory=80 * MB)
    taken = {"d00": 60 * MB}
    assert reassign(problem, [0, 1, 2], taken) is None
    plan = reassign(problem, [0, 1, 2], taken, {"d00": {1}})
    assert plan is not None
    assert [stage.devices for stage in plan.stages] == [("d01",), ("d00",)]


def test_the_plan_for_a_lost_device_keeps_the_stages() -> None:
    problem = fleet_of([[2.0] * 8, [3.0] * 8], [2, 2], replicate=False)
    best = solve(problem).best
    assert best is not None
    bounds = [0, *(stage.last for stage in best.stages)]
    for stage in best.stages:
        rest = without(problem, stage.devices)
        plan = reassign(rest, bounds, {})
        assert plan is not None
        assert [s.last for s in plan.stages] == bounds[1:]
        assert not {d for s in plan.stages for d in s.devices} & set(stage.devices)
        assert plan.bottleneck_ms >= best.bottleneck_ms


def test_nobody_left() -> None:
    problem = without(fleet_of([[1.0, 1.0]], [1]), {"d00"})
    assert reassign(problem, [0, 1, 2], {}) is None


@pytest.mark.parametrize("bounds", [[], [0], [0, 1], [1, 2], [0, 2, 1, 2], [0, 0, 2], [0, 3]])
def test_bounds_that_are_none(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="do not cover"):
        reassign(fleet_of([[1.0, 1.0]], [1]), bounds, {})
