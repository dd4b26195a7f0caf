from __future__ import annotations

from dataclasses import replace

import pytest
from support.partition import fleet_of

from shoal_controlplane.planner.partition.assignment import Assignment
from shoal_controlplane.planner.partition.problem import Link
from shoal_controlplane.planner.partition.solve import evaluate, solve


def test_a_device_with_two_stages_does_one_after_the_other() -> None:
    problem = fleet_of([[3.0, 4.0, 5.0]], [2])
    plan = evaluate(problem, [(0, 1, 0, ("d00",)), (1, 2, 0, ("d01",)), (2, 3, 0, ("d00",))])
    assert plan.bottleneck_ms == pytest.approx(8.0)
    assert plan.latency_ms == pytest.approx(12.0)
    assert (plan.method, plan.bound_ms) == ("given", 0.0)


def test_ways_in_and_out_count() -> None:
    problem = fleet_of(
        [[1.0]], [1], entries=(Link(1e5, 2.0),), exits=(Link(1e6, 3.0),), input_bytes=2000
    )
    plan = evaluate(problem, [(0, 1, 0, ("d00",))])
    (stage,) = plan.stages
    assert (stage.receive_ms, stage.send_ms) == pytest.approx((20.0, 1.0))
    assert (stage.in_bytes, stage.out_bytes) == (2000, 1000)
    assert plan.bottleneck_ms == pytest.approx(20.0)
    assert plan.latency_ms == pytest.approx(2 + 20 + 1 + 1 + 3)


def test_measured_stages_count_instead_of_sums() -> None:
    problem = fleet_of([[3.0, 4.0]], [1], known_ms={(0, 2, 0): 5.0})
    plan = evaluate(problem, [(0, 2, 0, ("d00",))])
    assert plan.bottleneck_ms == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([], "in order"),
        ([(0, 1, 0, ("d00",))], "in order"),
        ([(1, 2, 0, ("d00",))], "in order"),
        ([(0, 0, 0, ("d00",)), (0, 2, 0, ("d01",))], "in order"),
        ([(0, 2, 0, ())], "needs devices"),
        ([(0, 2, 0, ("d00", "d00"))], "each of them once"),
        ([(0, 2, 7, ("d00",))], "a type that does not exist"),
        ([(0, 2, 0, ("nobody",))], "'nobody' is no device of type 't0'"),
    ],
)
def test_stages_that_are_no_plan(stages: list[Assignment], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(fleet_of([[1.0, 1.0]], [2]), stages)


def test_a_fleet_without_devices_has_no_plan() -> None:
    problem = fleet_of([[1.0]], [1])
    assert solve(replace(problem, types=(), links=(), entries=(), exits=())).best is None
