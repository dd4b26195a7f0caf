from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.connectivity.backoff import Backoff, pause_top


@given(st.integers(), st.integers(1, 2000), st.floats(0, 1))
def test_pauses_stay_within_a_growing_top(seed: int, count: int, floor: float) -> None:
    backoff = Backoff(random.Random(seed), base_s=0.5, cap_s=30.0, floor=floor)
    for attempt in range(count):
        top = min(30.0, 0.5 * 2 ** min(attempt, 20))
        pause = backoff.next()
        assert floor * top <= pause <= top
        assert pause_top(attempt, base_s=0.5, cap_s=30.0) == top


def test_it_begins_anew_after_a_success() -> None:
    backoff = Backoff(random.Random(1), base_s=1.0, cap_s=64.0, floor=1.0)
    assert [backoff.next() for _ in range(3)] == [1.0, 2.0, 4.0]
    backoff.reset()
    assert backoff.next() == 1.0


def test_the_same_seed_gives_the_same_pauses() -> None:
    one, other = (Backoff(random.Random(7), base_s=1, cap_s=9) for _ in range(2))
    assert [one.next() for _ in range(5)] == [other.next() for _ in range(5)]


def test_senseless_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="base"):
        Backoff(random.Random(), base_s=2.0, cap_s=1.0)
