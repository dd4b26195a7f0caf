from __future__ import annotations

from shoal_bench.figures import Result, figure
from shoal_bench.report import update


def result(name: str, value: float) -> Result:
    return Result(name, figures=[figure("p99", "ms", [value])], notes=["a note"])


def test_first_report_makes_the_document() -> None:
    text = update("", [result("router", 1234)])
    assert text.startswith("# Benchmarks\n")
    assert "1,234 ms" in text
    assert "- a note" in text


def test_prose_outside_the_markers_is_kept() -> None:
    text = update("", [result("router", 1234), result("agent", 42)])
    text = text.replace("## `router`", "## Router\n\nWhy it matters.") + "\nThe end.\n"
    again = update(text, [result("router", 5678)])
    assert "Why it matters." in again
    assert again.endswith("The end.\n")
    assert "5,678 ms" in again
    assert "1,234 ms" not in again
    assert "42.0 ms" in again


def test_same_results_change_nothing() -> None:
    once = update("", [result("router", 1), result("gateway", 2)])
    assert update(once, [result("router", 1), result("gateway", 2)]) == once


def test_bars_in_cells_do_not_break_the_table() -> None:
    named = Result("router", figures=[figure("a|b", "ms", [1])])
    assert "| a\\|b |" in update("", [named])
