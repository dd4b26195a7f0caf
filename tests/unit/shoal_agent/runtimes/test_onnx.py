from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")
onnx = pytest.importorskip("onnx", reason="onnx is not installed: make setup")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from support import onnx_models  # noqa: E402

from shoal_agent.runtimes.base import RuntimeLoadError, RuntimeRunError  # noqa: E402
from shoal_agent.runtimes.onnx import OnnxRuntime  # noqa: E402
from shoal_shared.tensors import NUMPY  # noqa: E402


def _save(path: Path, nodes, inputs, outputs, *, opset: int = 17, **save) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, save.pop("weights", []))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path, **save)
    return path


def _value(name: str, shape, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize("datatype", sorted(NUMPY))
def test_every_datatype_passes_through_unchanged(tmp_path: Path, datatype: str) -> None:
    model = OnnxRuntime().load(onnx_models.identity(tmp_path / "m.onnx", datatype), {})

    (spec,) = model.signature.inputs
    assert (spec.name, spec.datatype, spec.shape) == ("x", datatype, (-1, -1))
    assert model.signature.batchable
    assert model.providers == ("CPUExecutionProvider",)
    if datatype == "BYTES":
        given = np.array([[b"a", b""], ["ü".encode(), b"a\0b"]], dtype=object)
    else:
        given = np.array([[0, 1], [1, 0]]).astype(NUMPY[datatype])
    for array in (given, given[:0]):
        out = model.run({"x": array})["y"]
        assert out.shape == array.shape
        assert out.dtype == array.dtype
        assert out.tolist() == array.tolist()


def test_bf16_keeps_its_bits(tmp_path: Path) -> None:
    model = OnnxRuntime().load(onnx_models.identity(tmp_path / "m.onnx", "BF16"), {})
    bits = np.array([[0x7FC0, 0xFF80, 0x3F80]], np.uint16)
    assert model.run({"x": bits})["y"].tolist() == bits.tolist()


def test_read_only_and_unaligned_input_and_nan(tmp_path: Path) -> None:
    model = OnnxRuntime().load(onnx_models.identity(tmp_path / "m.onnx", "FP32"), {})
    data = b"\0" + np.array([1, np.nan, 3], "<f4").tobytes()
    array = np.frombuffer(memoryview(data)[1:], "<f4").reshape(1, 3)
    assert model.run({"x": array})["y"].tobytes() == data[1:]


def test_strings_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    model = OnnxRuntime().load(onnx_models.identity(tmp_path / "m.onnx", "BYTES"), {})
    with pytest.raises(RuntimeRunError, match="input 'x' holds bytes that are not UTF-8"):
        model.run({"x": np.array([[b"\xff"]], dtype=object)})


def test_fixed_and_symbolic_dimensions(tmp_path: Path) -> None:
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [_value("x", ["n", 3, None])],
        [_value("y", ["n", 3, None])],
    )
    (spec,) = OnnxRuntime().load(path, {}).signature.inputs
    assert spec.shape == (-1, 3, -1)


def test_a_failing_run_says_why_in_one_line(tmp_path: Path) -> None:
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("Gather", ["t", "i"], ["y"])],
        [_value("t", [3]), _value("i", ["n"], TensorProto.INT64)],
        [_value("y", ["n"])],
    )
    model = OnnxRuntime().load(path, {})
    table = np.zeros(3, "<f4")
    with pytest.raises(RuntimeRunError, match=r"the model failed: .*out of data bounds") as caught:
        model.run({"t": table, "i": np.array([7], "<i8")})
    assert "\n" not in str(caught.value)
    assert model.run({"t": table, "i": np.array([2], "<i8")})["y"].tolist() == [0]


def _valid(tmp_path: Path) -> bytes:
    return onnx_models.dense(tmp_path / "valid.onnx").read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"not a model" * 50, id="garbage"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="truncated"),
        pytest.param(lambda whole: whole[:40] + b"\xff" * 40 + whole[80:], id="damaged"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content(_valid(tmp_path)))
    with pytest.raises(RuntimeLoadError, match="cannot load the model") as caught:
        OnnxRuntime().load(path, {})
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeLoadError, match="File doesn't exist"):
        OnnxRuntime().load(tmp_path / "none.onnx", {})


def test_an_opset_from_the_future_is_refused(tmp_path: Path) -> None:
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [_value("x", [1])],
        [_value("y", [1])],
        opset=99,
    )
    with pytest.raises(RuntimeLoadError, match="official released"):
        OnnxRuntime().load(path, {})


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [_value("x", ["n", 64])],
        [_value("y", ["n", 64])],
        weights=[weights],
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    (tmp_path / "w.bin").unlink()
    with pytest.raises(RuntimeLoadError, match=r"w\.bin"):
        OnnxRuntime().load(path, {})


def test_an_output_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    sequence = helper.make_sequence_type_proto(
        helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [_value("x", ["n"])],
        [helper.make_value_info("y", sequence)],
    )
    with pytest.raises(RuntimeLoadError, match="output 'y' is seq"):
        OnnxRuntime().load(path, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"providers": "CPUExecutionProvider"}, "must be a list"),
        ({"providers": []}, "must be a list"),
        ({"providers": [7]}, "names or pairs"),
        ({"providers": [["CPUExecutionProvider", 3]]}, "names or pairs"),
        ({"providers": ["NoSuchProvider"]}, "'NoSuchProvider' is not available"),
        ({"intra_op_threads": -1}, "between 0 and 256"),
        ({"intra_op_threads": True}, "whole number"),
        ({"intra_op_threads": "4"}, "whole number"),
        ({"graph_optimization": "most"}, "one of none, basic"),
        ({"graph_optimization": ["all"]}, "one of none, basic"),
        ({"spinning": 1}, "true or false"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options, message: str) -> None:
    path = onnx_models.add(tmp_path / "m.onnx")
    with pytest.raises(RuntimeLoadError, match=message):
        OnnxRuntime().load(path, options)


def test_options_that_are_right(tmp_path: Path) -> None:
    path = onnx_models.add(tmp_path / "m.onnx")
    options = {
        "providers": [["CPUExecutionProvider", {"use_arena": True}]],
        "intra_op_threads": 1,
        "graph_optimization": "basic",
        "spinning": True,
        "profile_shapes": {"a": [1, 4]},
    }
    ones = np.ones((2, 4), "<f4")
    model = OnnxRuntime().load(path, options)
    assert model.run({"a": ones, "b": ones})["sum"].tolist() == (ones * 2).tolist()
    model.close()


def test_libraries_stay_silent_about_a_bad_model(tmp_path: Path, capfd) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x" * 100)
    with pytest.raises(RuntimeLoadError):
        OnnxRuntime().load(path, {})
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
