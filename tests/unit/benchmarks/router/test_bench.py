from __future__ import annotations

import math

import pytest
from shoal_bench.figures import Result
from shoal_bench.router import bench
from shoal_bench.router.bench import Job, Outcome, percentile, run_job


def test_the_same_job_has_the_same_outcome() -> None:
    job = Job("Shoal", 0.7, 1, 400, gateways=2)
    assert run_job(job) == run_job(job)


@pytest.mark.parametrize("policy", [bench.SHOAL, *bench.PEERS, *bench.REFERENCES, bench.POOLED])
def test_every_policy_runs(policy: str) -> None:
    outcome = run_job(Job(policy, 0.5, 1, 300))
    assert 0.5 < outcome.p50 <= outcome.p99 < math.inf
    assert 0 < outcome.goodput <= 1


def test_unanswered_requests_are_no_goodput() -> None:
    loose = run_job(Job("round robin", 0.85, 1, 2000))
    tight = run_job(Job("round robin", 0.85, 1, 2000, deadline_ms=100))
    assert tight.p99 == math.inf
    assert loose.p99 < math.inf
    assert 0 < tight.goodput < 1


def test_percentile_is_the_nearest_rank() -> None:
    ordered = list(map(float, range(100)))
    assert (percentile(ordered, 0.5), percentile(ordered, 0.99)) == (50, 99)
    assert percentile([7.0], 0.99) == 7


def test_the_best_peer_of_all_is_the_one_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    p99 = dict.fromkeys(bench.PEERS, 100.0) | {"Shoal": 20.0, "JSQ": 40.0}
    p99 |= dict.fromkeys((*bench.REFERENCES, bench.POOLED), 1.0)
    outcomes = {name: [Outcome(1.0, ms, 0.9)] * 3 for name, ms in p99.items()}
    result = Result("router")
    bench._add(result, bench._Cell(bench.GOAL_LOAD), outcomes, outcomes)
    times, goodput = result.figures
    # References are no peers: nobody can run them.
    assert (times.peer, times.ratio, times.met) == ("JSQ", 0.5, True)
    assert (goodput.ratio, goodput.met) == (1.0, True)
    assert len(result.tables[0].rows) == len(p99)
