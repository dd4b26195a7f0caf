from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.partition import FAST, MB, fleet_of, problems, segment

from shoal_controlplane.planner.partition.problem import (
    DeviceType,
    Link,
    Objective,
    Outcome,
    Partition,
    Problem,
)
from shoal_controlplane.planner.partition.solve import evaluate, solve

ROUNDING = 1 + 1e-9


def value(problem: Problem, plan: Partition) -> float:
    throughput = problem.objective is Objective.THROUGHPUT
    return plan.bottleneck_ms if throughput else plan.latency_ms


def every_plan(problem: Problem) -> Iterator[Partition]:
    """All plans that fit, one for each way to choose types and numbers of devices."""
    length = len(problem.segments)

    def grow(
        stages: list[tuple[int, int, int, tuple[str, ...]]], left: list[tuple[str, ...]]
    ) -> Iterator[Partition]:
        at = stages[-1][1] if stages else 0
        if at == length:
            yield evaluate(problem, stages)
            return
        for v, names in enumerate(left):
            most = len(names) if problem.replicate else min(1, len(names))
            for r in range(1, most + 1):
                rest = [*left[:v], names[r:], *left[v + 1 :]]
                for last in range(at + 1, length + 1):
                    if problem.fits(at, last, v):
                        yield from grow([*stages, (at, last, v, names[:r])], rest)

    yield from grow([], [kind.devices for kind in problem.types])


def assert_sound(problem: Problem, plan: Partition) -> None:
    """The plan covers the model, fits, and says what is true of it."""
    edges = [(stage.first, stage.last) for stage in plan.stages]
    assert [first for first, _ in edges] == [0, *(last for _, last in edges[:-1])]
    assert edges[-1][1] == len(problem.segments)
    used = [device for stage in plan.stages for device in stage.devices]
    assert len(used) == len(set(used))
    for stage in plan.stages:
        assert set(stage.devices) <= set(problem.types[stage.kind].devices)
        assert problem.fits(stage.first, stage.last, stage.kind)
        assert problem.replicate or len(stage.devices) == 1
    again = evaluate(problem, [(s.first, s.last, s.kind, s.devices) for s in plan.stages])
    assert replace(again, bound_ms=plan.bound_ms, method=plan.method) == plan
    assert plan.bound_ms <= value(problem, plan)


@given(problems())
@settings(max_examples=250)
def test_the_best_of_all_plans_is_found(problem: Problem) -> None:
    outcome = solve(problem)
    values = [value(problem, plan) for plan in every_plan(problem)]
    if not values:
        assert outcome.best is None
        assert outcome.reason
        assert outcome.missing_bytes > 0
        return
    best = outcome.best
    assert best is not None
    assert_sound(problem, best)
    assert best.method == "exact"
    assert best.bound_ms == pytest.approx(min(values))
    tie = 1.01 if problem.objective is Objective.THROUGHPUT else 1.0
    assert value(problem, best) <= min(values) * tie * ROUNDING


@given(problems(objective=Objective.THROUGHPUT))
def test_of_plans_about_as_good_it_is_one_with_the_fewest_stages(problem: Problem) -> None:
    plans = list(every_plan(problem))
    assume(plans)
    best = solve(problem).best
    assert best is not None
    least = min(plan.bottleneck_ms for plan in plans)
    # Just below the limit: at the limit itself rounding decides.
    near = [plan for plan in plans if plan.bottleneck_ms <= least * 1.00999]
    assert len(best.stages) <= min(len(plan.stages) for plan in near)


@given(problems(), st.integers(1, 6))
def test_a_number_of_stages_is_kept(problem: Problem, stages: int) -> None:
    problem = replace(problem, stages=stages)
    outcome = solve(problem)
    values = [value(problem, p) for p in every_plan(problem) if len(p.stages) == stages]
    if not values:
        assert outcome.best is None
        assert outcome.reason
        return
    assert outcome.best is not None
    assert len(outcome.best.stages) == stages
    assert_sound(problem, outcome.best)
    assert value(problem, outcome.best) == pytest.approx(min(values))


@given(problems(max_segments=10, max_devices=6))
@settings(max_examples=60)
def test_nothing_is_worse_than_one_device(problem: Problem) -> None:
    outcome = solve(problem)
    fitting = [
        evaluate(problem, [(0, len(problem.segments), v, (kind.devices[0],))])
        for v, kind in enumerate(problem.types)
        if problem.fits(0, len(problem.segments), v)
    ]
    assert (outcome.single is None) == (not fitting)
    if outcome.single is not None and outcome.best is not None:
        assert len(outcome.single.stages[0].devices) == 1
        assert value(problem, outcome.single) == min(value(problem, plan) for plan in fitting)
        assert value(problem, outcome.best) <= value(problem, outcome.single)


