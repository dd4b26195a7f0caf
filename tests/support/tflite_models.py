"""Small TFLite models for tests, built on the spot. Needs ai-edge-litert and flatbuffers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

FLOAT = schema.TensorType.FLOAT32
ADD, ABS = schema.BuiltinOperator.ADD, schema.BuiltinOperator.ABS
ADDS = (ADD, ABS, ADD, ADD, ABS)
"""`chain` of these is the file tests/fixtures/tflite/adds.tflite, of shape [-1, 4]: y = 8 |x|."""


def chain(
    path: Path,
    operators: Sequence[int],
    shape: Sequence[int],
    kind: int = FLOAT,
    options: tuple[int, Any] | None = None,
) -> Path:
    """Operators in a row from `x` to `y`, all tensors of one kind and of a shape with -1 for
    free; ADD adds a tensor to itself. `options` are those of operators other than ADD."""
    model = schema.ModelT()
    model.version, model.buffers = 3, [schema.BufferT()]
    codes = sorted(set(operators))
    model.operatorCodes = [_code(operator) for operator in codes]
    names = ["x", *(f"t{n}" for n in range(1, len(operators))), "y"]
    graph = schema.SubGraphT()
    graph.tensors = [_tensor(name, kind, shape) for name in names]
    graph.operators = []
    for operator, (given, made) in zip(operators, pairwise(range(len(names))), strict=True):
        node = schema.OperatorT()
        node.opcodeIndex = codes.index(operator)
        node.inputs, node.outputs = [given] * (2 if operator == ADD else 1), [made]
        known = (schema.BuiltinOptions.AddOptions, schema.AddOptionsT())
        if operator == ADD or options is not None:
            node.builtinOptionsType, node.builtinOptions = known if operator == ADD else options
        graph.operators.append(node)
    graph.inputs, graph.outputs = [0], [len(names) - 1]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def _code(operator: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = operator
    code.version = 1
    return code


def _tensor(name: str, kind: int, shape: Sequence[int]) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.buffer = name, kind, 0
    tensor.shape, tensor.shapeSignature = [max(n, 1) for n in shape], list(shape)
    return tensor
