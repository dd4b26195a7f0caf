from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.offload.breaker import Breaker, BreakerSettings

SETTINGS = BreakerSettings(failures=2, pause_s=1.0, max_pause_s=60.0)


def new() -> Breaker:
    return Breaker(SETTINGS, random.Random(1))


def test_failures_in_a_row_eject() -> None:
    breaker = new()
    breaker.failed(1.0, breaker.begin())
    assert breaker.admits(1.0)
    breaker.succeeded()
    breaker.failed(2.0, breaker.begin())
    assert breaker.admits(2.0)
    breaker.failed(2.1, breaker.begin())
    assert not breaker.admits(2.2)
    assert 0.8 <= breaker.until - 2.1 <= 1.2


def test_one_probe_decides_and_pauses_double() -> None:
    breaker, now = new(), 0.0
    breaker.eject(now)
    pauses = [breaker.until]
    for _ in range(9):
        now = breaker.until
        assert breaker.admits(now)
        probe = breaker.begin()
        assert probe
        assert not breaker.admits(now)
        breaker.failed(now, probe)
        pauses.append(breaker.until - now)
    assert all(0.8 * min(60, 2**n) <= p <= 1.2 * min(60, 2**n) for n, p in enumerate(pauses))
    now = breaker.until
    breaker.begin()
    breaker.succeeded()
    assert breaker.admits(now)
    assert breaker.until == 0


def test_a_probe_that_tells_nothing_lets_the_next_one_go() -> None:
    breaker = new()
    breaker.eject(0.0)
    now = breaker.until
    breaker.released(breaker.begin())
    assert breaker.admits(now)


def test_stragglers_do_not_prolong() -> None:
    breaker = new()
    before = [breaker.begin() for _ in range(5)]
    for probe in before:
        breaker.failed(1.0, probe)
    assert breaker.until <= 2.2


def test_it_waits_as_long_as_it_was_told() -> None:
    breaker = new()
    breaker.eject(0.0, 30.0)
    assert not breaker.admits(29.0)
    assert breaker.admits(30.0)


@given(st.lists(st.tuples(st.sampled_from(["ok", "failed", "released"]), st.floats(0, 20))))
def test_it_always_comes_back(outcomes: list[tuple[str, float]]) -> None:
    breaker, now = new(), 0.0
    for outcome, pause in outcomes:
        now += pause
        if not breaker.admits(now):
            continue
        probe = breaker.begin()
        if outcome == "ok":
            breaker.succeeded()
        elif outcome == "failed":
            breaker.failed(now, probe)
        else:
            breaker.released(probe)
        assert breaker.admits(now + 73)
