"""Small ONNX models for tests, built on the spot."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def save(path: Path, nodes: list[onnx.NodeProto], inputs: list, outputs: list, weights=()) -> Path:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, list(weights))
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="shoal"
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def identity(path: Path, datatype: str, shape=("N", "M")) -> Path:
    """`y` = `x`, any values of `datatype`, two free dimensions."""
    kind = ELEMENT_TYPES[datatype]
    return save(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )


def add(path: Path) -> Path:
    """`sum` = `a` + `b`, FP32 [N, 4]."""
    return save(
        path,
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ("a", "b")],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 4])],
    )


def dense(path: Path, inputs: int = 16, outputs: int = 4, seed: int = 0) -> Path:
    """`y` = relu(`x` W), FP32 [N, inputs] to [N, outputs]; the weights follow from `seed`."""
    weights = np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32)
    return save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", outputs])],
        [numpy_helper.from_array(weights, "w")],
    )


def slow(path: Path, size: int = 256, rounds: int = 100) -> Path:
    """`y` = `x` times a matrix, `rounds` times over: takes a while, FP32 [N, size]."""
    weights = np.eye(size, dtype=np.float32)
    names = ["x", *(f"h{i}" for i in range(rounds - 1)), "y"]
    # Alternating products and sums, so that the optimiser cannot fold them into one.
    nodes = []
    for i, (a, b) in enumerate(itertools.pairwise(names)):
        nodes.append(helper.make_node("MatMul", [a, "w"], [f"m{i}"]))
        nodes.append(helper.make_node("Sin", [f"m{i}"], [b]))
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size])],
        [numpy_helper.from_array(weights, "w")],
    )
