"""Stages composed are the whole, for many kinds of network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")

from support.architectures import ARCHITECTURES, Architecture, Session, run_stages

from shoal_controlplane.planner.cuts.cutter import extract_stages
from shoal_controlplane.planner.cuts.reading import read_model
from shoal_controlplane.planner.cuts.segments import CutGraph, cut_graph


@pytest.fixture(params=ARCHITECTURES, ids=lambda make: make.__name__, scope="module")
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param()


@pytest.fixture(scope="module")
def path(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(architecture.model, path)
    return path


@pytest.fixture(scope="module")
def cut(architecture: Architecture, path: Path) -> CutGraph:
    return cut_graph(read_model(path), architecture.shapes)


def all_bounds(count: int) -> Iterator[Sequence[int]]:
    """None, every single cut, some of several, and all at once."""
    yield (0, count)
    yield from ((0, place, count) for place in range(1, count))
    for step in (2, 3):
        yield (*range(0, count, step), count)
    yield range(count + 1)


def test_it_can_be_cut(cut: CutGraph) -> None:
    assert len(cut.analysis.segments) >= 4
    assert cut.analysis.reason == ""


def test_every_node_is_in_one_segment(cut: CutGraph) -> None:
    units = cut.graph.units
    inside = [unit for a, b in pairwise(cut.starts) for unit in units[a:b]]
    assert [id(unit) for unit in inside] == [id(unit) for unit in units]
    assert all(a < b for a, b in pairwise(cut.starts))
    # All nodes of the file are units or make constants: none of these networks has dead ones.
    made = {name for unit in units for name in unit.gives} | set(cut.graph.folded)
    assert {name for node in cut.graph.model.graph.node for name in node.output} == made


def test_costs_are_those_of_the_parts(architecture: Architecture, cut: CutGraph) -> None:
    analysis = cut.analysis
    for segment, tensors in zip(analysis.segments[:-1], analysis.cuts, strict=True):
        assert segment.out_bytes == sum(tensor.size for tensor in tensors) > 0
        assert segment.moved_bytes > 0
        assert segment.peak_bytes > 0
    assert sum(segment.macs for segment in analysis.segments) > 0
    assert {tensor.name: tensor.shape for tensor in analysis.inputs} == analysis.shapes
    for tensor in analysis.inputs:
        assert tensor.shape == architecture.feeds[tensor.name].shape
        assert tensor.size == architecture.feeds[tensor.name].nbytes


@pytest.mark.parametrize("level", ["none", "extended", "all"])
def test_stages_composed_equal_the_whole(
    architecture: Architecture, path: Path, cut: CutGraph, tmp_path: Path, level: str
) -> None:
    # ONNX Runtime lays convolutions out in blocks of channels up to a boundary ("all"), and moves
    # a Transpose through a mean if both are in one stage: sums are in another order then.
    moves_transpositions = architecture.name == "free width"
    whole = Session(path, level=level)
    cases = [
        (feeds, whole.run(feeds)) for feeds in (architecture.feeds, architecture.wider) if feeds
    ]
    sizes = {tensor.name: tensor for tensors in cut.analysis.cuts for tensor in tensors}
    for bounds in all_bounds(len(cut.analysis.segments)):
        stages = extract_stages(path, architecture.shapes, bounds, tmp_path)
        sessions = [Session(tmp_path / stage.filename, level=level) for stage in stages]
        for stage, session in zip(stages, sessions, strict=True):
            assert session.inputs == tuple(tensor.name for tensor in stage.inputs)
            assert session.outputs == stage.outputs
        for feeds, expected in cases:
            found = run_stages(stages, sessions, feeds)
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                if level == "none" or (level == "extended" and not moves_transpositions):
                    np.testing.assert_array_equal(found[name], values)
                else:
                    np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
        # What crosses has the size that the analysis told.
        message = dict(architecture.feeds)
        for stage, session in zip(stages, sessions, strict=True):
            message = {**session.run(message), **{name: message[name] for name in stage.passes}}
            if stage.last < len(cut.analysis.segments):
                assert {n: (v.shape, v.nbytes) for n, v in message.items()} == {
                    t.name: (t.shape, sizes[t.name].size) for t in cut.analysis.cuts[stage.last - 1]
                }


def test_a_stage_is_the_same_file_each_time(
    architecture: Architecture, path: Path, cut: CutGraph, tmp_path: Path
) -> None:
    bounds = (0, 2, len(cut.analysis.segments))
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        results.append(extract_stages(path, architecture.shapes, bounds, tmp_path / name))
    assert results[0] == results[1]
    assert len({stage.digest for stage in results[0]}) == 2
    metadata = onnx.load(tmp_path / "one" / results[0][1].filename).metadata_props
    assert [(entry.key, entry.value) for entry in metadata] == [("origin", "tests")]
