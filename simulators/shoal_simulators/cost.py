"""Multiply-accumulates of an ONNX model, counted from its graph for given input shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import shape_inference


class CostModel:
    """Counts what convolutions and matrix products cost; all else is small beside them."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        self._serialized = model.SerializeToString()  # type: ignore[no-untyped-call]
        self._weights = {w.name: tuple(w.dims) for w in model.graph.initializer}
        self._known: dict[tuple[tuple[str, tuple[int, ...]], ...], float] = {}

    def macs(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Multiply-accumulates of one run with inputs of `shapes`, batch included."""
        key = tuple(sorted(shapes.items()))
        if key not in self._known:
            self._known[key] = self._count(shapes)
        return self._known[key]

    def _count(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        model = onnx.load_model_from_string(self._serialized)
        for value in model.graph.input:
            if value.name in shapes:
                del value.type.tensor_type.shape.dim[:]
                for size in shapes[value.name]:
                    value.type.tensor_type.shape.dim.add().dim_value = size
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")  # type: ignore[no-untyped-call]
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        known = dict(self._weights)
        for value in [*graph.value_info, *graph.input, *graph.output]:
            known[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        return float(sum(_node_macs(node, known) for node in graph.node))


def _node_macs(node: onnx.NodeProto, known: Mapping[str, tuple[int, ...]]) -> int:
    out = math.prod(known.get(node.output[0], (0,)))
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = known.get(node.input[1], (0,))
        # Each output element sums over the kernel and the input channels of its group.
        return out * math.prod(weight[1:])
    if node.op_type in ("Gemm", "MatMul"):
        left = known.get(node.input[0], (0,))
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return out * (left[-2] if transposed else left[-1]) if left else 0
    return 0
