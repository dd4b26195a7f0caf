from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_controlplane.planner.costs import (
    TYPICAL,
    Range,
    Roof,
    chunks,
    costs,
    roof,
)
from shoal_controlplane.planner.partition.problem import Segment
from shoal_controlplane.plans.draft import Basis
from shoal_shared.messages import Accelerator

ROOF = Roof(1e12, 30e9, 0.4)


def segment(macs: float = 1e8, moved: int = 1_000_000) -> Segment:
    return Segment("s", 1000, 1000, 1000, macs, moved)


def model(*macs: float) -> list[Segment]:
    return [segment(m, 1000) for m in macs]


segments_of = st.lists(
    st.builds(
        segment,
        macs=st.floats(0, 1e10),
        moved=st.integers(0, 100_000_000),
    ),
    min_size=1,
    max_size=40,
)


class Synthetic:
    """A board on which segments take what the roofline says times something of their own."""

    def __init__(self, segments: list[Segment], seed: int, overhead_ms: float) -> None:
        self._rng = random.Random(seed)
        self.overhead_ms = overhead_ms
        self.times = [ROOF.milliseconds(s) * self._rng.uniform(0.3, 3.0) for s in segments]

    def run(self, first: int, last: int, noise: float = 0.0) -> float:
        exact = self.overhead_ms + sum(self.times[first:last])
        return exact * self._rng.uniform(1 - noise, 1 + noise)


@given(segments_of, st.integers(1, 14))
def test_chunks_cover_the_model_once_and_one_union(segments: list[Segment], limit: int) -> None:
    ranges = chunks(segments, limit)
    union = ranges.pop() if len(ranges) > 1 else None
    assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])]
    assert ranges[-1][1] == len(segments)
    assert all(a < b for a, b in ranges)
    assert len(ranges) <= min(limit, len(segments))
    if union is not None:
        assert any((a, d) == union for (a, _), (_, d) in pairwise(ranges))


def test_chunks_cost_about_the_same() -> None:
    segments = model(*([1e8] * 30 + [3e8] * 30))
    *ranges, union = chunks(segments, 12)
    assert len(ranges) == 12
    parts = [sum(TYPICAL.milliseconds(s) for s in segments[a:b]) for a, b in ranges]
    assert max(parts) < 1.5 * min(parts)
    assert union[0] in (ranges[5][0], ranges[6][0])


def test_one_segment_is_one_chunk_without_a_union() -> None:
    assert chunks(model(1e8)) == [(0, 1)]


def test_unmeasured_boards_are_estimated_by_their_roof() -> None:
    segments = [segment(1e9, 1000), segment(1e6, 60_000_000)]
    found = costs(segments, {}, ROOF)
    assert found.basis is Basis.ESTIMATED
    assert found.times_ms == pytest.approx((1.0, 2.0))
    assert found.overhead_ms == 0.4


def test_what_is_no_range_and_no_time_is_left_out() -> None:
    segments = model(1e9, 1e9)
    wrong: dict[Range, float] = {(0, 3): 5.0, (1, 1): 5.0, (-1, 1): 5.0, (0, 1): 0.0}
    wrong |= {(1, 2): float("nan"), (0, 2): float("inf")}
    assert costs(segments, wrong, ROOF) == costs(segments, {}, ROOF)


def test_the_whole_model_is_shared_out_by_the_roofline() -> None:
    found = costs(model(1e9, 3e9), {(0, 2): 40.4}, ROOF)
    assert found.basis is Basis.SCALED
    assert found.overhead_ms == pytest.approx(0.4)
    assert found.times_ms == pytest.approx((10.0, 30.0))


def test_the_default_overhead_is_at_most_a_tenth_of_a_short_model() -> None:
    found = costs(model(1e9, 3e9), {(0, 2): 1.0}, ROOF)
    assert found.overhead_ms == pytest.approx(0.1)
    assert found.milliseconds(0, 2) == pytest.approx(1.0)


