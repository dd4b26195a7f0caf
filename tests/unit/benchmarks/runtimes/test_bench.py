"""Each measurement of the benchmark once, on the CPU: real, and short."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")

from shoal_bench.figures import Result
from shoal_bench.runtimes import bench

PYTHON = Path(sys.executable)


def test_a_provider_set_is_measured_with_its_placement(tmp_path: Path) -> None:
    model = bench.prepare_small(tmp_path)
    result = Result("runtimes")
    (row,) = bench.measure("cpu", PYTHON, model, 1, 1, tmp_path, result)
    assert row[:3] == ("cpu", "selftest", "cpu")
    assert row[4] == "-"  # Nothing is compiled for the CPU.
    assert row[6].startswith("0% accelerated: ")
    assert row[7] == "0"
    assert result.figures == []


def test_what_the_agent_adds_and_detection_are_figures(tmp_path: Path) -> None:
    model = bench.prepare_small(tmp_path)
    assert bench.overhead(PYTHON, model, 1, 3).unit == "ms"
    assert bench.detection(PYTHON, 1).value > 0


def test_a_measurement_that_fails_says_where(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="load failed in"):
        bench.probe(PYTHON, "load", model="missing.onnx")