@given(problems(max_segments=10, max_devices=6))
@settings(max_examples=60)
def test_runners_up_are_sound_and_different(problem: Problem) -> None:
    outcome = solve(problem)
    assume(outcome.best is not None)
    assert outcome.best is not None
    assert len(outcome.others) <= 4
    values = [value(problem, plan) for plan in outcome.others]
    assert values == sorted(values)
    shapes = {plan.stages for plan in (outcome.best, *outcome.others)}
    assert len(shapes) == 1 + len(outcome.others)
    for plan in outcome.others:
        assert_sound(problem, plan)
        assert plan.bound_ms == pytest.approx(min(outcome.best.bound_ms, value(problem, plan)))


@given(problems(max_segments=8, max_devices=4))
@settings(max_examples=100)
def test_the_search_never_beats_the_exact_programme(problem: Problem) -> None:
    exact, found = solve(problem), solve(problem, limit=0)
    if exact.best is None:
        assert found.best is None
    if found.best is not None:
        assert exact.best is not None
        assert_sound(problem, found.best)
        assert exact.best.bound_ms <= value(problem, found.best) * ROUNDING
        # Nor does its bound claim too much.
        assert found.best.bound_ms <= exact.best.bound_ms * ROUNDING


def test_work_is_shared_by_speed() -> None:
    problem = fleet_of([[2.0] * 6, [4.0] * 6], [1, 1])
    best = solve(problem).best
    assert best is not None
    assert sorted(stage.last - stage.first for stage in best.stages) == [2, 4]
    assert best.bottleneck_ms == pytest.approx(8.0)
    assert best.rate == pytest.approx(125.0)


def test_a_slow_link_is_worse_than_one_device() -> None:
    slow = Link(1000.0)
    problem = fleet_of([[1.0] * 4, [1.0] * 4], [1, 1], links=((slow,) * 2,) * 2)
    outcome = solve(problem)
    assert outcome.best is not None
    assert outcome.single is not None
    assert outcome.best.stages == outcome.single.stages


def test_the_slowest_stage_is_replicated() -> None:
    problem = fleet_of([[1.0, 12.0, 1.0], [50.0, 6.0, 50.0]], [2, 3])
    best = solve(problem).best
    assert best is not None
    assert [(s.first, s.last, len(s.devices)) for s in best.stages] == [
        (0, 1, 1),
        (1, 2, 3),
        (2, 3, 1),
    ]
    assert best.bottleneck_ms == pytest.approx(2.0)
    alone = solve(replace(problem, replicate=False)).best
    assert alone is not None
    assert alone.bottleneck_ms == pytest.approx(6.0)


def test_replicas_share_their_links() -> None:
    wide = Link(1e6)
    problem = fleet_of(
        [[1.0, 1.0], [1.0, 1.0]],
        [2, 1],
        segments=(segment(0, out_bytes=8000), segment(1)),
        links=((wide,) * 2,) * 2,
    )
    two, one = (0, 1, 0, ("d00", "d01")), (1, 2, 1, ("d10",))
    plan = evaluate(problem, [two, one])
    # Each sender has half of the 8 ms; the one receiver has all of them.
    assert plan.stages[0].send_ms == pytest.approx(8.0)
    assert plan.bottleneck_ms == pytest.approx(8.0)
    assert plan.latency_ms == pytest.approx(1 + 8 + 1)


def test_latency_takes_no_detour() -> None:
    far = Link(1e12, latency_ms=10.0)
    problem = fleet_of([[2.0] * 3, [1.0] * 3], [1, 1], links=((far,) * 2,) * 2)
    best = solve(replace(problem, objective=Objective.LATENCY)).best
    assert best is not None
    assert [stage.kind for stage in best.stages] == [1]
    assert best.latency_ms == pytest.approx(3.0)


def test_a_model_too_large_for_each_device_is_cut() -> None:
    problem = fleet_of([[1.0] * 10], [3], memory=180 * MB, replicate=False)
    outcome = solve(problem)
    assert outcome.single is None
    assert outcome.best is not None
    assert len(outcome.best.stages) == 3


@pytest.mark.parametrize(
    ("stages", "counts", "reason"),
    [
        (13, [20], "the model can be cut into at most 12 stages"),
        (5, [4], "5 stages need 5 devices, there are 4"),
        (2, [1], "2 stages need 2 devices, there is 1"),
    ],
)
def test_numbers_of_stages_that_cannot_be(stages: int, counts: list[int], reason: str) -> None:
    outcome = solve(fleet_of([[1.0] * 12], counts, stages=stages))
    assert outcome == Outcome(None, reason=reason)


def test_no_devices() -> None:
    problem = fleet_of([[1.0]], [1], types=(), links=(), entries=(), exits=())
    assert solve(problem) == Outcome(None, reason="there is no device that could take part")


