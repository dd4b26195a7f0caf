from __future__ import annotations

from pathlib import Path

import pytest
from shoal_bench.figures import Result, Table, Target, figure, load, number, render, save


def test_ratio_is_the_median_of_the_ratios_within_each_run() -> None:
    found = figure("p99", "ms", [10, 30, 20], peer="JSQ", peer_runs=[20, 40, 80])
    assert (found.value, found.peer_value) == (20, 40)
    # Within the runs: 0.5, 0.75, 0.25; not 20 / 40 by chance of the order.
    assert found.ratio == 0.5
    assert found.worst_ratio == 0.75
    assert found.worst == 30


def test_worst_is_the_least_where_more_is_better() -> None:
    found = figure("rate", "/s", [10, 8], peer="x", peer_runs=[5, 8], more_is_better=True)
    assert (found.worst, found.worst_ratio) == (8, 1.0)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(0.5), True),
        (Target(0.49), False),
        (Target(0.5, at_least=True), True),
        (Target(0.51, at_least=True), False),
        (Target(10, of_ratio=False), True),
        (Target(9.9, of_ratio=False), False),
    ],
)
def test_target(target: Target, met: bool) -> None:
    assert figure("f", "ms", [10], peer="x", peer_runs=[20], target=target).met is met


def test_figure_without_a_peer() -> None:
    found = figure("memory", "MB", [3, 1, 2], target=Target(2, of_ratio=False))
    assert (found.peer, found.peer_value, found.ratio, found.met) == (None, None, None, True)


@pytest.mark.parametrize(("runs", "peer_runs"), [([], []), ([1, 2], [1])])
def test_runs_must_match(runs: list[float], peer_runs: list[float]) -> None:
    with pytest.raises(ValueError, match="as many runs"):
        figure("f", "ms", runs, peer="x", peer_runs=peer_runs)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.9996, "1.00"),
        (12345.6, "12,346"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.01234, "0.0123"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_file_holds_what_the_contract_names(tmp_path: Path) -> None:
    result = Result("router", figures=[figure("p99", "ms", [1], peer="JSQ", peer_runs=[2])])
    result.tables.append(Table("t", ("a", "b"), (("1", "2"),)))
    path = save(result, tmp_path / "bench")
    assert path == tmp_path / "bench" / "router.json"
    assert load(path) == result
    text = path.read_text()
    for key in ("name", "value", "unit", "peer", "peer_value", "ratio", "runs"):
        assert f'"{key}"' in text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    text = render(Table("Title", ("a", "bb"), (("longer", "1"), ("x", "22"))))
    assert text.splitlines() == ["Title", "  a       bb", "  longer  1", "  x       22"]
