"""Fair shares of clients, by the clock that the test turns."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_controlplane.gateway.fairness import (
    MAX_CLIENTS,
    MEMORY_S,
    REFRESH_S,
    FairShares,
    fair_share,
)


@given(st.lists(st.floats(0, 1e6), max_size=30), st.floats(0, 1e7))
def test_the_fair_share_uses_all_there_is_and_no_more(asked: list[float], capacity: float) -> None:
    level = fair_share(asked, capacity)
    given_out = sum(min(wanted, level) for wanted in asked)
    if level == math.inf:
        assert sum(asked) <= capacity * (1 + 1e-9) + 1e-6
    else:
        assert given_out == pytest.approx(capacity, rel=1e-6, abs=1e-6)


def serve(demands: dict[str, float], capacity: float, seconds: float = 10.0) -> dict[str, float]:
    """Let clients ask `demands` times a second, at random, of a server that does `capacity`, and
    admit those who are over their share into half of its queue only; what each got a second, after
    a warm-up."""
    shares, rng, now, backlog = FairShares(), random.Random(1), 0.0, 0.0
    names, rates = list(demands), list(demands.values())
    got = dict.fromkeys(names, 0.0)
    while now < seconds:
        pause = rng.expovariate(sum(rates))
        now += pause
        backlog = max(0.0, backlog - capacity * pause)
        (client,) = rng.choices(names, rates)
        limit = 0.5 if shares.is_over(client, now) else 1.0
        admitted = backlog < limit * capacity * 0.2
        shares.count(client, 1.0, now, admitted=admitted)
        backlog += admitted
        got[client] += admitted and now >= seconds / 2
    return {client: count / (seconds / 2) for client, count in got.items()}


def test_one_client_may_have_everything() -> None:
    assert serve({"only": 300.0}, 100.0)["only"] == pytest.approx(100.0, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1, 400), min_size=2, max_size=5))
def test_nobody_gets_much_less_than_the_fair_share(rates: list[float]) -> None:
    demands = {f"c{i}": rate for i, rate in enumerate(rates)}
    level = fair_share(rates, 100.0)
    got = serve(demands, 100.0)
    for client, rate in demands.items():
        assert got[client] >= 0.75 * min(rate, level) - 2.0


def test_without_pressure_nobody_is_over() -> None:
    shares = FairShares()
    for number in range(100):
        shares.count("greedy", 10, number * 0.01, admitted=True)
        shares.count("small", 1, number * 0.01, admitted=True)
    assert not shares.is_over("greedy", 2.0)
    assert shares.share == math.inf


def test_the_past_is_forgotten() -> None:
    shares = FairShares()
    for number in range(100):
        shares.count("greedy", 10, number * 0.01, admitted=True)
        shares.count("small", 10, number * 0.01, admitted=False)
    assert shares.is_over("greedy", 1.0 + REFRESH_S)
    assert not shares.is_over("greedy", 1.0 + 20 * MEMORY_S)
    assert len(shares) == 0


@given(st.integers(1, 2000))
def test_made_up_names_fill_no_memory(count: int) -> None:
    shares = FairShares()
    for number in range(count):
        shares.count(f"name-{number}", 1, 0.0, admitted=number % 2 == 0)
    assert len(shares) <= MAX_CLIENTS + 1


def test_beyond_the_limit_all_others_share_one_account() -> None:
    shares = FairShares()
    for number in range(MAX_CLIENTS):
        shares.count(f"known-{number}", 100, 0.0, admitted=False)
    for number in range(1000):
        shares.count(f"new-{number}", 10, 0.0, admitted=True)
    assert shares.is_over("never seen", REFRESH_S)
    assert not shares.is_over("known-0", REFRESH_S)