def test_what_is_missing_would_do() -> None:
    problem = fleet_of([[1.0] * 6], [2], memory=90 * MB)
    outcome = solve(problem)
    assert outcome.best is None
    assert "MB of free memory even cut into 2 stages" in outcome.reason
    (kind,) = problem.types

    def with_more(more: int) -> Outcome:
        return solve(
            replace(problem, types=(replace(kind, memory_bytes=kind.memory_bytes + more),))
        )

    assert with_more(math.ceil(outcome.missing_bytes / 2)).best is not None
    assert with_more(outcome.missing_bytes // 2 - MB).best is None


def test_one_device_that_is_too_small() -> None:
    outcome = solve(fleet_of([[1.0]], [1], memory=10 * MB))
    assert outcome.reason == "needs 65 MB of free memory on one device, 55 MB more than any has"
    assert outcome.missing_bytes / MB == pytest.approx(54.2, abs=0.1)


def different(count: int, length: int) -> Problem:
    """A fleet without two devices that are alike."""
    return fleet_of(
        [[1.0 + (v * 7 + n * 3) % 11 for n in range(length)] for v in range(count)],
        [1] * count,
        memory=300 * MB,
    )


def test_a_large_fleet_is_searched_and_tells_the_gap() -> None:
    problem = different(40, 30)
    best = solve(problem).best
    assert best is not None
    assert_sound(problem, best)
    assert best.method == "search"
    assert 0 < best.bound_ms < best.bottleneck_ms < 3 * best.bound_ms


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("stages", [4, 12])
def test_a_large_fleet_keeps_a_number_of_stages(objective: Objective, stages: int) -> None:
    problem = replace(different(40, 30), objective=objective, stages=stages)
    best = solve(problem).best
    assert best is not None
    assert_sound(problem, best)
    assert len(best.stages) == stages


def test_a_large_fleet_without_memory() -> None:
    problem = different(40, 30)
    small = tuple(replace(kind, memory_bytes=20 * MB) for kind in problem.types)
    outcome = solve(replace(problem, types=small))
    assert outcome.best is None
    assert outcome.missing_bytes > 0


def changed(problem: Problem, **changes: Any) -> Problem:
    (kind,) = problem.types
    return replace(problem, types=(replace(kind, **changes),))


ONE = fleet_of([[1.0, 2.0]], [2])
BAD: dict[str, Problem] = {
    "no segments": replace(ONE, segments=()),
    "size that cannot be": replace(ONE, segments=(segment(0, peak_bytes=1 << 60), segment(1))),
    "'node0' has a size": replace(ONE, segments=(segment(0, macs=math.nan), segment(1))),
    "segment 'node0'": replace(ONE, segments=(segment(0, weight_bytes=-1), segment(1))),
    "time for each segment": changed(ONE, times_ms=(1.0,)),
    "time that is negative or no number": changed(ONE, times_ms=(1.0, math.nan)),
    "in no time": changed(ONE, times_ms=(0.0, 0.0)),
    "negative memory": changed(ONE, memory_bytes=-1),
    "no device of type": changed(ONE, devices=()),
    "given twice": changed(ONE, devices=("a", "a")),
    "from every type": replace(ONE, links=()),
    "both ways": replace(ONE, exits=()),
    "between devices": replace(ONE, links=((Link(0.0),),)),
    "or from the gateway": replace(ONE, entries=(Link(math.nan),)),
    "latency that cannot be": replace(ONE, exits=(Link(1.0, -1.0),)),
    "size of a request": replace(ONE, input_bytes=-1),
    "in flight": replace(ONE, in_flight=0),
    "to 4096 requests": replace(ONE, in_flight=1 << 40),
    "at least one stage": replace(ONE, stages=0),
    "does not exist": replace(ONE, known_ms={(0, 3, 0): 1.0}),
    "not positive": replace(ONE, known_ms={(0, 1, 0): math.inf}),
    "measured size": replace(ONE, known_bytes={(0, 1, 0): -1}),
}


@pytest.mark.parametrize("sentence", BAD)
def test_what_makes_no_sense_is_refused(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        solve(BAD[sentence])


def test_links_may_cost_nothing() -> None:
    free = Link(math.inf)
    best = solve(replace(ONE, links=((free,),), entries=(free,), exits=(free,))).best
    assert best is not None
    assert best.bottleneck_ms == pytest.approx(1.5)


def test_a_plan_may_take_no_time_at_all() -> None:
    free = Link(math.inf)
    both = (free, free)
    problem = fleet_of(
        [[0.0, 1.0], [1.0, 0.0]], [1, 1], links=(both, both), entries=both, exits=both
    )
    for limit in (10_000, 0):
        best = solve(problem, limit=limit).best
        assert best is not None
        assert best.bottleneck_ms == 0
        assert best.rate == math.inf


def test_types_may_have_names_in_common() -> None:
    kind = DeviceType("board", ("a",), 500 * MB, (1.0, 1.0))
    problem = fleet_of(
        [[1.0] * 2] * 2, [1, 1], types=(kind, replace(kind, devices=("b",))), entries=(FAST,) * 2
    )
    best = solve(problem).best
    assert best is not None
    assert best.bottleneck_ms == pytest.approx(1.0)
