"""Multiply-accumulates of operators, from the shapes of what they read and write.

Operators that are not here count by the bytes that they move alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx

from shoal_controlplane.planner.cuts.reading import subgraphs
from shoal_controlplane.planner.cuts.shapes import body_shapes

Shape = tuple[int, ...]
Lookup = Callable[[str], Shape | None]


class _UnknownShapeError(Exception):
    """A shape that a formula needs is not known."""


def macs(node: onnx.NodeProto, shape_of: Lookup) -> float:
    """Multiply-accumulates of a node with its bodies, 0 where they are not known.

    A loop counts one turn, and a choice its dearest body.
    """
    bodies = [_body_macs(body, shape_of) for body in subgraphs(node)]
    if bodies:
        return max(bodies)
    formula = _FORMULAS.get(node.op_type)
    if formula is None:
        return 0.0
    try:
        return float(formula(node, _Shapes(node, shape_of)))
    except (_UnknownShapeError, IndexError):
        return 0.0


def _body_macs(body: onnx.GraphProto, outside: Lookup) -> float:
    inside = body_shapes(body)
    return sum(macs(node, lambda name: inside.get(name) or outside(name)) for node in body.node)


class _Shapes:
    """Shapes by place; a missing one ends the formula."""

    def __init__(self, node: onnx.NodeProto, shape_of: Lookup) -> None:
        self._node = node
        self._shape_of = shape_of

    def read(self, place: int) -> Shape:
        return self._known(self._node.input, place)

    def written(self, place: int = 0) -> Shape:
        return self._known(self._node.output, place)

    def _known(self, names: Sequence[str], place: int) -> Shape:
        shape = self._shape_of(names[place]) if place < len(names) and names[place] else None
        if shape is None:
            raise _UnknownShapeError
        return shape


def _attributes(node: onnx.NodeProto) -> Mapping[str, onnx.AttributeProto]:
    return {attribute.name: attribute for attribute in node.attribute}


def _convolution(weight: int) -> Callable[[onnx.NodeProto, _Shapes], float]:
    """Each output element takes one filter [C / group, *kernel]; W is input number `weight`."""

    def formula(node: onnx.NodeProto, shapes: _Shapes) -> float:
        return math.prod(shapes.written()) * math.prod(shapes.read(weight)[1:])

    return formula


def _transposed_convolution(node: onnx.NodeProto, shapes: _Shapes) -> float:
    return math.prod(shapes.read(0)) * math.prod(shapes.read(1)[1:])


def _gemm(node: onnx.NodeProto, shapes: _Shapes) -> float:
    transposed = _attributes(node).get("transA")
    a = shapes.read(0)
    return math.prod(shapes.written()) * a[-2 if transposed is not None and transposed.i else -1]


def _product(node: onnx.NodeProto, shapes: _Shapes) -> float:
    return math.prod(shapes.written()) * shapes.read(0)[-1]


def _recurrent(node: onnx.NodeProto, shapes: _Shapes) -> float:
    """Every step of every sequence takes W [directions, gates * H, I] and R [..., H] once."""
    return math.prod(shapes.read(0)[:2]) * (math.prod(shapes.read(1)) + math.prod(shapes.read(2)))


def _attention(node: onnx.NodeProto, shapes: _Shapes) -> float:
    """Scores and their products with the values, from queries and keys [..., L, width].

    com.microsoft.Attention makes both itself, from x [B, L, I] and weights [I, 3 H].
    """
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        x, weights = shapes.read(0), shapes.read(1)
        return x[0] * x[1] * (math.prod(weights) + 2.0 * x[1] * weights[-1] / 3)
    return 2.0 * math.prod(shapes.read(0)) * shapes.read(1)[-2]


def _einsum(node: onnx.NodeProto, shapes: _Shapes) -> float:
    """One step for each value of all indices together; an ellipsis counts as its dimensions."""
    equation = _attributes(node)["equation"].s.decode(errors="replace").replace(" ", "")
    sizes: dict[str, int] = {}
    for place, term in enumerate(equation.split("->")[0].split(",")):
        shape = shapes.read(place)
        head, dots, tail = term.partition("...")
        extra = len(shape) - len(head) - len(tail)
        if extra < 0 or (extra and not dots):
            raise _UnknownShapeError
        labels = [*head, *(f"...{extra - n}" for n in range(extra)), *tail]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


_FORMULAS: dict[str, Callable[[onnx.NodeProto, _Shapes], float]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "FusedConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "MatMul": _product,
    "MatMulInteger": _product,
    "FusedMatMul": _product,
    "MatMulNBits": _product,
    "QLinearMatMul": _product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "MultiHeadAttention": _attention,
    "GroupQueryAttention": _attention,
    "Attention": _attention,
    "Einsum": _einsum,
}
