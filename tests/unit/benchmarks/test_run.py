from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from shoal_bench.figures import Result, figure, save

RUN = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"


@pytest.fixture
def program(tmp_path: Path) -> dict[str, Any]:
    """The program's names, with its folders below `tmp_path`."""
    names = runpy.run_path(str(RUN))
    places = {"ROOT": tmp_path, "RESULTS": tmp_path / "bench", "DOCUMENT": tmp_path / "doc.md"}
    names["main"].__globals__.update(places)
    return names


def call(program: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    status: int = program["main"]()
    return status


def test_unknown_names_are_wrong_usage(
    program: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        call(program, monkeypatch, "rooter")
    assert error.value.code == 2
    assert "no benchmark is called 'rooter'" in capsys.readouterr().err


def test_report_without_results(
    program: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(program, monkeypatch, "--report") == 1
    assert "nothing was measured yet" in capsys.readouterr().err


def test_report_writes_the_document(
    program: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save(Result("router", figures=[figure("p99", "ms", [12])]), tmp_path / "bench")
    assert call(program, monkeypatch, "--report") == 0
    assert "12.0 ms" in (tmp_path / "doc.md").read_text()


def test_a_result_is_shown_and_written(
    program: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program["show"](Result("agent", figures=[figure("memory", "MB", [45])], notes=["a note"]))
    shown = capsys.readouterr().out
    assert "45.0 MB" in shown
    assert "- a note" in shown
    written = json.loads((tmp_path / "bench" / "agent.json").read_text())
    assert written["figures"][0]["value"] == 45
