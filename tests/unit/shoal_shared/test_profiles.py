"""Fits of measured service times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_shared.profiles import KNEE_GAIN, fit, is_past_knee

TIMES = st.floats(0.001, 1e5)
SAMPLES = st.dictionaries(st.integers(1, 256), TIMES, min_size=1, max_size=8).map(
    lambda d: list(d.items())
)


@given(SAMPLES)
def test_invariants(samples: list[tuple[int, float]]) -> None:
    profile = fit(samples)
    assert profile.intercept_ms >= 0
    assert profile.slope_ms >= 0
    assert profile.samples == tuple(sorted(samples))
    assert profile.knee in dict(samples)
    times = [profile.milliseconds(b) for b in range(1, 300)]
    assert all(math.isfinite(t) and t > 0 for t in times)
    assert times == sorted(times)


@given(st.floats(0, 1e3), st.floats(0.001, 1e3), st.integers(2, 8))
def test_a_straight_line_is_found(intercept: float, slope: float, count: int) -> None:
    samples = [(2**i, intercept + slope * 2**i) for i in range(count)]
    profile = fit(samples)
    for batch, time in samples:
        assert profile.milliseconds(batch) == pytest.approx(time, rel=1e-6, abs=1e-6)


@given(SAMPLES)
def test_the_order_of_samples_does_not_matter(samples: list[tuple[int, float]]) -> None:
    assert fit(samples) == fit(samples[::-1])


@given(st.lists(TIMES, min_size=1, max_size=6))
def test_throughput_rises_up_to_the_knee_only(times: list[float]) -> None:
    samples = [(2**i, t) for i, t in enumerate(times)]
    knee = fit(samples).knee
    for i in range(1, len(samples)):
        past = is_past_knee(samples[: i + 1])
        if samples[i][0] <= knee:
            assert not past
        elif samples[i - 1][0] == knee:
            assert past


def test_one_sample_is_a_line_through_the_origin() -> None:
    for batch in (1, 4):
        profile = fit([(batch, 8.0)])
        assert (profile.intercept_ms, profile.slope_ms) == (0.0, 8.0 / batch)
        assert profile.knee == batch


def test_larger_batches_that_are_faster_have_no_slope() -> None:
    profile = fit([(1, 10.0), (2, 6.0)])
    assert (profile.intercept_ms, profile.slope_ms) == (8.0, 0.0)
    assert profile.knee == 2


def test_a_negative_intercept_is_none() -> None:
    profile = fit([(1, 1.0), (2, 4.0), (4, 16.0)])
    assert profile.intercept_ms == 0
    assert profile.slope_ms == pytest.approx((1 + 2 + 4) / 3)


def test_the_knee() -> None:
    barely = 2 / (1 + KNEE_GAIN)
    assert fit([(1, 1.0), (2, barely - 0.01)]).knee == 2
    assert fit([(1, 1.0), (2, barely + 0.01)]).knee == 1
    # What comes after the first step that does not pay is not looked at.
    assert fit([(1, 1.0), (2, 2.0), (4, 2.0)]).knee == 1
    assert not is_past_knee([(1, 1.0)])


def test_an_unknown_time_is_zero() -> None:
    profile = fit([(1, 0.0)])
    assert (profile.milliseconds(1), profile.milliseconds(64), profile.knee) == (0.0, 0.0, 1)


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [(0, 1.0)],
        [(-1, 1.0)],
        [(1, -0.1)],
        [(1, math.nan)],
        [(1, math.inf)],
        [(1, 1.0), (2, -1)],
    ],
)
def test_samples_that_cannot_be(samples: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="needs samples of positive batch size and time"):
        fit(samples)
