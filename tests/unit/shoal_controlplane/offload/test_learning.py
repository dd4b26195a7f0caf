from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.offload.learning import Capacity, Learner, Prior, request_price
from shoal_controlplane.offload.target import Price


def taught(
    law: object, samples: int = 300, seed: int = 1, noise: float = 0.0, ahead: float = 4.0
) -> tuple[Learner, float]:
    rng, learner, now = random.Random(seed), Learner(), 0.0
    for _ in range(samples):
        now += 0.01
        items, before = rng.choice([1, 2, 4, 8]), rng.uniform(0, ahead)
        payload = items * 150_000
        took = law(items, payload, before) * (1 + noise * abs(rng.gauss(0, 1)))  # type: ignore[operator]
        learner.observe(items, payload, before, took, now)
    return learner, now


def test_an_unknown_target_is_expected_by_the_prior() -> None:
    learner = Learner(Prior(fixed_ms=20, item_ms=3, megabyte_ms=10, spread=2))
    expected = learner.expect(4, 500_000, 0, 0.0)
    assert expected.mean_ms == pytest.approx(20 + 12 + 5)
    assert expected.p95_ms == pytest.approx(2 * expected.mean_ms)
    assert learner.samples == 0
    # 23 ms alone, 46 ms with 23 / 5 others before it.
    assert learner.capacity().concurrent == pytest.approx(5.6)
    assert learner.capacity().items_per_s == pytest.approx(5.6 / 0.046)


def test_a_linear_law_is_found() -> None:
    learner, now = taught(lambda items, payload, ahead: 40 + 6 * items + 12 * ahead)
    for items in (1, 3, 8):
        for ahead in (0, 2):
            expected = learner.expect(items, items * 150_000, ahead, now)
            assert expected.mean_ms == pytest.approx(40 + 6 * items + 12 * ahead, rel=0.1)
            assert expected.p95_ms < 1.3 * expected.mean_ms
    # One alone takes 46 ms, and 92 ms with 46 / 12 before it.
    assert learner.capacity().concurrent == pytest.approx(1 + 46 / 12, rel=0.15)
    assert learner.capacity().items_per_s == pytest.approx((1 + 46 / 12) / 0.092, rel=0.15)
    assert learner.capacity(70).concurrent == pytest.approx(1 + 24 / 12, rel=0.2)
    assert learner.capacity(70).items_per_s == pytest.approx(3 / 0.07, rel=0.2)
    # What one alone does not reach, more at once do not either.
    assert learner.capacity(10).concurrent == 1
    assert learner.capacity(10).items_per_s == pytest.approx(1 / 0.046, rel=0.1)


def test_the_capacity_of_a_replica_that_does_one_after_the_other() -> None:
    learner, _ = taught(lambda items, payload, ahead: 10 * (items + ahead))
    assert learner.capacity().items_per_s == pytest.approx(100, rel=0.1)


def test_bytes_count_where_requests_of_a_size_differ() -> None:
    rng, learner, now = random.Random(3), Learner(), 0.0
    for _ in range(400):
        now += 0.01
        payload = rng.choice([20_000, 400_000, 3_000_000])
        learner.observe(1, payload, 0.0, 30 + payload * 20e-6, now)
    assert learner.expect(1, 3_000_000, 0, now).mean_ms == pytest.approx(90, rel=0.1)
    assert learner.expect(1, 20_000, 0, now).mean_ms == pytest.approx(30.4, rel=0.1)


def test_the_spread_is_that_of_the_replies() -> None:
    learner, now = taught(lambda items, payload, ahead: 50.0, noise=0.5, ahead=0.0)
    expected = learner.expect(2, 300_000, 0, now)
    # 50 (1 + 0.5 |z|): the mean is 70, the quantile of 95 % 99.
    assert expected.mean_ms == pytest.approx(70, rel=0.15)
    assert expected.p95_ms == pytest.approx(99, rel=0.25)


