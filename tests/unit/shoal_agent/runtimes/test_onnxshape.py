from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal_agent.runtimes.base import RuntimeLoadError
from shoal_agent.runtimes.onnxshape import checked_static_shapes, fix_shapes, read_dims
from shoal_agent.runtimes.selftest import self_test
from shoal_agent.runtimes.wire import integer, message

onnx = pytest.importorskip("onnx", reason="onnx is not installed: make setup")
ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SHAPE = {"x": (1, 3, 48, 192)}


def _value(name: str, shape: list[int | str] | None):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """As PP-OCR's models are: height and width have one name, and so have the values between.

    The convolution's weights are listed among the inputs, as ONNX of version 3 demands.
    """
    weights = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
        helper.make_node("Shape", ["y"], ["s"]),
    ]
    size = helper.make_tensor_value_info("s", TensorProto.INT64, [4])
    graph = helper.make_graph(
        nodes,
        "g",
        [_value("x", ["N", 3, "?", "?"]), _value("w", [4, 3, 3, 3])],
        [_value("y", ["N", 4, "?", "?"]), size],
        [numpy_helper.from_array(weights, "w")],
        value_info=[_value("c", ["N", 4, "?", "?"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def _session(path: Path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_shapes_are_read_without_constants(picture: Path) -> None:
    dims = read_dims(picture)
    assert dims.inputs == {"x": (-1, 3, -1, -1)}
    assert dims.outputs == {"y": (-1, 4, -1, -1), "s": (4,)}


def test_dimensions_of_one_name_are_fixed_by_position(picture: Path, tmp_path: Path) -> None:
    target = tmp_path / "fixed.onnx"
    fix_shapes(picture, target, SHAPE)
    assert read_dims(target).inputs == SHAPE
    session = _session(target)
    assert session.get_inputs()[0].shape == [1, 3, 48, 192]
    x = np.random.default_rng(2).normal(size=SHAPE["x"]).astype(np.float32)
    y, size = session.run(None, {"x": x})
    assert size.tolist() == [1, 4, 24, 192]
    assert np.array_equal(y, _session(picture).run(["y"], {"x": x})[0])


def test_all_else_stays_byte_for_byte(picture: Path, tmp_path: Path) -> None:
    unknown = integer(900, 5) + message(901, b"metadata of tomorrow")
    picture.write_bytes(unknown + picture.read_bytes() + unknown)
    target = tmp_path / "fixed.onnx"
    fix_shapes(picture, target, SHAPE)
    before, after = onnx.load(picture), onnx.load(target)
    onnx.checker.check_model(after)
    assert target.read_bytes().startswith(unknown)
    assert target.read_bytes().endswith(unknown)
    assert [len(g.value_info) for g in (before.graph, after.graph)] == [1, 0]
    shape = before.graph.input[0].type.tensor_type.shape
    for dim, size in zip(shape.dim, SHAPE["x"], strict=True):
        dim.dim_value = size
    del before.graph.value_info[:]
    assert after == before


def test_a_model_that_is_fixed_already_stays_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(self_test().model)
    fix_shapes(source, target, {})
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({}, r"'x' has free dimensions.*static_shapes"),
        ({"x": (1, 3, 48)}, r"'x' cannot be fixed to \[1, 3, 48\]: the model takes \[-1, 3, -1"),
        ({"x": (1, 4, 48, 192)}, "cannot be fixed"),
        ({"x": (1, 3, 0, 192)}, "cannot be fixed"),
        ({"x": (1, 3, -1, 192)}, "cannot be fixed"),
        ({"x": (1, 3, 2**31, 192)}, "cannot be fixed"),
        ({**SHAPE, "z": (1,)}, "'z', which is no input; inputs are x"),
        ({**SHAPE, "w": (4, 3, 3, 3)}, "'w', which is no input"),
    ],
)
def test_shapes_that_do_not_fit(picture: Path, tmp_path: Path, shapes, says: str) -> None:
    target = tmp_path / "fixed.onnx"
    with pytest.raises(RuntimeLoadError, match=says):
        fix_shapes(picture, target, shapes)
    assert not target.exists()


def test_files_that_cannot_be_used(picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.onnx"
    with pytest.raises(RuntimeLoadError, match="cannot be read: No such file"):
        read_dims(file)
    for content, says in (
        (b"", "empty"),
        (b"\xff" * 40, "damaged"),
        (b"PK\3\4 a zip", "damaged"),
        (integer(1, 8), "damaged"),  # No graph.
        (message(7, b"") * 2, "damaged"),  # Two.
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "damaged"),  # A graph of 2**63 bytes.
    ):
        file.write_bytes(content)
        with pytest.raises(RuntimeLoadError, match=says):
            read_dims(file)
    with pytest.raises(RuntimeLoadError, match="cannot be written: Is a directory"):
        fix_shapes(picture, tmp_path, SHAPE)


def _survives(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        fix_shapes(path, path.with_name("out.onnx"), SHAPE)
    except RuntimeLoadError as error:
        assert "\n" not in str(error)


def test_every_truncation_is_a_sentence(picture: Path, tmp_path: Path) -> None:
    whole = picture.read_bytes()
    for length in range(0, len(whole), 3):
        _survives(tmp_path / "cut.onnx", whole[:length])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1),
    st.binary(max_size=8),
)
def test_damaged_files_are_a_sentence(
    picture: Path, tmp_path: Path, changes: list[tuple[float, int]], extra: bytes
) -> None:
    content = bytearray(picture.read_bytes())
    for where, value in changes:
        content[int(where * len(content))] = value
    _survives(tmp_path / "damaged.onnx", bytes(content) + extra)


def test_static_shapes_of_a_deployment() -> None:
    assert checked_static_shapes({}) is None
    assert checked_static_shapes({"static_shapes": {"x": [1, 3]}}) == {"x": (1, 3)}
    for wrong in (1, [1], {"x": 1}, {"x": "12"}, {"x": [0]}, {"x": [True]}, {"x": [1.5]}):
        with pytest.raises(RuntimeLoadError, match="static_shapes"):
            checked_static_shapes({"static_shapes": wrong})
