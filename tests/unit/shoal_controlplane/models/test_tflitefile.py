from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.tflitefile import read_tflite
from shoal_shared.signature import ModelSignature, TensorSpec

flatbuffers = pytest.importorskip("flatbuffers", reason="flatbuffers is not installed: make setup")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")


def tensor(name: str, shape: list[int], buffer: int, free: list[int] | None = None) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.buffer = name, shape, buffer
    made.shapeSignature = free
    made.type = schema.TensorType.FLOAT32
    return made


def model(**changes: Any) -> bytes:
    """y = x + constant, x of shape [any, 3], as TFLite's own schema code writes it."""
    empty, constant = schema.BufferT(), schema.BufferT()
    constant.data = np.frombuffer(np.arange(3, dtype=np.float32).tobytes(), np.uint8)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
    operator.builtinOptions = schema.AddOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x", [1, 3], 0, [-1, 3]),
        tensor("constant", [3], 1),
        tensor("y", [1, 3], 0, [-1, 3]),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [empty, constant]
    for key, changed in changes.items():
        setattr(graph if hasattr(graph, key) else whole, key, changed)
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


WHOLE = model()


def test_signature_and_parameters() -> None:
    findings = read_tflite(WHOLE)
    assert findings.signature == ModelSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
    )
    assert (findings.parameters, findings.opset) == (3, None)


def test_it_reads_what_the_runtime_reads() -> None:
    runtime = interpreter.Interpreter(model_content=WHOLE)
    findings = read_tflite(WHOLE)
    for specs, details in (
        (findings.signature.inputs, runtime.get_input_details()),
        (findings.signature.outputs, runtime.get_output_details()),
    ):
        assert [spec.name for spec in specs] == [detail["name"] for detail in details]
        assert [spec.shape for spec in specs] == [
            tuple(detail["shape_signature"].tolist()) for detail in details
        ]


def changed_type(kind: int) -> bytes:
    tensors = [tensor("x", [1], 0), tensor("constant", [1], 1), tensor("y", [1], 0)]
    tensors[0].type = kind
    return model(tensors=tensors)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "identifier TFL3"),
        (b"TFL3TFL", "identifier TFL3"),
        (b"\0\0\0\0TFL4" + b"\0" * 100, "identifier TFL3"),
        (b"\xff\xff\xff\xffTFL3" + b"\0" * 100, "damaged"),
        (model(version=2), "schema version"),
        (model(operatorCodes=[]), "empty"),
        (model(subgraphs=[]), "empty"),
        (model(inputs=[7]), "damaged"),
        (model(inputs=[-1]), "damaged"),
        (model(buffers=[]), "damaged"),
        (model(inputs=[]), "0 inputs"),
        (model(inputs=[0, 0]), "same name"),
        (changed_type(8), "type 8"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidError) as caught:
        read_tflite(data)
    assert reason in str(caught.value)


@given(st.integers(0, len(WHOLE) - 1))
def test_a_truncated_model_is_read_alike_or_refused(length: int) -> None:
    try:
        assert read_tflite(WHOLE[:length]) == read_tflite(WHOLE)
    except InvalidError:
        pass


def test_a_model_that_lost_its_constants_is_refused() -> None:
    place = WHOLE.find(struct.pack("<3f", 0, 1, 2))
    assert place > 0
    with pytest.raises(InvalidError, match="damaged"):
        read_tflite(WHOLE[: place + 11] if place + 12 >= len(WHOLE) else WHOLE[:60])


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1))
def test_any_damage_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(WHOLE)
    for place, byte in changes:
        damaged[place] = byte
    try:
        read_tflite(bytes(damaged))
    except InvalidError:
        pass
