"""RFC 8289's control law on times of answers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.gateway.codel import INTERVAL_S, STALE_S, Codel


def late_for(codel: Codel, seconds: float, start: float = 0.0) -> float:
    """Only late answers, every 10 ms; the time after the last one."""
    now, end = start, start + seconds
    while now < end:
        codel.answered(1.5, now)
        now += 0.01
    return now


def test_nothing_is_dropped_before_a_whole_interval_was_late() -> None:
    codel = Codel(4)
    now = late_for(codel, INTERVAL_S * 0.9)
    assert not codel.drops(1, now)
    late_for(codel, INTERVAL_S, now)
    assert codel.dropping


def test_one_answer_in_time_ends_it() -> None:
    codel = Codel(4)
    now = late_for(codel, 0.3)
    codel.answered(0.9, now)
    assert not codel.dropping
    assert not codel.drops(3, now)


def test_drops_come_faster_and_faster() -> None:
    codel, drops, now = Codel(4), [], 0.0
    for _ in range(2000):
        now += 0.001
        codel.answered(2.0, now)
        if codel.drops(1, now):
            drops.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(drops)]
    assert len(drops) > 20
    assert gaps[0] > 2 * gaps[-1]
    assert abs(gaps[0] - INTERVAL_S) < 0.002


def test_the_lowest_rank_that_comes_is_dropped_first() -> None:
    codel = Codel(4)
    now = late_for(codel, 0.3)
    codel.drops(2, now)
    for number in range(50):
        now += 0.001
        codel.answered(2.0, now)
        assert not codel.drops(0, now), number
    # Once nobody of lower rank has come for an interval, it is the others' turn.
    for _ in range(int(INTERVAL_S / 0.001) + 2):
        now += 0.001
        codel.answered(2.0, now)
    assert codel.drops(0, now)


def test_what_was_long_ago_counts_no_more() -> None:
    codel = Codel(4)
    now = late_for(codel, 0.3)
    assert not codel.drops(3, now + STALE_S + 0.1)
    codel.answered(2.0, now + STALE_S + 0.2)
    assert not codel.dropping


@given(st.lists(st.tuples(st.floats(0, 0.05), st.floats(0, 1), st.integers(0, 3)), max_size=200))
def test_nothing_is_dropped_while_answers_are_in_time(
    steps: list[tuple[float, float, int]],
) -> None:
    codel, now = Codel(4), 0.0
    for pause, ratio, rank in steps:
        now += pause
        codel.answered(ratio, now)
        assert not codel.drops(rank, now)
