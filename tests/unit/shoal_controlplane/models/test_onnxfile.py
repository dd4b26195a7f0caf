from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.onnxfile import read_onnx
from shoal_shared.signature import ModelSignature, TensorSpec

WEIGHTS = numpy_helper.from_array(np.ones((3, 2), np.float32), "weights")


def value(name: str, kind: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def linear(
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    weights: onnx.TensorProto = WEIGHTS,
    nodes: list[onnx.NodeProto] | None = None,
) -> onnx.ModelProto:
    """y = x · weights, or other `nodes`."""
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "linear",
        [value("x", TensorProto.FLOAT, ["N", 3])] if inputs is None else inputs,
        [value("y", TensorProto.FLOAT, ["N", 2])] if outputs is None else outputs,
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(tmp_path: Path, model: onnx.ModelProto | bytes) -> Path:
    path = tmp_path / "artifact"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def test_signature_opset_and_parameters(tmp_path: Path) -> None:
    findings = read_onnx(saved(tmp_path, linear()))
    assert findings.signature == ModelSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
    )
    assert findings.signature.batchable
    assert (findings.opset, findings.parameters) == (17, 6)


def test_constants_are_no_inputs_even_if_the_graph_lists_them(tmp_path: Path) -> None:
    inputs = [value("x", TensorProto.FLOAT, [-1, 3]), value("weights", TensorProto.FLOAT, [3, 2])]
    findings = read_onnx(saved(tmp_path, linear(inputs)))
    assert findings.signature.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.UINT64, "UINT64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.BFLOAT16, "BF16"),
        (TensorProto.DOUBLE, "FP64"),
        (TensorProto.STRING, "BYTES"),
    ],
)
def test_datatypes_and_free_dimensions(tmp_path: Path, kind: int, datatype: str) -> None:
    ends = [value("x", kind, [None, "width", 4])], [value("y", kind, [None, "width", -4])]
    model = linear(*ends, nodes=[helper.make_node("Identity", ["x"], ["y"])])
    signature = read_onnx(saved(tmp_path, model)).signature
    assert signature.inputs == (TensorSpec(name="x", datatype=datatype, shape=(-1, -1, 4)),)
    # Some exporters write a free size as a negative one.
    assert signature.outputs == (TensorSpec(name="y", datatype=datatype, shape=(-1, -1, -1)),)


def external() -> onnx.ModelProto:
    weights = onnx.TensorProto()
    weights.CopyFrom(WEIGHTS)
    onnx.external_data_helper.set_external_data(weights, "/etc/passwd")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    return linear(weights=weights)


def external_in_a_branch() -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["c"], value=external().graph.initializer[0])
    branch = helper.make_graph([constant], "branch", [], [value("c", TensorProto.FLOAT, [3, 2])])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    return linear([value("x", TensorProto.BOOL, [])], nodes=[node])


def short() -> onnx.ModelProto:
    weights = onnx.TensorProto()
    weights.CopyFrom(WEIGHTS)
    weights.raw_data = weights.raw_data[:-1]
    return linear(weights=weights)


def sequence() -> onnx.ModelProto:
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [3])
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    return linear(outputs=[output], nodes=[node])


def identity(kind: int, shape: list[int | str | None] | None) -> onnx.ModelProto:
    ends = [value("x", kind, shape)], [value("y", kind, shape)]
    return linear(*ends, nodes=[helper.make_node("Identity", ["x"], ["y"])])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (b"", "has no version or no graph"),
        (b"not a model at all", "is not an ONNX model"),
        (linear().SerializeToString()[:-7], "not"),
        (external(), "without external data"),
        (external_in_a_branch(), "without external data"),
        (short(), "has 23 bytes, not 24"),
        (sequence(), "'y' is no tensor"),
        (identity(TensorProto.FLOAT, None), "'shape'"),
        (identity(TensorProto.COMPLEX64, [1]), "COMPLEX64"),
        (linear(inputs=[]), "not valid"),
        (linear(nodes=[helper.make_node("NoSuchOperator", ["x"], ["y"])]), "NoSuchOperator"),
        (linear(outputs=[]), "0 outputs"),
        (identity(TensorProto.FLOAT, [1] * 40), "impossible shape"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(
    tmp_path: Path, model: onnx.ModelProto | bytes, reason: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        read_onnx(saved(tmp_path, model))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_name_with_control_characters_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x\x1b[2J"], ["y"])
    model = linear([value("x\x1b[2J", TensorProto.FLOAT, [1])], nodes=[node])
    with pytest.raises(InvalidError, match="printable"):
        read_onnx(saved(tmp_path, model))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(linear().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        read_onnx(saved(tmp_path, bytes(whole[:cut])))
    except InvalidError as error:
        assert "\n" not in str(error)
