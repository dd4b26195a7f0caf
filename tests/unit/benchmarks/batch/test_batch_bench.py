from __future__ import annotations

import math

import pytest
from shoal_bench.batch import bench
from shoal_bench.batch.scenario import (
    Scenario,
    draw,
    equal_shares,
    ideal_ms,
    profile,
    proportional_shares,
)
from shoal_bench.batch.simulation import run_shoal, run_static


def two(items: int, slow_from_ms: float = math.inf) -> Scenario:
    """Two devices of which one is three times faster, and the fast one may turn slow."""
    profiles = {"fast": profile(0.0, 1.0), "slow": profile(0.0, 3.0)}
    return Scenario(items, profiles, "fast", slow_from_ms, seed=1)


def test_the_ideal_is_that_of_a_liquid() -> None:
    assert ideal_ms(two(400)) == pytest.approx(300)
    # 200 items in 150 ms, then 1/5 + 1/3 items a ms.
    assert ideal_ms(two(400, 150.0)) == pytest.approx(150 + 200 / (1 / 5 + 1 / 3))


def test_a_piece_that_is_under_way_when_its_device_turns_slow() -> None:
    scenario = two(400, 100.0)
    assert scenario.work_ms("fast", 20, 50.0, 1.0) == pytest.approx(20)
    assert scenario.work_ms("fast", 20, 90.0, 1.0) == pytest.approx(10 + 5 * 10)
    assert scenario.work_ms("fast", 20, 200.0, 1.0) == pytest.approx(100)
    assert scenario.work_ms("slow", 20, 200.0, 1.0) == pytest.approx(60)


def test_static_shares_hold_all_items() -> None:
    assert equal_shares(two(401)) == {"fast": 200, "slow": 201}
    assert proportional_shares(two(400)) == {"fast": 300, "slow": 100}
    assert sum(bench.water_filled_shares(two(400)).values()) == 400


def test_jitter_is_the_same_for_every_policy() -> None:
    scenario = two(400)
    assert scenario.jitter("fast", 3) == scenario.jitter("fast", 3)
    assert scenario.jitter("fast", 3) != scenario.jitter("fast", 4)


@pytest.mark.parametrize("slow", [False, True])
def test_shoal_ends_soon_after_the_ideal_and_before_equal_shares(slow: bool) -> None:
    scenario = draw(7, 1000, slow=slow)
    end = run_shoal(scenario)
    assert ideal_ms(scenario) < end < 1.25 * ideal_ms(scenario)
    assert end < run_static(scenario, equal_shares(scenario))
    assert run_shoal(scenario) == end


def test_the_whole_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CASES", (bench.CASES[1],))
    said: list[str] = []
    result = bench.run(quick=True, say=said.append)
    assert len(said) == 1
    ideal, other = result.figures
    assert ideal.peer == bench.IDEAL and ideal.met is True
    assert other.ratio is not None and other.ratio < 0.6
    assert [row[0] for row in result.tables[0].rows] == [*bench.WAYS, bench.IDEAL]
