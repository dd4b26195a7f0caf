from __future__ import annotations

import math
import random

import pytest
from shoal_bench.figures import Result
from shoal_bench.router.simulation import Simulation
from shoal_bench.slow import bench, scenario
from shoal_bench.slow.bench import Outcome, outcome
from shoal_bench.slow.scenario import AT_MS, SLOWER, throttled
from shoal_bench.slow.simulation import Trace, run_peer, run_shoal


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of a second before, and nothing after."""
    monkeypatch.setattr(scenario, "AT_MS", 150.0)
    monkeypatch.setattr(scenario, "AFTER_MS", 50.0)


def test_one_device_becomes_slower_and_stays_so() -> None:
    made = throttled(0.5, 1, 5)
    assert [made.slowdown(5, AT_MS - 1), made.slowdown(5, AT_MS)] == [1.0, SLOWER]
    assert made.slowdown(4, AT_MS + 1) == 1.0
    assert made.arrivals == throttled(0.5, 1, 3).arrivals


@pytest.mark.usefixtures("short")
def test_every_request_is_answered_and_the_same_run_gives_the_same_trace() -> None:
    made = throttled(0.7, 1, 5)
    traces = [run_shoal(made, 1, hedges=True) for _ in range(2)]
    assert traces[0] == traces[1]
    assert len(traces[0].sojourn) == len(made.arrivals)
    assert min(traces[0].sojourn) > 0.5  # Two hops.
    assert len(traces[0].sent) == len(made.arrivals) + traces[0].hedges


@pytest.mark.usefixtures("short")
def test_without_hedging_each_request_is_sent_once() -> None:
    made = throttled(0.7, 2, 5)
    trace = run_shoal(made, 2, hedges=False)
    assert (len(trace.sent), trace.hedges, trace.won) == (len(made.arrivals), 0, 0)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("policy", bench._PEERS)
def test_every_peer_runs(policy: str) -> None:
    made = throttled(0.5, 1, 5)
    simulation = Simulation(made)
    trace = run_peer(simulation, bench._PEERS[policy](simulation, random.Random(1)))
    assert len(trace.sojourn) == len(made.arrivals) == len(trace.sent)
    assert math.isnan(trace.sojourn[0])
    assert trace.sojourn[-1] > 0.5


def test_an_outcome_compares_what_was_sent_and_answered_before_and_later() -> None:
    before, later = AT_MS - 10, AT_MS + bench.SHARE_AFTER_MS + 10
    sent = [(before, 1), (before, 0), (later, 1), *[(later, 0)] * 9]
    arrivals = [before, AT_MS + 1, AT_MS + bench.P99_AFTER_MS + 1]
    found = outcome(Trace([4.0, 50.0, 6.0], sent, hedges=3, won=2), arrivals, 1)
    assert found == Outcome(pytest.approx(0.2), 4.0, 6.0, 50.0, 1.0, pytest.approx(2 / 3))
    assert found.p99_ratio == 1.5


def test_the_figures_are_judged_for_one_device_only() -> None:
    own = Outcome(0.1, 5.0, 6.0, 10.0, 0.01, 0.005)
    peer = Outcome(0.5, 9.0, 12.0, 40.0, 0.0, 0.0)
    found = {bench.SHOAL: [own] * 3, bench.UNHEDGED: [peer] * 3}
    found |= {name: [peer] * 3 for name in bench._PEERS}
    for device, judged in ((bench.GOAL_DEVICE, [True, True, None, None, True]), ("x", [None] * 5)):
        result = Result("slow")
        bench._add(result, device, found)
        assert [f.met for f in result.figures] == judged
        assert result.figures[2].ratio == 0.5
        assert len(result.tables[0].rows) == len(found)
