"""Figures per model."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.gateway.statistics import BUCKETS_S, ModelFigures, Statistics


def answered(figures: ModelFigures, **changes: int) -> None:
    facts = {
        "items": 1,
        "batch": 1,
        "total_ns": 10_000_000,
        "input_ns": 1_000,
        "infer_ns": 6_000_000,
        "output_ns": 2_000,
        "wall_ms": 1_700_000_000_000,
    }
    figures.answered(**facts | changes)


def test_a_model_that_was_never_asked() -> None:
    entry = Statistics().snapshot("cat", "1")
    assert entry["inference_count"] == entry["execution_count"] == entry["last_inference"] == 0
    assert all(total == {"count": 0, "ns": 0} for total in entry["inference_stats"].values())
    assert entry["batch_stats"] == []


def test_one_answer() -> None:
    statistics = Statistics()
    answered(statistics.of("cat", "1"))
    entry: dict[str, Any] = statistics.snapshot("cat", "1")
    assert (entry["name"], entry["version"]) == ("cat", "1")
    assert entry["last_inference"] == 1_700_000_000_000
    assert entry["inference_count"] == entry["execution_count"] == 1
    stats = entry["inference_stats"]
    assert stats["success"] == {"count": 1, "ns": 10_000_000}
    assert stats["compute_infer"] == {"count": 1, "ns": 6_000_000}
    assert stats["compute_input"] == {"count": 1, "ns": 1_000}
    assert stats["compute_output"] == {"count": 1, "ns": 2_000}
    # What is left is the way and the queue.
    assert stats["queue"] == {"count": 1, "ns": 10_000_000 - 6_000_000 - 3_000}
    assert stats["fail"] == {"count": 0, "ns": 0}


def test_versions_are_counted_apart() -> None:
    statistics = Statistics()
    answered(statistics.of("cat", "1"))
    answered(statistics.of("cat", "2"), items=3, batch=3)
    assert statistics.snapshot("cat", "1")["inference_count"] == 1
    assert statistics.snapshot("cat", "2")["inference_count"] == 3
    assert [(n, v) for n, v, _ in statistics.all()] == [("cat", "1"), ("cat", "2")]


def test_requests_that_a_device_merged_are_one_execution() -> None:
    figures = Statistics().of("cat", "1")
    for items in (1, 2, 5):
        answered(figures, items=items, batch=8)
    assert figures.items == 8
    assert round(figures.executions) == 1
    assert {b: t.count for b, t in figures.by_batch.items()} == {8: 3}


def test_a_device_that_claims_more_time_than_passed() -> None:
    figures = ModelFigures()
    answered(figures, total_ns=5, infer_ns=10**15)
    assert figures.queue.ns == 0


def test_failures() -> None:
    statistics = Statistics()
    statistics.of("cat", "1").failed(7)
    entry = statistics.snapshot("cat", "1")
    assert entry["inference_stats"]["fail"] == {"count": 1, "ns": 7}
    assert entry["inference_stats"]["success"]["count"] == 0


def test_what_was_shed_and_what_targets_answered() -> None:
    figures = ModelFigures()
    figures.failed(7)
    figures.failed(7, shed=True)
    answered(figures, target="aks", batch=1, items=1, infer_ns=0)
    answered(figures, target="aks", batch=1, items=1, infer_ns=0)
    assert (figures.fail.count, figures.shed, figures.spilled) == (2, 1, {"aks": 2})
    assert (figures.success.count, figures.by_batch, sum(figures.histogram)) == (2, {}, 2)


@given(st.lists(st.integers(0, 20_000_000_000), max_size=30))
def test_the_histogram_holds_each_answer_once(times_ns: list[int]) -> None:
    figures = ModelFigures()
    for ns in times_ns:
        answered(figures, total_ns=ns)
    assert sum(figures.histogram) == len(times_ns) == figures.success.count
    for i, bound in enumerate(BUCKETS_S):
        expected = sum(ns / 1e9 <= bound for ns in times_ns)
        assert sum(figures.histogram[: i + 1]) == expected
