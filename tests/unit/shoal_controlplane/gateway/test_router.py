"""Which device gets a request."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal_controlplane.gateway.delays import PRIOR
from shoal_controlplane.gateway.predictions import RouterSettings
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.table import Replica
from shoal_shared.profiles import Profile, fit

FAST, SLOW = fit([(1, 10.0)]), fit([(1, 20.0)])
SETTINGS = RouterSettings()


def router(seed: int = 1, settings: RouterSettings | None = None) -> Router:
    return Router(settings, random.Random(seed))


def replicas(*names: str, profile: Profile = FAST) -> list[Replica]:
    return [Replica(name, profile) for name in names]


def pick(r: Router, choice: list[Replica], now: float = 0.0, **more: Any) -> Ticket:
    ticket = r.pick("cat:1", choice, more.pop("items", 1), now, **more)
    assert ticket is not None
    return ticket


def eject(r: Router, name: str, now: float) -> None:
    for _ in range(SETTINGS.failures_to_eject):
        r.failed(pick(r, replicas(name), now), now)


def test_an_idle_device_is_expected_to_take_its_profile_and_the_round_trip() -> None:
    profile = Profile(samples=((1, 7.0),), intercept_ms=5.0, slope_ms=2.0, knee=4)
    delays = {
        items: pick(router(), replicas("d", profile=profile), items=items).delay_ms
        for items in (1, 4, 5, 8)
    }
    assert delays == {1: 7.5, 4: 13.5, 5: 20.5, 8: 26.5}  # batches of up to 4


def test_requests_spread_by_capacity() -> None:
    r = router()
    choice = [Replica("fast", FAST), Replica("slow", SLOW)]
    counts = Counter(pick(r, choice).device for _ in range(30))
    assert counts == {"fast": 20, "slow": 10}


def test_equal_devices_are_chosen_at_random_and_by_the_seed() -> None:
    choice = replicas("a", "b", "c", "d")

    def route(seed: int) -> list[str]:
        r = router(seed)
        out = []
        for i in range(50):
            ticket = pick(r, choice, now=i)
            r.succeeded(ticket, i + 0.0105, 0, 10.0, 1)
            out.append(ticket.device)
        return out

    assert route(1) == route(1)
    assert route(1) != route(2)
    assert len(set(route(1))) == 4


def test_excluded_devices_are_not_chosen() -> None:
    r = router()
    choice = replicas("a", "b")
    assert {pick(r, choice, exclude={"a"}).device for _ in range(10)} == {"b"}
    assert r.pick("cat:1", choice, 1, 0.0, exclude={"a", "b"}) is None
    assert r.pick("cat:1", [], 1, 0.0) is None


def test_a_device_that_becomes_slow_loses_its_share_within_a_few_replies() -> None:
    r = router()
    choice = replicas("a", "b")
    for _ in range(4):
        ticket = pick(r, replicas("a"))
        r.succeeded(ticket, 0.05, 0, 50.0, 1)  # five times slower than its profile
    counts = Counter(pick(r, choice, now=0.06).device for _ in range(24))
    assert counts["a"] <= 5


@pytest.mark.parametrize(("now", "fastest", "slowest"), [(0.06, 45, 50), (10.0, 10, 12)])
def test_a_slow_device_is_tried_again_after_a_while(
    now: float, fastest: float, slowest: float
) -> None:
    r = router()
    for _ in range(4):
        r.succeeded(pick(r, replicas("a")), 0.05, 0, 50.0, 1)
    assert fastest < pick(r, replicas("a"), now).delay_ms < slowest


def test_the_service_time_of_a_batch_is_measured_against_that_batch() -> None:
    r = router()
    profile = Profile(samples=((1, 11.0),), intercept_ms=10.0, slope_ms=1.0, knee=8)
    choice = replicas("a", profile=profile)
    r.succeeded(pick(r, choice), 0.02, 0, 18.0, 8)  # as a batch of 8 shall take
    assert pick(r, choice, now=0.03).delay_ms < 12.5


def test_what_others_have_sent_counts() -> None:
    r = router()
    choice = replicas("a", "b")
    first = pick(r, replicas("a"))
    r.succeeded(first, 0.01, 8, 10.0, 1)  # eight requests of other gateways wait there
    assert [pick(r, choice, now=0.01).device for _ in range(3)] == ["b"] * 3
    # It is old news soon.
    late = Counter(pick(r, choice, now=2.0).device for _ in range(8))
    assert late["a"] > 3


def test_own_requests_do_not_count_as_others() -> None:
    r = router()
    tickets = [pick(r, replicas("a")) for _ in range(5)]
    r.succeeded(tickets[0], 0.01, 4, 10.0, 1)  # the four that are left are our own
    for ticket in tickets[1:]:
        r.released(ticket, 0.01)
    assert pick(r, replicas("a"), now=0.01).delay_ms == pytest.approx(10, abs=0.6)


def test_a_device_that_does_not_answer_looks_slower_by_the_time_it_takes() -> None:
    flat = Profile(samples=((1, 10.0), (2, 10.0)), intercept_ms=10.0, slope_ms=0.0, knee=8)
    for profile in (FAST, flat):
        r = router()
        pick(r, replicas("a", profile=profile))
        delays = []
        for now in (0.02, 0.05, 0.2, 1.0):
            ticket = pick(r, replicas("a", profile=profile), now)
            delays.append(ticket.delay_ms)
        assert delays == sorted(delays)
        assert delays[-1] > 900
        assert pick(r, replicas("a", "b", profile=profile), 1.0).device == "b"


def test_a_request_never_takes_less_than_itself() -> None:
    flat = Profile(samples=((1, 10.0), (2, 10.0)), intercept_ms=10.0, slope_ms=0.0, knee=8)
    r = router()
    pick(r, replicas("a", profile=flat))
    for now in (0.0, 0.005, 0.009, 0.0099, 0.01):
        ticket = pick(r, replicas("a", profile=flat), now)
        assert ticket.delay_ms >= 10.5


def test_another_slow_model_on_a_device_does_not_make_it_look_stuck() -> None:
    r = router()
    long = fit([(1, 1000.0)])
    r.pick("long:1", replicas("a", profile=long), 1, 0.0)
    ticket = pick(r, replicas("a", profile=fit([(1, 1.0)])), now=0.5)
    assert ticket.delay_ms == pytest.approx(501.5)


def test_unknown_service_times() -> None:
    r = router()
    unknown = replicas("a", "b", profile=fit([(1, 0.0)]))
    tickets = [pick(r, unknown, now=0.0) for _ in range(6)]
    tickets += [pick(r, unknown, now=5.0) for _ in range(6)]
    assert all(0 <= t.delay_ms < 1 for t in tickets)
    for ticket in tickets:
        r.succeeded(ticket, 6.0, 0, 50.0, 1)
    assert pick(r, unknown, now=6.0).delay_ms >= 0


def test_failures_in_a_row_eject_and_answers_between_them_forgive() -> None:
    r = router()
    for _ in range(3):
        r.failed(pick(r, replicas("a")), 0.0)
        r.succeeded(pick(r, replicas("a")), 0.0, 0, 10.0, 1)
    assert r.ejected(0.0) == []
    eject(r, "a", 0.0)
    assert r.ejected(0.0) == ["a"]
    assert r.pick("cat:1", replicas("a"), 1, 0.1) is None
    assert pick(r, replicas("a", "b"), 0.1).device == "b"


def test_after_its_ejection_a_device_gets_one_request_to_prove_itself() -> None:
    r = router()
    eject(r, "a", 0.0)
    later = SETTINGS.ejection_s * 1.2 + 0.01
    probe = pick(r, replicas("a"), later)
    assert probe.probe
    assert r.pick("cat:1", replicas("a"), 1, later) is None
    r.succeeded(probe, later + 0.01, 0, 10.0, 1)
    tickets = [pick(r, replicas("a"), later + 0.02) for _ in range(3)]
    assert not any(t.probe for t in tickets)


def test_a_probe_that_ends_without_a_verdict_is_followed_by_another() -> None:
    r = router()
    eject(r, "a", 0.0)
    r.released(pick(r, replicas("a"), 2.0), 2.0)
    assert pick(r, replicas("a"), 2.0).probe


def test_each_failed_probe_doubles_the_ejection_up_to_a_limit() -> None:
    r = router()
    now = 0.0
    eject(r, "a", now)
    pauses = []
    for _ in range(9):
        began = now
        while r.ejected(now):
            now += 0.05
        pauses.append(now - began)
        r.failed(pick(r, replicas("a"), now), now)
    expected = [min(SETTINGS.max_ejection_s, SETTINGS.ejection_s * 2**i) for i in range(9)]
    for pause, mean in zip(pauses, expected, strict=True):
        assert 0.8 * mean <= pause <= 1.2 * mean + 0.1


def test_many_requests_that_fail_together_count_as_one_incident() -> None:
    r = router()
    tickets = [pick(r, replicas("a")) for _ in range(20)]
    for ticket in tickets:
        r.failed(ticket, 0.0)
    assert r.ejected(SETTINGS.ejection_s * 1.21) == []


def test_a_device_that_returned_starts_anew() -> None:
    r = router()
    for _ in range(4):
        r.succeeded(pick(r, replicas("a")), 0.05, 50, 50.0, 1)
    old = [pick(r, replicas("a")) for _ in range(3)]
    eject(r, "a", 0.0)
    r.returned("a")
    assert r.ejected(0.0) == []
    new = pick(r, replicas("a"))
    assert new.delay_ms == 10.5
    # Outcomes of the session that ended change nothing.
    r.failed(old[0], 0.0)
    r.failed(old[1], 0.0)
    r.succeeded(old[2], 0.0, 99, 500.0, 1)
    assert r.ejected(0.0) == []
    assert pick(r, replicas("a")).delay_ms == 20.5
    r.returned("never seen")


def test_a_closed_ticket_changes_nothing() -> None:
    r = router()
    ticket = pick(r, replicas("a"))
    r.released(ticket, 0.0)
    for _ in range(5):
        r.failed(ticket, 0.0)
        r.succeeded(ticket, 0.0, 100, 1000.0, 1)
    assert pick(r, replicas("a")).delay_ms == pytest.approx(10.5)
    assert r.ejected(0.0) == []


def test_blame_of_a_device_that_is_not_known() -> None:
    r = router()
    r.blame("nobody", 0.0)
    assert r.ejected(0.0) == []


@given(
    st.integers(1, 64),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
)
def test_whatever_a_device_says_the_delay_stays_a_number(
    knee: int, intercept: float, slope: float, depth: int, service_us: int, batch: int
) -> None:
    profile = Profile(samples=(), intercept_ms=intercept, slope_ms=slope, knee=knee)
    r = router()
    for now in (0.0, 0.001, 1e4, 1e6):
        for _ in range(2):
            ticket = pick(r, replicas("a", profile=profile), now)
            assert 0 <= ticket.delay_ms < float("inf")
        r.succeeded(ticket, now, depth, service_us / 1e3, batch)


class Routing(RuleBasedStateMachine):
    """Any order of picks and outcomes: accounts add up, and nobody gets what it must not."""

    NAMES = ("a", "b", "c")

    @initialize(seed=st.integers(0, 9))
    def begin(self, seed: int) -> None:
        self.router = router(seed)
        self.now = 0.0
        self.open: list[Ticket] = []
        self.counts: Counter[str] = Counter()
        self.probing: set[str] = set()

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(items=st.integers(1, 9), exclude=st.sets(st.sampled_from(NAMES)))
    def send(self, items: int, exclude: set[str]) -> None:
        ejected = self.router.ejected(self.now)
        ticket = self.router.pick("m:1", replicas(*self.NAMES), items, self.now, exclude=exclude)
        if ticket is None:
            free = set(self.NAMES) - exclude - set(ejected) - self.probing
            assert not free
            return
        assert ticket.device not in exclude
        assert ticket.device not in ejected
        assert ticket.device not in self.probing
        assert ticket.delay_ms >= 0
        if ticket.probe:
            self.probing.add(ticket.device)
        self.open.append(ticket)
        self.counts[ticket.device] += 1

    @rule(
        which=st.integers(0, 99),
        outcome=st.sampled_from(["good", "bad", "none", "overtaken", "withdrawn"]),
    )
    def end(self, which: int, outcome: str) -> None:
        if not self.open:
            return
        ticket = self.open.pop(which % len(self.open))
        if outcome == "good":
            self.router.succeeded(ticket, self.now, which % 5, float(which), 1)
        elif outcome == "bad":
            self.router.failed(ticket, self.now)
        elif outcome == "overtaken":
            self.router.overtaken(ticket, self.now)
        elif outcome == "withdrawn":
            self.router.withdrawn(ticket)
        else:
            self.router.released(ticket, self.now)
        self.counts[ticket.device] -= 1
        if ticket.probe or outcome == "good":
            self.probing.discard(ticket.device)

    @invariant()
    def accounts_add_up(self) -> None:
        for name, device in self.router._devices.items():
            assert device.in_flight == self.counts[name]
            items = sum(t.items for t in self.open if t.device == name)
            assert sum(work.items for work in device.work.values()) == items


TestRouting = Routing.TestCase


def test_an_outlook_counts_nothing_and_tells_what_a_ticket_would() -> None:
    r = router()
    (place,) = replicas("d1")
    first = r.outlook("cat:1", place, 1, 0.0)
    assert first is not None
    ticket = pick(r, [place])
    assert (first.factor, ticket.delay_ms) == (1.0, first.waiting_ms + 10.0)
    busy = r.outlook("cat:1", place, 1, 0.0)
    assert busy is not None
    assert busy.waiting_ms > first.waiting_ms + 5.0
    r.succeeded(ticket, 0.02, 0, 20.0, 1)
    slower = r.outlook("cat:1", place, 1, 0.02)
    assert slower is not None
    assert slower.factor == 1.5
    eject(r, "d1", 0.02)
    assert r.outlook("cat:1", place, 1, 0.02) is None


def test_the_95th_percentile_follows_how_long_requests_took() -> None:
    r = router()
    (place,) = replicas("d1")
    ticket = pick(r, [place])
    assert ticket.p95_ms == PRIOR * ticket.delay_ms
    for n in range(100):
        r.succeeded(ticket, n + ticket.delay_ms * 3e-3, 0, 10.0, 1)
        ticket = pick(r, [place], n + 1.0)
    assert 3.0 <= ticket.p95_ms / ticket.delay_ms < 3.4
    # A device without samples is taken to be like the others.
    other = pick(r, replicas("d2"), 200.0)
    assert 3.0 <= other.p95_ms / other.delay_ms < 3.4
    for n in range(100):
        r.succeeded(other, 300.0 + n + other.delay_ms * 1e-3, 0, 10.0, 1)
        other = pick(r, replicas("d2"), 300.0 + n + 1)
    assert other.p95_ms == other.delay_ms
    assert pick(r, [place], 500.0).p95_ms > 2.5 * ticket.delay_ms


def test_a_place_that_takes_too_long_is_not_picked_and_counts_nothing() -> None:
    r = router()
    assert r.pick("cat:1", replicas("d1"), 1, 0.0, within_ms=10.5) is None
    assert r.backlog_ms("d1", 0.0) == 0.0
    assert r.pick("cat:1", replicas("d1"), 1, 0.0, within_ms=10.6) is not None


def test_a_backlog_is_own_work_and_others() -> None:
    r = router()
    assert r.backlog_ms("d1", 0.0) == 0.0
    tickets = [pick(r, replicas("d1")) for _ in range(3)]
    assert r.backlog_ms("d1", 0.0) == 30.0
    assert r.backlog_ms("d1", 0.004) == pytest.approx(26.0)
    r.succeeded(tickets[0], 0.010, 4, 10.0, 1)  # Two of them are another gateway's.
    assert r.backlog_ms("d1", 0.010) == pytest.approx(40.0)
    r.succeeded(tickets[1], 0.030, 1, 20.0, 1)
    assert r.backlog_ms("d1", 0.030) == pytest.approx(15.0)


def test_an_ejected_device_is_not_usable_until_it_is_probed() -> None:
    r = router()
    assert r.usable("d1", 0.0)
    eject(r, "d1", 0.0)
    assert not r.usable("d1", 0.1)
    assert r.usable("d1", 2.0)
    pick(r, replicas("d1"), 2.0)
    assert not r.usable("d1", 2.0)


def test_what_is_left_of_a_request_grows_with_what_lies_before_it_and_when_it_is_late() -> None:
    r = router()
    first, second, third = (pick(r, replicas("d1")) for _ in range(3))
    left = [r.left_ms(ticket, 0.0) for ticket in (first, second, third)]
    assert left == [10.0, 20.0, 30.0]
    assert r.left_ms(first, 0.006) == pytest.approx(4.0)
    late = [r.left_ms(ticket, 0.030) for ticket in (first, second, third)]
    assert late == pytest.approx([20.0, 50.0, 80.0])
    r.succeeded(first, 0.030, 2, 10.0, 1)
    assert r.left_ms(first, 0.030) == 0.0
    assert [r.left_ms(ticket, 0.030) for ticket in (second, third)] == pytest.approx([10.0, 20.0])


def test_a_device_that_was_overtaken_is_slower_busy_and_not_to_blame() -> None:
    r = router()
    (place,) = replicas("d1")
    ticket = pick(r, [place])
    for _ in range(5):
        r.overtaken(ticket, 0.100)
    assert r.ejected(0.1) == []
    assert r.backlog_ms("d1", 0.100) > 50.0
    outlook = r.outlook("cat:1", place, 1, 0.100)
    assert outlook is not None
    assert outlook.factor == pytest.approx(1 + 0.5 * (100 / 10 - 1))
    r.answered_late(ticket, 0.200, 0, 30.0, 1)
    after = r.outlook("cat:1", place, 1, 0.200)
    assert after is not None
    assert (after.waiting_ms < 1.0, 3.0 < after.factor < outlook.factor) == (True, True)


def test_what_only_waited_on_a_device_tells_nothing_of_its_speed() -> None:
    r = router()
    (place,) = replicas("d1")
    first, second = pick(r, [place]), pick(r, [place])
    r.overtaken(second, 0.100)
    outlook = r.outlook("cat:1", place, 1, 0.100)
    assert outlook is not None
    assert outlook.factor == 1.0
    assert r.left_ms(first, 0.100) == pytest.approx(90.0)


def test_the_answer_of_a_device_that_left_meanwhile_teaches_nothing() -> None:
    r = router()
    ticket = pick(r, replicas("d1"))
    r.overtaken(ticket, 0.1)
    r.returned("d1")
    r.answered_late(ticket, 0.2, 9, 500.0, 1)
    assert r.backlog_ms("d1", 0.2) == 0.0
    pick(r, replicas("d1"), 0.3)
    r.answered_late(ticket, 0.3, 9, 500.0, 1)
    assert r.backlog_ms("d1", 0.3) == 10.0
