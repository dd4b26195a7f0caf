"""Cutting in a child process: the same results, and sentences for all that is hostile."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.architectures import FLOAT, Builder, free_width

from shoal_controlplane.planner.cuts.analysis import CutError
from shoal_controlplane.planner.cuts.cutter import (
    analyse,
    analyse_model,
    extract,
    extract_stages,
)


def model_of(nodes: list[onnx.NodeProto], dims: tuple[int | str, ...] = (1, 4)) -> onnx.ModelProto:
    """A model from `x` to `y` that nobody has checked."""
    ends = [[helper.make_tensor_value_info(name, FLOAT, dims)] for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 16)]
    return helper.make_model(
        helper.make_graph(nodes, "graph", *ends), opset_imports=opsets, ir_version=8
    )


def relu(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [target])


def valid() -> onnx.ModelProto:
    b = Builder()
    b.node("Relu", b.linear(b.node("Relu", b.linear("x", 4, 4)), 4, 4), out="y")
    return b.build({"x": (FLOAT, [1, 4])}, {"y": (FLOAT, [1, 4])})


def without_opset() -> bytes:
    model = model_of([relu("x", "y")])
    del model.opset_import[:]
    return model.SerializeToString()


def external() -> bytes:
    model = valid()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return model.SerializeToString()


def external_in_a_body() -> bytes:
    tensor = numpy_helper.from_array(np.float32([1]), "secret")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["out"], value=tensor)
    out = helper.make_tensor_value_info("out", FLOAT, None)
    body = helper.make_graph([constant], "body", [], [out])
    nodes = [
        helper.make_node("Cast", ["x"], ["go"], to=TensorProto.BOOL),
        helper.make_node("If", ["go"], ["y"], then_branch=body, else_branch=body),
    ]
    return model_of(nodes, ()).SerializeToString()


def two_of_a_name() -> bytes:
    return model_of([relu("x", "a"), relu("a", "a"), relu("a", "y")]).SerializeToString()


def shadowed_input() -> bytes:
    return model_of([relu("x", "x"), relu("x", "y")]).SerializeToString()


def from_nowhere() -> bytes:
    node = helper.make_node("Add", ["x", "ghost\x1b[2J"], ["y"])
    return model_of([node]).SerializeToString()


def without_a_type() -> bytes:
    model = model_of([relu("x", "y")])
    model.graph.input[0].type.Clear()
    return model.SerializeToString()


HOSTILE: tuple[tuple[str, Callable[[], bytes], str], ...] = (
    ("no model", lambda: b"not a model", "not an ONNX model"),
    ("empty", lambda: b"", "not an ONNX model"),
    ("truncated", lambda: valid().SerializeToString()[:-40], "not an ONNX model"),
    ("no graph", lambda: b"\x08\x08", "no version or no graph"),
    (
        "cycle",
        lambda: model_of([relu("b", "a"), relu("a", "b"), relu("b", "y")]).SerializeToString(),
        "has a cycle, near 'a'",
    ),
    ("cycle of one", lambda: model_of([relu("y", "y")]).SerializeToString(), "cycle"),
    ("two of a name", two_of_a_name, "two nodes make 'a'"),
    ("shadowed input", shadowed_input, "not valid|cycle"),
    ("from nowhere", from_nowhere, "not valid"),
    ("no opset", without_opset, "operators' version"),
    ("no type", without_a_type, "not valid"),
    ("external", external, "in another file"),
    ("external in a body", external_in_a_body, "in another file"),
    (
        "enormous",
        lambda: model_of([relu("x", "y")], (2**40, 2**40)).SerializeToString(),
        "too large",
    ),
    (
        "overflowing",
        lambda: model_of([relu("x", "y")], (2**30, 2**30)).SerializeToString(),
        "too large",
    ),
)


@pytest.mark.parametrize(
    ("data", "sentence"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_a_hostile_file_is_a_sentence(
    tmp_path: Path, data: Callable[[], bytes], sentence: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data())
    with pytest.raises(CutError, match=sentence) as caught:
        analyse_model(path, {})
    assert "\n" not in str(caught.value)
    with pytest.raises(CutError, match=sentence):
        extract_stages(path, {}, (0, 1), tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_constant_that_grows_enormous_is_not_computed(tmp_path: Path) -> None:
    size = numpy_helper.from_array(np.int64([2**20, 2**20]), "size")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["a"]),
        relu("a", "y"),
    ]
    model = model_of(nodes)
    model.graph.initializer.append(size)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert analyse_model(path, {}).segments


async def test_a_child_finds_what_this_process_finds(tmp_path: Path) -> None:
    model = free_width()
    path = tmp_path / "model.onnx"
    onnx.save(model.model, path)
    analysis = await analyse(path, model.shapes)
    assert analysis == analyse_model(path, model.shapes)
    bounds = (0, 3, len(analysis.segments))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    stages = await extract(path, model.shapes, bounds, theirs)
    assert stages == extract_stages(path, model.shapes, bounds, ours)
    names = sorted(stage.filename for stage in stages)
    assert sorted(file.name for file in theirs.iterdir()) == names
    for name in names:
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()


async def test_a_sentence_comes_back_from_the_child(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(from_nowhere())
    with pytest.raises(CutError, match="not valid") as caught:
        await analyse(path, {})
    assert str(caught.value).isprintable()
    with pytest.raises(CutError, match="cannot be read"):
        await analyse(tmp_path / "missing", {})
    with pytest.raises(CutError, match="cannot be written"):
        await extract(path, {}, (0, 1), tmp_path / "missing")
    onnx.save(valid(), path)
    with pytest.raises(CutError, match="bounds"):
        await extract(path, {}, (0, 9), tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def impostor(tmp_path: Path, script: str) -> str:
    """An interpreter in place of Python that does what a hostile file makes the child do."""
    path = tmp_path / "impostor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("script", ["kill -9 $$", "exit 1", "echo '{'", "echo '{\"stages\": 1}'"])
async def test_a_crash_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(valid(), path)
    monkeypatch.setattr(sys, "executable", impostor(tmp_path, script))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(CutError, match="crash"):
        await extract(path, {}, (0, 1), folder)
    assert list(folder.iterdir()) == []


async def test_a_hang_is_a_sentence_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(valid(), path)
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"
    monkeypatch.setattr(sys, "executable", impostor(tmp_path, script))
    with pytest.raises(CutError, match="within"):
        await analyse(path, {}, timeout_s=0.05)
    if pid.exists():  # else it was killed before it could say so
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
