"""Types and shapes of the tensors of a model: with hints put in, and as free as the model is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from shoal_controlplane.models.onnxfile import DATATYPES
from shoal_controlplane.planner.cuts.analysis import BoundaryTensor, CutError
from shoal_controlplane.planner.cuts.folding import SMALL, fold_shapes
from shoal_controlplane.planner.cuts.protobuf import clear, copied, has
from shoal_shared.tensors import NUMPY

_MAX_ELEMENTS = 2**48
_MAX_DIMENSION = 2**31
_ANONYMOUS = ("", "?")
"""Names that exporters give to any free dimension, so that two of them need not be equal."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """`static[t]` is tensor t with the hints put in, as far as all of its dimensions are numbers
    and its type can be sent. `free[t]` is its type as a boundary of a stage states it: dimensions
    that the model leaves free are free there. `inputs` are the shapes that the sizes are for."""

    static: Mapping[str, BoundaryTensor]
    free: Mapping[str, onnx.TypeProto]
    inputs: Mapping[str, tuple[int, ...]]

    def size(self, name: str) -> int:
        """Bytes of a tensor, 0 where they are not known."""
        tensor = self.static.get(name)
        return tensor.size if tensor is not None else 0

    def dims(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor with the hints put in, None where it is not known."""
        tensor = self.static.get(name)
        return tensor.shape if tensor is not None else None


