from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from shoal_bench.plan import baselines, bench
from shoal_bench.plan.baselines import Stages
from shoal_bench.plan.cases import brute_force, draw

from shoal_controlplane.planner.partition.problem import DeviceType, Link, Problem, Segment
from shoal_controlplane.planner.partition.solve import evaluate, solve

RULES = [
    baselines.equal_split,
    baselines.ram_proportional,
    baselines.flops_proportional,
    baselines.pipeedge,
]


def test_the_same_seed_is_the_same_case() -> None:
    assert draw(3, 10, 5, 2) == draw(3, 10, 5, 2) != draw(4, 10, 5, 2)
    fleet = [len(kind.devices) for kind in draw(3, 10, 5, 2).types]
    assert fleet == [3, 2]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(8))
def test_no_rule_beats_the_planner(rule: Callable[[Problem], Stages | None], seed: int) -> None:
    problem = draw(seed, 12, 4)
    stages = rule(problem)
    best = solve(problem).best
    if stages is not None:
        assert best is not None
        plan = evaluate(problem, stages)
        assert all(problem.fits(s.first, s.last, s.kind) for s in plan.stages)
        assert plan.bottleneck_ms >= best.bound_ms * (1 - 1e-9)


def test_shares_are_the_largest_remainders() -> None:
    assert baselines._largest_remainder(10, [5.0, 3.0, 2.0]) == [5, 3, 2]
    assert baselines._largest_remainder(4, [100.0, 1.0, 1.0]) == [2, 1, 1]
    assert baselines._largest_remainder(2, [1.0, 1.0, 1.0]) == [1, 1, 0]


def test_brute_force_finds_the_balance() -> None:
    work = [1.0, 2.0, 3.0]
    link = Link(1e12)
    kind = DeviceType("board", ("a", "b"), 10**9, tuple(work))
    segments = tuple(Segment(f"n{n}", 0, 0, 0, 1.0, 0) for n in range(3))
    problem = Problem(segments, (kind,), ((link,),), (link,), (link,), 0, replicate=False)
    assert brute_force(problem) == 3.0
    small = replace(problem, types=(replace(kind, memory_bytes=1),))
    assert brute_force(small) is None


def test_a_short_run_has_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LARGE", (12, 6, 2))
    monkeypatch.setattr(bench, "LENGTH", 8)
    monkeypatch.setattr(bench, "DEVICES", 3)
    result = bench.run(quick=True, say=lambda _: None)
    names = [figure.name for figure in result.figures]
    assert names[0].endswith("small plans")
    assert len(names) == 4 + len(RULES)
    over = result.figures[-1]
    assert (over.value, over.met) == (0, True)
    assert result.figures[0].met
    assert len(result.tables[0].rows) == len(RULES)
