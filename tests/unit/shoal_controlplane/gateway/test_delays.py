"""How much longer than expected requests take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.gateway.delays import BINS_PER_OCTAVE, MIN_SAMPLES, PRIOR, Tail

BIN = 2 ** (1 / BINS_PER_OCTAVE)


def tail_of(ratios: object) -> Tail:
    tail = Tail()
    for ratio in np.asarray(ratios, float):
        tail.add(float(ratio))
    return tail


def test_a_prior_holds_until_there_are_enough_samples() -> None:
    tail = tail_of([50.0] * (MIN_SAMPLES - 1))
    assert (tail.known, tail.p95) == (False, PRIOR)
    tail.add(50.0)
    assert tail.known
    assert 50.0 <= tail.p95 < 50.0 * BIN


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["lognormal", "exponential", "uniform", "two speeds"]),
    st.floats(1.0, 8.0),
)
def test_it_is_near_the_percentile_of_what_came_last(seed: int, kind: str, scale: float) -> None:
    rng = np.random.default_rng(seed)
    ratios = (
        scale
        * {
            "lognormal": lambda: rng.lognormal(0, 0.5, 2000),
            "exponential": lambda: rng.exponential(1, 2000),
            "uniform": lambda: rng.random(2000),
            "two speeds": lambda: np.where(rng.random(2000) < 0.2, 3.0, 1.0),
        }[kind]()
    )
    # It remembers some 250 samples, so it knows the percentile only as well as those do.
    low, high = np.maximum(1.0, np.percentile(ratios, [88, 99]))
    assert low / BIN <= tail_of(ratios).p95 <= high * BIN


@given(st.lists(st.floats(0, 1e300), min_size=MIN_SAMPLES, max_size=100))
def test_no_stream_makes_it_less_than_1_or_without_bound(ratios: list[float]) -> None:
    assert 1.0 <= tail_of(ratios).p95 <= 256.0


def test_it_follows_what_changes() -> None:
    tail = tail_of([1.0] * 10_000)
    assert tail.p95 == 1.0
    for _ in range(100):
        tail.add(10.0)
    assert tail.p95 >= 10.0
    for _ in range(2_000):
        tail.add(1.0)
    assert tail.p95 == 1.0


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_what_is_faster_than_expected_counts_as_expected(ratio: float) -> None:
    assert tail_of([ratio] * MIN_SAMPLES).p95 == 1.0
