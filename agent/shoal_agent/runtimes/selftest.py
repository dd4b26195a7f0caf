"""Tiny models that every provider can run, to see whether one does.

relu(x · w + b) as ONNX, relu(x + x) as TFLite.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from shoal_agent.runtimes.wire import integer, message
from shoal_shared.golden import Case, Golden
from shoal_shared.tensors import Array

_IR_VERSION, _OPSET = 8, 13
_FLOAT = 1  # onnx.TensorProto.FLOAT
_INPUTS, _OUTPUTS = 16, 8

# Written with the schema of ai-edge-litert: one ADD of x with itself, with a fused RELU.
_TFLITE = base64.b64decode(
    b"GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAYAAAA9AAAAAMAAAABAAAABAAAABT///8BAAAAEAAAAAwA"
    b"FAAQAAwACAAEAAwAAAAQAAAAXAAAAGAAAABkAAAAAQAAABQAAAAAAA4AFgAAABAADAALAAQADgAAABgAAAAAAAAL"
    b"GAAAABwAAAAAAAYACAAHAAYAAAAAAAABAQAAAAEAAAACAAAAAAAAAAAAAAABAAAAAQAAAAEAAAAAAAAAAgAAADQA"
    b"AAAEAAAA4P///wgAAAAMAAAAAQAAAHkAAAACAAAAAQAAABAAAAAMAAwACAAAAAAABAAMAAAACAAAAAwAAAABAAAA"
    b"eAAAAAIAAAABAAAAEAAAAAEAAAAIAAAABAAEAAQAAAA="
)


@dataclass(frozen=True)
class SelfTest:
    """A model file, and what it must answer."""

    model: bytes
    golden: Golden


def self_test(model_format: str = "onnx") -> SelfTest:
    """The model of a format, "onnx" or "tflite"; always the same, FP32 with fixed shapes.

    ONNX from x of [1, 16] to y of [1, 8], TFLite from x of [1, 16] to y of [1, 16].
    """
    rng = np.random.default_rng(7)
    weights = rng.uniform(-1, 1, (_INPUTS, _OUTPUTS)).astype("<f4")
    bias = rng.uniform(-1, 1, _OUTPUTS).astype("<f4")
    x = rng.uniform(-1, 1, (1, _INPUTS)).astype("<f4")
    if model_format == "tflite":
        return SelfTest(_TFLITE, Golden((Case({"x": x}, {"y": np.maximum(x + x, 0)}),)))
    y = np.maximum(x @ weights + bias, 0)
    return SelfTest(_onnx(weights, bias), Golden((Case({"x": x}, {"y": y}),)))


def _onnx(weights: Array, bias: Array) -> bytes:
    graph = b"".join(
        [
            _node("MatMul", ("x", "w"), "m"),
            _node("Add", ("m", "b"), "a"),
            _node("Relu", ("a",), "y"),
            message(2, b"selftest"),
            message(5, _tensor("w", weights)),
            message(5, _tensor("b", bias)),
            message(11, _value("x", (1, _INPUTS))),
            message(12, _value("y", (1, _OUTPUTS))),
        ]
    )
    return integer(1, _IR_VERSION) + message(7, graph) + message(8, integer(2, _OPSET))


# Field numbers are those of onnx.proto: NodeProto, TensorProto, ValueInfoProto.


def _node(kind: str, inputs: tuple[str, ...], output: str) -> bytes:
    content = b"".join(message(1, name.encode()) for name in inputs)
    content += message(2, output.encode()) + message(3, output.encode())
    return message(1, content + message(4, kind.encode()))


def _tensor(name: str, array: Array) -> bytes:
    dims = b"".join(integer(1, size) for size in array.shape)
    return dims + integer(2, _FLOAT) + message(8, name.encode()) + message(9, array.tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(message(1, integer(1, size)) for size in shape)
    tensor = integer(1, _FLOAT) + message(2, dims)
    return message(1, name.encode()) + message(2, message(1, tensor))
