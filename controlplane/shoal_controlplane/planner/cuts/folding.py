"""Arithmetic on shapes: values that follow from constants and from shapes that are known.

Shape inference propagates few of them (not through Slice, for one), and without them all that is
reshaped by them is of unknown size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from shoal_controlplane.planner.cuts.analysis import CutError
from shoal_shared.tensors import Array

SMALL = 1024
"""Elements of a constant whose values shapes may depend on."""

_ARITHMETIC = frozenset(
    (
        *("Shape", "Size", "Constant", "ConstantOfShape", "Identity", "Cast", "Floor", "Ceil"),
        *("Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Split", "Where"),
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Max", "Min", "ReduceProd"),
        *("Equal", "Not", "And", "Or", "Greater", "Less"),
    )
)


def fold_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...] | None]) -> bool:
    """Replace nodes of a model by the constants that they give; whether there were any."""
    graph = model.graph
    values: dict[str, Array] = {tensor.name: _array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        results = _evaluated(model, node, values, shapes)
        if results is None:
            nodes.append(node)
            continue
        for name, value in zip(node.output, results, strict=True):
            values[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
    if len(nodes) == len(graph.node):
        return False
    kept = onnx.GraphProto()
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)
    return True


def _array(tensor: onnx.TensorProto) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, KeyError, TypeError):
        raise CutError(
            f"The model is damaged: the bytes of '{tensor.name[:80]}' do not fit its shape."
        ) from None


def _evaluated(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    values: dict[str, Array],
    shapes: Mapping[str, tuple[int, ...] | None],
) -> list[Array] | None:
    """Outputs of a node if they are known and small."""
    if node.op_type not in _ARITHMETIC or node.domain not in ("", "ai.onnx"):
        return None
    feeds: dict[str, Any] = {}
    for name in node.input:
        if name in values:
            feeds[name] = values[name]
        elif name and node.op_type in ("Shape", "Size"):
            dims = shapes.get(name)
            if dims is None:
                return None
            # An array of that shape which takes no memory.
            feeds[name] = np.broadcast_to(np.int8(0), dims)
        elif name:
            return None
    try:
        if node.op_type == "ConstantOfShape" and math.prod(feeds[node.input[0]].tolist()) > SMALL:
            return None
        graph = onnx.helper.make_graph(
            [node],
            "node",
            [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
            [onnx.helper.make_empty_tensor_value_info(name) for name in node.output],
        )
        single = onnx.helper.make_model(graph, opset_imports=model.opset_import)
        results = ReferenceEvaluator(single).run(None, feeds)
    except Exception:
        # It raises whatever Python does on nonsense; then the shape just stays unknown.
        return None
    arrays = [np.asarray(result) for result in results]
    return arrays if all(array.size <= SMALL for array in arrays) else None
