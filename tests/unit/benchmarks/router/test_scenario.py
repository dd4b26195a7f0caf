from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_bench.router.scenario import (
    FLEET_MS,
    SLOW_FACTOR,
    Scenario,
    draw,
    effective_load,
    pooled_sojourn,
)


def test_the_same_seed_gives_the_same_draw() -> None:
    assert draw(0.7, 3, 500) == draw(0.7, 3, 500)
    assert draw(0.7, 3, 500) != draw(0.7, 4, 500)


def test_load_and_gateways_leave_service_times_and_slow_phases_alone() -> None:
    one, other = draw(0.5, 1, 500), draw(0.5, 1, 500, gateways=3)
    assert (one.arrivals, one.jitter, one.slow) == (other.arrivals, other.jitter, other.slow)
    assert set(other.gateways) == {0, 1, 2}
    assert draw(0.85, 1, 500).jitter == one.jitter


def test_load_is_relative_to_the_nominal_capacity() -> None:
    scenario = draw(0.7, 1, 20_000)
    per_ms = len(scenario.arrivals) / scenario.arrivals[-1]
    assert per_ms == pytest.approx(0.7 * sum(1 / ms for ms in FLEET_MS), rel=0.03)
    assert statistics.fmean(scenario.jitter) == pytest.approx(1, rel=0.01)


def test_the_fleet_spreads_forty_times() -> None:
    assert len(FLEET_MS) == 14
    assert max(FLEET_MS) / min(FLEET_MS) > 40


def test_effective_load_counts_the_slow_phases() -> None:
    # A fifth of the time a third of the capacity: 0.8 + 0.2 / 3.
    assert effective_load(0.7) == pytest.approx(0.7 / (0.8 + 0.2 / SLOW_FACTOR))


def test_slow_phases_begin_anew_after_the_last() -> None:
    scenario = Scenario((1.0,), (0.0,), (1.0,), (0,), ((1.0,), (3.0,)))
    times = (0, 149, 151, 299, 301, 451)
    assert [scenario.slowdown(0, at) for at in times] == [1, 1, 3, 3, 1, 3]


def test_pooled_server_crosses_phases() -> None:
    # Rate 1 until 150 ms, then a third: of 2 units of work at 149, one is left at 150.
    scenario = Scenario((1.0,), (0.0,) * 9 + (149.0,), (0.1,) * 9 + (2.0,), (0,) * 10, ((1,), (3,)))
    assert pooled_sojourn(scenario, 0.25)[-1] == pytest.approx(1 + 3 + 0.5)


@given(st.integers(0, 50), st.sampled_from([0.3, 0.7, 0.9]))
def test_pooled_sojourn_is_at_least_the_service_and_the_network(seed: int, load: float) -> None:
    scenario = draw(load, seed, 200)
    fastest = min(scenario.jitter) / sum(1 / ms for ms in FLEET_MS)
    assert min(pooled_sojourn(scenario, 0.25)) >= fastest + 0.5 - 1e-9
