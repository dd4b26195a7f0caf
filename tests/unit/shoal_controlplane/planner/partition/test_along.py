from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.partition import fleet_of, problems

from shoal_controlplane.planner.partition.along import solve_along
from shoal_controlplane.planner.partition.problem import Problem
from shoal_controlplane.planner.partition.solve import evaluate, solve


def test_the_stages_stay_and_the_devices_are_the_best() -> None:
    problem = fleet_of([[1.0, 1.0, 8.0], [4.0, 4.0, 2.0]], [1, 1])
    plan = solve_along(problem, (0, 2, 3))
    assert plan is not None
    assert [(s.first, s.last, s.devices[0]) for s in plan.stages] == [(0, 2, "d00"), (2, 3, "d10")]
    assert plan.bottleneck_ms == pytest.approx(2.0)


def test_measured_stages_count() -> None:
    problem = fleet_of([[1.0, 1.0]], [2], known_ms={(0, 1, 0): 7.0, (0, 2, 0): 1.0})
    plan = solve_along(problem, (0, 1, 2))
    assert plan is not None
    assert plan.bottleneck_ms == pytest.approx(7.0)


def test_no_plan_where_there_are_too_few_devices() -> None:
    assert solve_along(fleet_of([[1.0, 1.0]], [1]), (0, 1, 2)) is None


@pytest.mark.parametrize("bounds", [(), (0,), (0, 1), (1, 2), (0, 3)])
def test_bounds_that_are_none(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no bounds of 2 segments"):
        solve_along(fleet_of([[1.0, 1.0]], [1]), bounds)


@given(problems(max_devices=3), st.data())
@settings(max_examples=40)
def test_it_is_priced_like_any_plan_and_never_beats_the_best(
    problem: Problem, data: st.DataObject
) -> None:
    count = len(problem.segments)
    inner = data.draw(
        st.sampled_from([c for n in range(3) for c in combinations(range(1, count), n)])
    )
    plan = solve_along(problem, (0, *inner, count))
    best = solve(problem).best
    if plan is not None:
        stages = [(s.first, s.last, s.kind, s.devices) for s in plan.stages]
        assert plan == evaluate(problem, stages)
        for stage in plan.stages:
            assert problem.fits(stage.first, stage.last, stage.kind)
        if best is not None and problem.stages is None:
            assert plan.bottleneck_ms >= 0.99 * best.bound_ms or plan.latency_ms >= best.bound_ms
