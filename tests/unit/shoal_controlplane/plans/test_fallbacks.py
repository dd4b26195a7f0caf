from __future__ import annotations

from hypothesis import given, settings
from support.partition import MB, fleet_of, problems

from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Problem
from shoal_controlplane.planner.partition.solve import evaluate, solve
from shoal_controlplane.plans.fallbacks import MAX_FALLBACKS, fallbacks


def devices(problem: Problem, *stages: tuple[int, int, int, tuple[str, ...]]) -> dict[str, object]:
    found = fallbacks(problem, evaluate(problem, stages))
    return {lost: tuple(s.devices for s in way.stages) for lost, way in found.items()}


def test_a_device_that_is_free_takes_over() -> None:
    problem = fleet_of([[10, 10]], [3])
    assert devices(problem, (0, 1, 0, ("d00",)), (1, 2, 0, ("d01",))) == {
        "d00": (("d02",), ("d01",)),
        "d01": (("d00",), ("d02",)),
    }


def test_else_one_that_has_a_stage_does_both() -> None:
    problem = fleet_of([[10, 10]], [2])
    plan = evaluate(problem, [(0, 1, 0, ("d00",)), (1, 2, 0, ("d01",))])
    found = fallbacks(problem, plan)
    assert [s.devices for s in found["d00"].stages] == [("d01",), ("d01",)]
    assert found["d00"].bottleneck_ms == 2 * plan.bottleneck_ms


def test_the_faster_one_takes_over() -> None:
    problem = fleet_of([[10, 10], [8, 8], [30, 30]], [2, 1, 1])
    found = devices(problem, (0, 1, 0, ("d00",)), (1, 2, 0, ("d01",)))
    assert found["d00"] == (("d10",), ("d01",))


def test_replicas_of_a_stage_go_on_without_the_one_that_is_lost() -> None:
    problem = fleet_of([[10, 10]], [3])
    found = devices(problem, (0, 1, 0, ("d00", "d02")), (1, 2, 0, ("d01",)))
    assert found["d00"] == (("d02",), ("d01",))
    assert found["d02"] == (("d00",), ("d01",))


def test_a_device_that_does_two_stages_is_replaced_in_both() -> None:
    problem = fleet_of([[10, 10]], [2])
    found = devices(problem, (0, 1, 0, ("d00",)), (1, 2, 0, ("d00",)))
    assert found == {"d00": (("d01",), ("d01",))}
    alone = fleet_of([[10, 10]], [1])
    assert devices(alone, (0, 1, 0, ("d00",)), (1, 2, 0, ("d00",))) == {}


def test_memory_for_all_stand_ins_together() -> None:
    # Room for two stages of 54 MB and a little.
    problem = fleet_of([[10, 10, 10]], [4], memory=150 * MB)
    found = devices(problem, (0, 1, 0, ("d00",)), (1, 2, 0, ("d01",)), (2, 3, 0, ("d02",)))
    assert found["d00"] == (("d03",), ("d01",), ("d02",))
    assert found["d01"] == (("d00",), ("d03",), ("d02",)), "d03 has room for two"
    assert found["d02"][2] != ("d03",), "but not for three"  # type: ignore[index]


def test_as_many_as_goals_can_name() -> None:
    problem = fleet_of([[10.0]], [12])
    names = problem.types[0].devices
    assert len(devices(problem, (0, 1, 0, names))) == MAX_FALLBACKS


@settings(max_examples=150, deadline=None)
@given(problem=problems(max_segments=5, max_devices=5))
def test_every_way_is_a_plan_without_the_lost_device(problem: Problem) -> None:
    plan = solve(problem).best
    if plan is None:
        return
    kinds = {device: v for v, kind in enumerate(problem.types) for device in kind.devices}
    held = {d: {n} for n, stage in enumerate(plan.stages) for d in stage.devices}
    for lost, way in fallbacks(problem, plan).items():
        assert lost in held
        assert all(lost not in stage.devices for stage in way.stages)
        assert [(s.first, s.last) for s in way.stages] == [(s.first, s.last) for s in plan.stages]
        again = evaluate(problem, [(s.first, s.last, s.kind, s.devices) for s in way.stages])
        assert (way.bottleneck_ms, way.latency_ms) == (again.bottleneck_ms, again.latency_ms)
    for way in fallbacks(problem, plan).values():
        for n, stage in enumerate(way.stages):
            for device in stage.devices:
                held.setdefault(device, set()).add(n)
    for device, numbers in held.items():
        kind = kinds[device]
        need = sum(
            problem.memory_bytes(plan.stages[n].first, plan.stages[n].last, kind) for n in numbers
        )
        assert need <= MEMORY_SHARE * problem.types[kind].memory_bytes