def infer(model: onnx.ModelProto, hints: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Infer every tensor's shape with and without the hints. Raises `CutError`."""
    names = {value.name for value in model.graph.input}
    for name in hints:
        if name not in names:
            raise CutError(f"The model has no input '{name[:80]}' to give a shape to.")
    named: dict[str, int] = {}
    pinned: dict[str, tuple[int, ...]] = {}
    # Hints first: they also give dimensions of the same name to other inputs.
    for value in sorted(model.graph.input, key=lambda value: value.name not in hints):
        pinned[value.name] = shape = _pinned(value, hints.get(value.name), named)
        if value.name in hints:
            for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                if dim.dim_param not in _ANONYMOUS:
                    named[dim.dim_param] = size
    pinned = {value.name: pinned[value.name] for value in model.graph.input}
    light = _light(model)
    # Value infos of a model with free dimensions are often left from another width or batch.
    fixed = all(_dims(value.type) == pinned[value.name] for value in model.graph.input)
    if fixed:
        light.graph.value_info.extend(model.graph.value_info)
    symbolic = {} if fixed else _inferred(light)
    for value in light.graph.input:
        if value.name in pinned:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in pinned[value.name]:
                dims.add().dim_value = size
    concrete = _inferred(light)
    while fold_shapes(light, {name: _dims(kind) for name, kind in concrete.items()}):
        concrete |= _inferred(light)
    static = {}
    for name, kind in concrete.items():
        tensor = _boundary(name, kind)
        if tensor is not None:
            static[name] = tensor
    for value in model.graph.input:
        if value.name not in static:
            raise CutError(
                f"The model's input '{value.name[:80]}' is too large or of no known type."
            )
    stated = concrete if fixed else symbolic
    free = {name: _freed(tensor, stated.get(name)) for name, tensor in static.items()}
    return Shapes(static, free, pinned)


def body_shapes(body: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes within the body of a control-flow node, as far as inference left them there."""
    shapes = {}
    for value in (*body.input, *body.value_info, *body.output):
        dims = _dims(value.type)
        if dims is not None:
            shapes[value.name] = dims
    for tensor in body.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes


def declared(value: onnx.ValueInfoProto, shapes: Shapes) -> BoundaryTensor:
    """An input or output of the model; where its shape is not known, as far as it is declared."""
    tensor = shapes.static.get(value.name)
    if tensor is not None:
        return tensor
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.dim_value > 0 else -1 for dim in kind.shape.dim)
    return BoundaryTensor(value.name, DATATYPES.get(kind.elem_type, "BYTES"), shape, 0)


def _pinned(
    value: onnx.ValueInfoProto, hint: tuple[int, ...] | None, named: Mapping[str, int]
) -> tuple[int, ...]:
    name = value.name[:80]
    kind = value.type.tensor_type
    if not has(value.type, "tensor_type") or not has(kind, "shape"):
        raise CutError(f"The model's input '{name}' is no tensor, or its rank is not known.")
    dims = [d.dim_value if has(d, "dim_value") and d.dim_value >= 0 else -1 for d in kind.shape.dim]
    stated = "x".join("?" if size < 0 else str(size) for size in dims)
    if hint is not None:
        fits = len(hint) == len(dims) and all(
            0 < h < _MAX_DIMENSION and d in (-1, h) for h, d in zip(hint, dims, strict=True)
        )
        if not fits:
            given = "x".join(str(size) for size in hint)
            raise CutError(
                f"The shape {given[:80]} does not fit the model's input '{name}' of {stated}."
            )
        return tuple(hint)
    for axis, dim in enumerate(kind.shape.dim):
        if dims[axis] < 0:
            dims[axis] = named.get(dim.dim_param, -1)
    if dims and dims[0] < 0:
        dims[0] = 1
    if any(size < 0 for size in dims):
        raise CutError(
            f"The model's input '{name}' is {stated}, and shapes are needed: give them as "
            f"--shape {name}={'x'.join('1' if size < 0 else str(size) for size in dims)} with "
            "numbers of your own."
        )
    return tuple(dims)


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without values of large constants, which inference would copy, and without
    shapes that may be wrong."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = "graph"
    graph.node.extend(model.graph.node)
    for value in model.graph.input:
        copy = copied(value)
        for dim in copy.type.tensor_type.shape.dim:
            if dim.dim_value < 0:  # how some exporters write a free one
                clear(dim, "dim_value")
            elif not has(dim, "dim_value") and dim.dim_param in _ANONYMOUS:
                clear(dim, "dim_param")
        graph.input.append(copy)
    for value in model.graph.output:
        copy = copied(value)
        if has(copy.type, "tensor_type"):
            clear(copy.type.tensor_type, "shape")
        graph.output.append(copy)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    for sparse in model.graph.sparse_initializer:
        graph.input.append(
            onnx.helper.make_tensor_value_info(
                sparse.values.name, sparse.values.data_type, sparse.dims
            )
        )
    return light


def _inferred(light: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    try:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise CutError(
            f"The shapes of the model cannot be inferred: {lines[0][:300] if lines else error!r}"
        ) from None
    del light.graph.node[:]
    light.graph.node.extend(graph.node)  # with what was found about bodies
    kinds = {value.name: value.type for value in graph.value_info}
    kinds |= {value.name: value.type for value in (*graph.input, *graph.output)}
    for tensor in graph.initializer:
        kinds[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return kinds


def _dims(kind: onnx.TypeProto) -> tuple[int, ...] | None:
    if not has(kind, "tensor_type") or not has(kind.tensor_type, "shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if not all(has(dim, "dim_value") and 0 <= dim.dim_value < _MAX_DIMENSION for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


def _boundary(name: str, kind: onnx.TypeProto) -> BoundaryTensor | None:
    dims = _dims(kind)
    datatype = DATATYPES.get(kind.tensor_type.elem_type)
    if dims is None or datatype is None or math.prod(dims) > _MAX_ELEMENTS:
        return None
    # A string has at least the four bytes of its length.
    width = 4 if datatype == "BYTES" else NUMPY[datatype].itemsize
    return BoundaryTensor(name, datatype, dims, math.prod(dims) * width)


def _freed(tensor: BoundaryTensor, kind: onnx.TypeProto | None) -> onnx.TypeProto:
    element = next(number for number, name in DATATYPES.items() if name == tensor.datatype)
    stated: list[onnx.TensorShapeProto.Dimension] = []
    if kind is not None and has(kind.tensor_type, "shape"):
        stated = list(kind.tensor_type.shape.dim)
    dims: list[int | str] = [f"{tensor.name}.{axis}" for axis in range(len(tensor.shape))]
    if len(stated) == len(dims):
        for axis, dim in enumerate(stated):
            if has(dim, "dim_value"):
                dims[axis] = dim.dim_value
            elif dim.dim_param not in _ANONYMOUS:
                dims[axis] = dim.dim_param
    return onnx.helper.make_tensor_type_proto(element, dims)
