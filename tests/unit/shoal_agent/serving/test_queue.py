from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.serving.queue import (
    PATIENCE_S,
    Decision,
    Entry,
    Limits,
    decide,
    enqueue,
    expired_of,
)
from shoal_shared.profiles import Profile

NEVER = math.inf


def _limits(knee: int = 8, max_batch: int = 64, a: float = 10.0, c: float = 1.0) -> Limits:
    """t(b) = a + c*b ms, profiled at 1, 2, 4 … 32."""
    samples = tuple((1 << i, a + c * (1 << i)) for i in range(6))
    profile = Profile(samples=samples, intercept_ms=a, slope_ms=c, knee=knee)
    return Limits.of(profile, max_batch)


def _queue(*entries: Entry) -> list[Entry]:
    waiting: list[Entry] = []
    for entry in entries:
        enqueue(waiting, entry)
    return waiting


def _entry(number: int, items: int = 1, kind: object = "k", deadline: float = NEVER) -> Entry:
    return Entry(number, items, kind, 0.0, deadline)


def _numbers(decision: Decision[Entry]) -> list[int]:
    return [entry.number for entry in decision.launch]


def test_sizes_end_at_the_knee_and_at_the_limit() -> None:
    assert _limits(knee=8).sizes == (1, 2, 4, 8)
    assert _limits(knee=8, max_batch=4).sizes == (1, 2, 4)
    assert _limits(max_batch=1).sizes == (1,)


def test_an_idle_accelerator_gets_what_is_there() -> None:
    assert _numbers(decide(_queue(_entry(0)), _limits(), 0.0, None)) == [0]
    both = _queue(_entry(0), _entry(1))
    assert _numbers(decide(both, _limits(), 0.0, None)) == [0, 1]


def test_only_profiled_sizes_are_launched() -> None:
    waiting = _queue(*map(_entry, range(7)))
    assert len(decide(waiting, _limits(), 0.0, None).launch) == 4
    waiting = _queue(_entry(0, items=3), _entry(1))
    assert _numbers(decide(waiting, _limits(), 0.0, None)) == [0, 1]
    # Alone, a request of another size runs as it is.
    assert _numbers(decide(_queue(_entry(0, items=3)), _limits(), 0.0, None)) == [0]
    assert _numbers(decide(_queue(_entry(0, items=50)), _limits(), 0.0, None)) == [0]


def test_only_equal_kinds_share_a_batch() -> None:
    waiting = _queue(_entry(0), _entry(1, kind="other"), _entry(2))
    assert _numbers(decide(waiting, _limits(), 0.0, None)) == [0, 2]
    waiting = _queue(_entry(0, kind=None), _entry(1, kind=None))
    assert _numbers(decide(waiting, _limits(), 0.0, None)) == [0]


def test_a_busy_accelerator_lets_the_batch_grow_up_to_the_knee() -> None:
    waiting = _queue(*map(_entry, range(7)))
    assert decide(waiting, _limits(), 0.0, 1.0) == Decision([], [], NEVER)
    enqueue(waiting, _entry(7))
    assert len(decide(waiting, _limits(), 0.0, 1.0).launch) == 8


def test_growth_ends_where_the_next_item_would_be_late() -> None:
    # t(2) is 12 ms: a batch of one that is due at 100 ms can wait for a second until 88 ms.
    waiting = _queue(_entry(0, deadline=0.100))
    assert math.isclose(decide(waiting, _limits(), 0.0, 0.0).wait_until, 0.088)
    assert _numbers(decide(waiting, _limits(), 0.089, 0.0)) == [0]
    assert _numbers(decide(waiting, _limits(), 0.0, 0.089)) == [0]


def test_none_joins_that_would_make_another_late() -> None:
    # t(1) is 11 ms, t(2) 12 ms.
    waiting = _queue(_entry(0, deadline=0.0115), _entry(1))
    assert _numbers(decide(waiting, _limits(), 0.0, None)) == [0]
    # What is late anyway does not hold the others up.
    waiting = _queue(_entry(0, deadline=0.005), _entry(1))
    assert _numbers(decide(waiting, _limits(), 0.0, None)) == [0, 1]


def test_expired_requests_are_dropped() -> None:
    waiting = _queue(_entry(0, deadline=1.0), _entry(1), _entry(2, deadline=0.5))
    decision = decide(waiting, _limits(), 1.0, None)
    assert [entry.number for entry in decision.expired] == [2, 0]
    assert _numbers(decision) == [1]


def test_earliest_deadline_first_and_nobody_starves() -> None:
    first = Entry(0, 1, None, 0.0, NEVER)
    urgent = Entry(1, 1, None, 0.1, 0.5)
    late = Entry(2, 1, None, 1.0, 1.0 + PATIENCE_S / 2)
    assert [e.number for e in _queue(late, first, urgent)] == [1, 0, 2]


entries = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.sampled_from(["a", "b", None]),
        st.floats(0, 2),
        st.one_of(st.just(NEVER), st.floats(0, 3)),
    ),
    max_size=30,
)
limits = st.builds(
    _limits,
    knee=st.sampled_from([1, 2, 4, 8, 16, 32]),
    max_batch=st.integers(1, 40),
    a=st.floats(0, 500),
    c=st.floats(0, 100),
)


@given(entries, limits, st.floats(0, 3), st.one_of(st.none(), st.floats(0, 4)))
def test_invariants_of_one_decision(given_entries, limits_, now, free_at) -> None:
    waiting = _queue(*(Entry(i, *fields) for i, fields in enumerate(given_entries)))
    before = list(waiting)
    decision = decide(waiting, limits_, now, free_at)

    assert waiting == before
    assert waiting == sorted(waiting, key=lambda e: e.rank)
    taken = decision.expired + decision.launch
    assert len(set(map(id, taken))) == len(taken)
    assert all(entry in waiting for entry in taken)
    assert decision.expired == [e for e in waiting if e.deadline <= now]
    assert decision.expired == expired_of(waiting, now)
    assert not any(entry.deadline <= now for entry in decision.launch)
    live = [e for e in waiting if e not in decision.expired]
    if live and free_at is None:
        assert decision.launch
    if decision.launch:
        batch = decision.launch
        assert batch[0] is live[0]
        assert [e.rank for e in batch] == sorted(e.rank for e in batch)
        if len(batch) > 1:
            items = sum(e.items for e in batch)
            assert items in limits_.sizes
            assert {e.kind for e in batch} == {batch[0].kind}
            assert batch[0].kind is not None
        # First come, first served among equals: none of a kind is passed over for a later one.
        alike = [e for e in live if e.kind == batch[0].kind]
        assert alike[: len(batch)] == batch
    elif live:
        assert decision.wait_until > now


@given(entries, limits, st.lists(st.floats(0.001, 0.5), min_size=1, max_size=50))
def test_every_request_is_launched_or_dropped_once(given_entries, limits_, steps) -> None:
    waiting: list[Entry] = []
    todo = [Entry(i, *fields) for i, fields in enumerate(given_entries)]
    todo.sort(key=lambda e: e.arrived)
    everything = list(todo)
    seen: list[int] = []
    now = 0.0
    for i in range(10_000):
        while todo and todo[0].arrived <= now:
            enqueue(waiting, todo.pop(0))
        free_at = None if i % 2 else now + 0.01
        decision = decide(waiting, limits_, now, free_at)
        for entry in decision.expired + decision.launch:
            waiting.remove(entry)
            seen.append(entry.number)
        if not waiting and not todo:
            break
        now += steps[i % len(steps)]
    assert sorted(seen) == sorted(entry.number for entry in everything)