def test_chunks_and_their_union_tell_the_overhead() -> None:
    measured = {(0, 1): 12.0, (1, 2): 22.0, (0, 2): 32.0}
    found = costs(model(1e9, 1e9), measured, ROOF)
    assert found.basis is Basis.MEASURED
    assert found.overhead_ms == pytest.approx(2.0, rel=0.02)
    assert found.times_ms == pytest.approx((10.0, 20.0), rel=0.02)


def test_the_overhead_is_never_negative() -> None:
    measured = {(0, 1): 10.0, (1, 2): 10.0, (0, 2): 25.0}
    found = costs(model(1e9, 1e9), measured, ROOF)
    assert found.overhead_ms == 0.0
    assert min(found.times_ms) > 0


def test_a_small_part_alone_scales_the_rest() -> None:
    found = costs(model(1e9, 1e9, 1e9, 1e9), {(0, 1): 10.0}, ROOF)
    assert found.basis is Basis.SCALED
    assert found.times_ms == pytest.approx([9.6] * 4)


def test_parts_that_cover_most_count_as_measured() -> None:
    found = costs(model(1e9, 1e9, 1e9, 1e9), {(0, 1): 10.0, (1, 3): 10.0}, ROOF)
    assert found.basis is Basis.MEASURED


@given(
    segments_of,
    st.dictionaries(
        st.tuples(st.integers(-1, 45), st.integers(-1, 45)),
        st.one_of(st.floats(0, 1e9), st.just(float("nan"))),
        max_size=20,
    ),
)
@settings(max_examples=200)
def test_times_are_positive_and_longer_ranges_cost_more(
    segments: list[Segment], measured: dict[Range, float]
) -> None:
    found = costs(segments, measured, ROOF)
    assert len(found.times_ms) == len(segments)
    assert all(0 < t < 1e10 for t in found.times_ms)
    assert 0 <= found.overhead_ms < 1e10
    for last in range(1, len(segments)):
        assert found.milliseconds(0, last) < found.milliseconds(0, last + 1)


@given(
    st.lists(st.builds(segment, macs=st.floats(1e7, 1e9)), min_size=8, max_size=60),
    st.integers(0, 1000),
    st.floats(0.0, 2.0),
)
@settings(max_examples=60)
def test_a_synthetic_board_with_noise_is_reproduced(
    segments: list[Segment], seed: int, overhead_ms: float
) -> None:
    board = Synthetic(segments, seed, overhead_ms)
    ranges = [*chunks(segments), (0, len(segments))]
    measured = {r: board.run(*r, noise=0.02) for r in ranges}
    found = costs(segments, measured, ROOF)
    assert found.basis is Basis.MEASURED
    for (a, b), ms in measured.items():
        assert found.milliseconds(a, b) == pytest.approx(ms, rel=0.08)
    # Runs of several chunks that were not measured are predicted as well.
    parts = chunks(segments)[:-1]
    for i in range(len(parts)):
        for j in range(i + 1, len(parts)):
            a, b = parts[i][0], parts[j][1]
            assert found.milliseconds(a, b) == pytest.approx(board.run(a, b), rel=0.15)


def test_without_noise_the_overhead_is_found() -> None:
    segments = model(*[1e9] * 24)
    board = Synthetic(segments, 1, 1.5)
    found = costs(segments, {r: board.run(*r) for r in [*chunks(segments), (0, 24)]}, ROOF)
    assert found.overhead_ms == pytest.approx(1.5, rel=0.05)


def test_roofs_of_boards() -> None:
    def gpu(*precisions: str) -> Accelerator:
        return Accelerator(kind="gpu", name="x", precisions=precisions)

    npu = Accelerator(kind="npu", name="x")
    assert roof([], 4).macs_per_s < roof([], 8).macs_per_s == roof([], 64).macs_per_s
    assert roof([], 0).macs_per_s > 0
    assert roof([gpu("fp32", "fp16")], 4).macs_per_s < roof([npu], 4).macs_per_s
    assert roof([gpu("fp16", "int8")], 4) == roof([gpu()], 4)
    assert roof([npu, Accelerator(kind="dla", name="d")], 4) == roof([npu], 4)
    assert roof([Accelerator(kind="tpu", name="t")], 4) == roof([], 4)
