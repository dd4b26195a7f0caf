"""What crosses cuts, and in how many bytes it travels."""

from __future__ import annotations

import pytest

from shoal_controlplane.planner.cuts.analysis import Analysis, BoundaryTensor
from shoal_controlplane.planner.partition.problem import Segment

FLOATS = BoundaryTensor("f", "FP32", (1, 100), 400)
COUNTS = BoundaryTensor("n", "INT64", (2,), 16)
SEGMENTS = (Segment("a", 1, 1, 416, 1.0, 1), Segment("b", 1, 1, 400, 1.0, 1))
ANALYSIS = Analysis(SEGMENTS, ((FLOATS, COUNTS),), (FLOATS,), (FLOATS,), {"f": (1, 100)})


@pytest.mark.parametrize(("compression", "crossing"), [("", 416), ("fp16", 216), ("int8", 116)])
def test_only_floats_between_stages_shrink(compression: str, crossing: int) -> None:
    sent = ANALYSIS.sent(compression)
    # The answer to the gateway travels as it is.
    assert [segment.out_bytes for segment in sent] == [crossing, 400]
    assert [segment.weight_bytes for segment in sent] == [1, 1]


def test_a_graph_in_one_piece_sends_nothing_on() -> None:
    whole = Analysis(SEGMENTS[:1], (), (FLOATS,), (FLOATS,), {}, "it is one If")
    assert whole.sent("fp16") == whole.segments
