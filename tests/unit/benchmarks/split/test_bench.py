"""The benchmark of cuts on two small models."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")

from shoal_bench.split import bench

from shoal_controlplane.planner.cuts.analysis import Analysis
from shoal_controlplane.planner.cuts.cutter import analyse_model
from shoal_controlplane.planner.partition.problem import Segment


def analysis(*macs: float) -> Analysis:
    segments = tuple(Segment("", 0, 0, 0, m, 0) for m in macs)
    return Analysis(segments, ((),) * (len(macs) - 1), (), (), {})


@pytest.mark.parametrize(
    ("macs", "stages", "bounds"),
    [
        ((1, 1, 1, 1), 2, (0, 2, 4)),
        ((1, 1, 1, 1), 4, (0, 1, 2, 3, 4)),
        ((9, 1, 1, 1), 2, (0, 1, 4)),
        ((9, 1, 1, 1), 3, (0, 1, 2, 4)),
        ((1, 1, 1, 9), 3, (0, 2, 3, 4)),
    ],
)
def test_bounds_share_out_the_work(
    macs: tuple[float, ...], stages: int, bounds: tuple[int, ...]
) -> None:
    assert bench.balanced_bounds(analysis(*macs), stages) == bounds


def test_a_comparison_is_of_the_whole(tmp_path: Path) -> None:
    case = bench.architectures(tmp_path)[0]
    found = bench.compare(case, analyse_model(case.path, case.shapes), 3, 2, tmp_path)
    assert found.differences[0] == 0
    assert 0 <= found.relative < bench.TOLERANCE
    assert len(found.whole_ms) == len(found.staged_ms) == 2