def test_a_target_that_turns_slow_is_noticed_within_four_replies() -> None:
    learner, now = taught(lambda items, payload, ahead: 50.0, ahead=0.0)
    assert learner.expect(1, 150_000, 0, now).p95_ms < 60
    for _ in range(4):
        now += 0.01
        learner.observe(1, 150_000, 0, 500.0, now)
    assert learner.expect(1, 150_000, 0, now).p95_ms > 400


def test_a_few_even_replies_make_a_narrow_spread() -> None:
    learner = Learner()
    for number in range(9):
        learner.observe(1, 600_000, 0.0, 80.0 + number % 2, number * 0.1)
    expected = learner.expect(1, 600_000, 0.0, 1.0)
    assert expected.mean_ms == pytest.approx(80.5, rel=0.1)
    assert expected.p95_ms < 100
    # Long ago, it is still no wider.
    assert learner.expect(1, 600_000, 0.0, 500.0).p95_ms < 100


def test_a_few_uneven_replies_make_a_wide_one() -> None:
    learner = Learner()
    for number in range(9):
        learner.observe(1, 600_000, 0.0, 160.0 if number % 3 == 0 else 40.0, number * 0.1)
    assert learner.expect(1, 600_000, 0.0, 1.0).p95_ms > 150


def test_a_cold_start_moves_the_line_little() -> None:
    learner, now = taught(lambda items, payload, ahead: 50.0, ahead=0.0)
    learner.observe(1, 150_000, 0, 60_000.0, now)
    assert learner.expect(1, 150_000, 0, now).mean_ms < 60


def test_a_spread_that_is_long_ago_is_forgotten() -> None:
    learner, now = taught(lambda items, payload, ahead: 50.0, ahead=0.0)
    for _ in range(10):
        learner.observe(1, 150_000, 0, 500.0, now)
    late = learner.expect(1, 150_000, 0, now + 61)
    assert late.p95_ms == pytest.approx(1.5 * late.mean_ms)


def test_a_replica_that_works_on_many_at_once_bears_more_than_one_alone_tells() -> None:
    learner, _ = taught(lambda items, payload, ahead: 60.0, ahead=8.0)
    # Sixteen at once did not matter; but not everything is believed.
    assert 16 / 0.12 < learner.capacity().items_per_s < 2000


@given(
    st.lists(
        st.tuples(
            st.integers(1, 64),
            st.integers(0, 10**8),
            st.floats(0, 500),
            st.floats(0, 1e6),
            st.floats(0, 100),
        ),
        max_size=80,
    )
)
def test_whatever_is_seen_expectations_stay_sane(
    seen: list[tuple[int, int, float, float, float]],
) -> None:
    learner, now = Learner(), 0.0
    for items, payload, ahead, took, pause in seen:
        now += pause
        learner.observe(items, payload, ahead, took, now)
    one = learner.expect(1, 1000, 0, now)
    more = learner.expect(9, 10_000_000, 40, now)
    assert 0 < one.mean_ms <= more.mean_ms < math.inf
    assert one.mean_ms <= one.p95_ms < math.inf
    capacity = learner.capacity()
    assert 0 < capacity.items_per_s <= 10_000
    assert 1 <= capacity.concurrent < math.inf


@pytest.mark.parametrize("took", [math.nan, math.inf, -1.0])
def test_a_time_that_cannot_be_teaches_nothing(took: float) -> None:
    learner = Learner()
    learner.observe(1, 0, 0, took, 0.0)
    assert learner.samples == 0


def test_a_request_costs_itself_and_its_part_of_a_replica() -> None:
    price = Price(per_replica_hour=3.6, per_request=0.002)
    assert request_price(price, 5, Capacity(2.0, 50.0)) == pytest.approx(0.002 + 0.001 * 0.1)
    assert request_price(Price(), 5, Capacity(2.0, 50.0)) == 0
