from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.offload.budget import BURST_S, Budget

amounts = st.lists(
    st.tuples(
        st.floats(0, 900, allow_nan=False),
        st.floats(0, 3, allow_nan=False),
    ),
    max_size=60,
)


@given(st.floats(0.01, 20), amounts)
def test_whoever_asks_first_never_overdraws(cap: float, wishes: list[tuple[float, float]]) -> None:
    budget, now = Budget(cap, 0.0), 0.0
    spent: list[tuple[float, float]] = []
    for pause, amount in wishes:
        now += pause
        if budget.affords(amount, now):
            budget.charge(amount, now)
            spent.append((now, amount))
        assert budget.left(now) >= -1e-6
    for start, _ in spent:
        hour = sum(amount for at, amount in spent if start <= at <= start + 3600)
        assert hour <= cap * (1 + BURST_S / 3600) + 1e-6


@given(st.floats(0.01, 20), amounts)
def test_an_overdraft_is_the_charge_under_way_and_heals(
    cap: float, wishes: list[tuple[float, float]]
) -> None:
    budget, now = Budget(cap, 0.0), 0.0
    for pause, amount in wishes:
        now += pause
        if budget.left(now) > 0:
            before = budget.left(now)
            budget.charge(amount, now)
            assert budget.left(now) == pytest.approx(before - amount)
            assert budget.left(now) >= -amount
    owed = max(0.0, -budget.left(now))
    assert budget.left(now + owed / cap * 3600 + 1) >= 0


@given(st.floats(0.1, 10), st.floats(0, 10), st.floats(0, 5000))
def test_it_tells_when_it_can_pay(cap: float, spent: float, amount: float) -> None:
    budget = Budget(cap, 5.0)
    budget.charge(spent, 5.0)
    wait = budget.wait_s(amount, 5.0)
    if math.isinf(wait):
        assert not budget.affords(amount, 1e9)
        return
    if wait > 1:
        assert not budget.affords(amount, 5.0 + wait - 0.5)
    assert budget.affords(amount, 5.0 + wait + 1e-3)


def test_without_a_cap_all_is_affordable_and_counted() -> None:
    budget = Budget(None, 0.0)
    budget.charge(1e6, 1.0)
    assert budget.affords(1e9, 1.0)
    assert budget.wait_s(1e9, 1.0) == 0
    assert math.isinf(budget.left(1.0))
    assert budget.runs(5.0, 60, 1.0) > 1000
    assert budget.last_hour(1.0) == budget.spent == 1e6


def test_a_cap_of_nothing_pays_only_what_is_free() -> None:
    budget = Budget(0.0, 0.0)
    assert budget.affords(0.0, 0.0)
    assert not budget.affords(1e-9, 1e6)
    assert math.isinf(budget.wait_s(1e-9, 0.0))
    assert budget.runs(1.0, 60, 0.0) == 0
    assert budget.runs(0.0, 60, 0.0) > 0


def test_the_last_hour_is_forgotten_after_it() -> None:
    budget = Budget(10.0, 0.0)
    budget.charge(1.0, 100.0)
    budget.charge(0.5, 130.0)
    budget.charge(0.25, 2000.0)
    assert budget.last_hour(2000.0) == pytest.approx(1.75)
    assert budget.last_hour(100.0 + 3700) == pytest.approx(0.25)
    assert budget.last_hour(1e6) == 0
    assert budget.spent == pytest.approx(1.75)


def test_a_replica_that_costs_the_cap_runs_for_ever() -> None:
    budget, now = Budget(3.0, 0.0), 0.0
    for _ in range(24 * 60):
        assert budget.runs(3.0, 60, now) >= 1
        now += 60
        budget.charge(3.0 / 60, now)
    # With nothing in the bucket still one, but no second one.
    budget.charge(budget.left(now), now)
    assert budget.runs(3.0, 60, now) == 1


def test_another_cap_counts_at_once_and_forgives_nothing() -> None:
    budget = Budget(6.0, 0.0)
    budget.charge(1.5, 0.0)
    budget.limit(60.0, 0.0)
    assert budget.left(0.0) < 0
    budget.limit(None, 0.0)
    assert budget.affords(100.0, 0.0)
    budget.limit(6.0, 0.0)
    assert budget.left(0.0) == pytest.approx(1.0)
    budget.limit(0.6, 0.0)
    assert budget.left(0.0) == pytest.approx(0.1)


def test_a_clock_that_stands_still_or_goes_back_refills_nothing() -> None:
    budget = Budget(6.0, 100.0)
    budget.charge(1.0, 100.0)
    assert budget.left(50.0) == budget.left(100.0) == pytest.approx(0.0)
