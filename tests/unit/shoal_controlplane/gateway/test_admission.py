"""Where requests go, decided without a loop."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway import PROFILE, replica

from shoal_controlplane.gateway.admission import (
    HEADROOM,
    MAX_MODELS,
    TRIAL_S,
    Admission,
    Ask,
    Decision,
    Options,
    Priority,
    Way,
    priority_of,
)
from shoal_controlplane.gateway.clouds import CloudOption
from shoal_controlplane.gateway.router import Router, Ticket


def ticket(p95_ms: float, delay_ms: float | None = None) -> Ticket:
    """A busy place."""
    delay_ms = p95_ms if delay_ms is None else delay_ms
    return Ticket("d1", "cat:1", 1, delay_ms, 0.0, p95_ms=p95_ms)


def offered(*finish_ms: float) -> Options:
    return lambda: [CloudOption(f"t{i}", ms, 0.01) for i, ms in enumerate(finish_ms)]


def seasoned(**more: Any) -> Admission:
    """One that has just admitted something to the devices, so that nothing is a trial."""
    admission = Admission(**more)
    admission.decide(Ask("cat:1", 1, 1e6), ticket(1.0), offered(), 0.0)
    return admission


def decide(
    p95_ms: float | None,
    left_ms: float = 100.0,
    options: Options | None = None,
    priority: Priority = Priority.INTERACTIVE,
    **more: Any,
) -> Decision:
    place = None if p95_ms is None else ticket(p95_ms)
    ask = Ask("cat:1", 1, left_ms, priority)
    return seasoned(**more).decide(ask, place, options or offered(), 0.0)


def test_devices_that_are_in_time_are_taken() -> None:
    assert decide(100.0, options=offered(1.0)).way is Way.EDGE


def test_else_the_first_cloud_that_is_in_time() -> None:
    decision = decide(101.0, options=offered(120.0, 90.0, 95.0))
    assert decision.way is Way.CLOUD
    assert decision.option is not None
    assert decision.option.target == "t1"
    assert decision.full


def test_else_it_is_shed_with_a_reason() -> None:
    decision = decide(350.0, options=offered(120.0))
    assert decision.way is Way.SHED
    assert decision.retry_after_s == pytest.approx(0.25)
    assert "350 ms" in decision.reason
    assert "target t0 would take 120 ms" in decision.reason
    assert "no target takes more" in decide(350.0).reason


def test_without_a_place_a_cloud_or_what_the_dispatcher_says() -> None:
    assert decide(None, options=offered(50.0)).way is Way.CLOUD
    decision = decide(None, options=offered(150.0))
    assert (decision.way, decision.full) == (Way.EDGE, True)


def test_clouds_are_not_asked_where_devices_are_in_time() -> None:
    def never() -> list[CloudOption]:
        raise AssertionError("asked")

    assert decide(50.0, options=never).way is Way.EDGE


def test_speed_is_bought_at_its_price() -> None:
    fast = offered(20.0)
    assert decide(50.0, options=fast, ms_per_price=2000.0).way is Way.CLOUD
    assert decide(39.0, options=fast, ms_per_price=2000.0).way is Way.EDGE
    assert not decide(50.0, options=fast, ms_per_price=2000.0).full


def test_who_matters_less_leaves_room() -> None:
    ways = {p: [decide(ms, priority=p).way is Way.EDGE for ms in (45, 75, 95)] for p in Priority}
    assert ways[Priority.INTERACTIVE] == [True, True, True]
    assert ways[Priority.STANDARD] == [True, True, False]
    assert ways[Priority.BULK] == [True, False, False]


def test_an_idle_place_takes_anyone() -> None:
    admission, router = seasoned(), Router()
    idle = router.pick("cat:1", [replica("d1", PROFILE)], 1, 0.0)
    assert idle is not None
    ask = Ask("cat:1", 1, idle.p95_ms, Priority.BULK)
    assert admission.decide(ask, idle, offered(), 0.0).way is Way.EDGE
    second = router.pick("cat:1", [replica("d1", PROFILE)], 1, 0.0)
    assert second is not None
    ask = Ask("cat:1", 1, second.p95_ms, Priority.BULK)
    assert admission.decide(ask, second, offered(), 0.0).way is Way.SHED


def test_who_is_beyond_the_fair_share_ranks_last() -> None:
    admission = seasoned()
    for number in range(300):
        now = number * 0.01
        for client, p95 in (("greedy", 20.0), ("greedy", 20.0), ("modest", 99.0)):
            ask = Ask("cat:1", 1, 100.0, client=client)
            admission.decide(ask, ticket(p95), offered(), now)
    allowed = HEADROOM[Priority.STANDARD - 1] * 100.0
    for client, way in (("modest", Way.EDGE), ("greedy", Way.SHED)):
        ask = Ask("cat:1", 1, 100.0, client=client)
        assert admission.decide(ask, ticket(allowed), offered(), 3.0).way is way


def test_late_answers_make_it_shed_although_predictions_fit() -> None:
    admission, now = seasoned(), 0.0
    for _ in range(30):
        now += 0.01
        admission.answered("cat:1", 150.0, 100.0, now)
    decision = admission.decide(Ask("cat:1", 1, 100.0), ticket(10.0), offered(), now)
    assert decision.way is Way.SHED
    assert "later than expected" in decision.reason
    admission.answered("cat:1", 50.0, 100.0, now)
    decision = admission.decide(Ask("cat:1", 1, 100.0), ticket(10.0), offered(), now)
    assert decision.way is Way.EDGE


steps = st.lists(
    st.tuples(
        st.floats(0, 0.05),
        st.floats(0, 300),
        st.floats(1, 3),
        st.sampled_from(Priority),
        st.sampled_from(["a", "b", "c"]),
        st.floats(0, 3),
    ),
    max_size=80,
)


@given(steps)
def test_never_to_devices_beyond_the_95th_percentile_but_for_trials(steps: Any) -> None:
    admission, now, admitted_at = Admission(), 0.0, float("-inf")
    for pause, delay, tail, priority, client, ratio in steps:
        now += pause
        place = ticket(delay * tail, delay)
        ask = Ask("cat:1", 1, 100.0, priority, client)
        if admission.decide(ask, place, offered(), now).way is Way.EDGE:
            if delay * tail > 100.0:
                assert now - admitted_at >= TRIAL_S
                assert delay <= 100.0
            admitted_at = now
        admission.answered("cat:1", ratio * 100.0, 100.0, now)


@given(steps, st.floats(0, 300))
def test_who_matters_more_is_never_shed_where_others_are_admitted(
    steps: Any, p95_ms: float
) -> None:
    def outcome(priority: Priority) -> Way:
        admission, now = Admission(), 0.0
        for pause, delay, tail, of, client, ratio in steps:
            now += pause
            ask = Ask("cat:1", 1, 100.0, of, client)
            admission.decide(ask, ticket(delay * tail, delay), offered(), now)
            admission.answered("cat:1", ratio * 100.0, 100.0, now)
        ask = Ask("cat:1", 1, 100.0, priority, "a")
        return admission.decide(ask, ticket(p95_ms), offered(), now).way

    ways = [outcome(priority) for priority in Priority]
    for more, less in itertools.pairwise(ways):
        assert not (more is Way.SHED and less is Way.EDGE)


def test_models_are_remembered_within_bounds() -> None:
    admission = Admission()
    for number in range(MAX_MODELS + 10):
        admission.answered(f"m{number}:1", 1.0, 1.0, 0.0)
    assert len(admission._models) == MAX_MODELS


@pytest.mark.parametrize(
    ("parameter", "name", "expected"),
    [
        (None, None, Priority.STANDARD),
        (0, None, Priority.STANDARD),
        (1, None, Priority.INTERACTIVE),
        (3, None, Priority.BULK),
        (3, "interactive", Priority.INTERACTIVE),
        (None, " Bulk ", Priority.BULK),
    ],
)
def test_priorities(parameter: Any, name: str | None, expected: Priority) -> None:
    assert priority_of(parameter, name) is expected


@pytest.mark.parametrize("parameter", [4, -1, True, 1.0, "1", [1], 2**70])
def test_wrong_priorities(parameter: Any) -> None:
    with pytest.raises(ValueError, match=r"'priority' must be 0 .* 1 \(interactive\)"):
        priority_of(parameter)


def test_a_wrong_name_of_a_priority() -> None:
    with pytest.raises(ValueError, match="use interactive, standard or bulk"):
        priority_of(1, "urgent" * 100)
