"""A board that throttles loses its share at once: the router in virtual time."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.gateway.predictions import RouterSettings
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.table import Replica
from shoal_shared.profiles import Profile, fit

COOL, HOT = fit([(1, 10.0)]), fit([(1, 30.0)])
NAMES = tuple("abcdef")
FLIP_S = 5.0

Table = Callable[[float], list[Replica]]


def cool(name: str, *, slowed: bool = False) -> Replica:
    return Replica(name, COOL, slowed=slowed)


def only_replies_tell(_now: float) -> list[Replica]:
    return [cool(name) for name in NAMES]


def telemetry_tells(now: float) -> list[Replica]:
    return [cool(name, slowed=name == "a" and now >= FLIP_S + 0.1) for name in NAMES]


def measured_anew(now: float) -> list[Replica]:
    first = Replica("a", HOT) if now >= FLIP_S + 0.3 else cool("a")
    return [first, *(cool(name) for name in NAMES[1:])]


def telemetry_then_measured(now: float) -> list[Replica]:
    return measured_anew(now) if now >= FLIP_S + 0.3 else telemetry_tells(now)


def shares(table: Table, load: float, until: float = FLIP_S + 2.0) -> Callable[..., float]:
    """Play Poisson arrivals on single-queue devices; "a" takes three times as long after the flip.

    Gives the share of "a" between two times.
    """
    rng = random.Random(7)
    router = Router(rng=random.Random(1))
    free = dict.fromkeys(NAMES, 0.0)
    replies: list[tuple[float, int, Ticket, float]] = []
    sent: list[tuple[float, str]] = []
    waiting: Counter[str] = Counter()
    now, number = 0.0, 0
    while now < until:
        now += rng.expovariate(load * len(NAMES) / 0.010)
        while replies and replies[0][0] <= now:
            at, _, ticket, service = heapq.heappop(replies)
            waiting[ticket.device] -= 1
            router.succeeded(ticket, at, waiting[ticket.device], service, 1)
        picked = router.pick("m:1", table(now), 1, now)
        assert picked is not None
        name = picked.device
        service = 0.030 if name == "a" and now >= FLIP_S else 0.010
        free[name] = max(free[name], now) + service
        waiting[name] += 1
        number += 1
        heapq.heappush(replies, (free[name] + 0.0005, number, picked, service * 1e3))
        sent.append((now, name))

    def share(begin: float, end: float) -> float:
        within = [name for at, name in sent if begin <= at < end]
        return within.count("a") / len(within)

    return share


@pytest.mark.parametrize("load", [0.3, 0.6])
@pytest.mark.parametrize(
    "table", [only_replies_tell, telemetry_tells, measured_anew, telemetry_then_measured]
)
def test_a_throttled_device_loses_its_share_within_a_second(table: Table, load: float) -> None:
    share = shares(table, load)
    before = share(1.0, FLIP_S)
    assert before == pytest.approx(1 / len(NAMES), rel=0.3)
    assert share(FLIP_S + 1.0, FLIP_S + 2.0) < 0.4 * before
    assert share(FLIP_S + 0.5, FLIP_S + 1.0) < 0.4 * before, "within the second already"


def delay(router: Router, replica: Replica, now: float) -> float:
    ticket = router.pick("m:1", [replica], 1, now)
    assert ticket is not None
    router.released(ticket, now)
    return ticket.delay_ms


def learnt(service_ms: float, now: float = 0.0) -> Router:
    """A router that has seen a device of profile `COOL` take `service_ms` again and again."""
    router = Router(rng=random.Random(1))
    for _ in range(40):
        ticket = router.pick("m:1", [Replica("a", COOL)], 1, now)
        assert ticket is not None
        router.succeeded(ticket, now + service_ms / 1e3, 0, service_ms, 1)
    return router


def test_what_replies_told_is_not_counted_again_in_a_new_profile() -> None:
    router = learnt(30.0)
    before = delay(router, Replica("a", COOL), 0.03)
    assert before == pytest.approx(30, abs=1)
    assert delay(router, Replica("a", HOT), 0.03) == pytest.approx(before)


def test_a_new_profile_counts_alone_where_replies_are_old_or_were_none() -> None:
    for router in (learnt(30.0), Router(rng=random.Random(1))):
        delay(router, Replica("a", COOL), 0.0)
        assert delay(router, Replica("a", HOT), 60.0) == pytest.approx(30, abs=1)


def test_the_same_profile_sent_again_changes_nothing() -> None:
    router = learnt(30.0)
    before = delay(router, Replica("a", COOL), 0.03)
    assert delay(router, Replica("a", fit([(1, 10.0)])), 0.03) == pytest.approx(before)


def test_a_slowed_device_is_expected_to_be_slower_but_not_twice_so() -> None:
    least = RouterSettings().slowed_factor
    router = Router(rng=random.Random(1))
    cool_ms = delay(router, cool("a"), 0.0)
    assert delay(router, cool("a", slowed=True), 0.0) == pytest.approx(0.5 + least * 10)
    assert delay(router, cool("a"), 0.0) == cool_ms, "and no longer than it is slowed"
    router = learnt(30.0)
    seen = delay(router, cool("a"), 0.03)
    assert delay(router, cool("a", slowed=True), 0.03) == seen, "what replies tell is more"


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), min_size=1, max_size=30))
def test_whatever_profiles_a_device_sends_the_delay_stays_a_number(
    figures: list[tuple[float, float]],
) -> None:
    router = learnt(30.0)
    for intercept, slope in figures:
        profile = Profile(samples=(), intercept_ms=intercept, slope_ms=slope, knee=1)
        assert 0 <= delay(router, Replica("a", profile), 0.03) < float("inf")
