"""Reader of an ONNX file: checked by onnx.checker, its signature taken from the graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.findings import Findings, checked_findings
from shoal_shared.signature import TensorSpec
from shoal_shared.tensors import NUMPY

DATATYPES: dict[int, str] = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.STRING: "BYTES",
}
"""The protocol's names of ONNX's element types."""

_CONTEXT = ("com.microsoft", "EPContext")
"""Domain and operator of a node that holds compiled code."""


def read_onnx(path: Path) -> Findings:
    """Signature, opset and parameters. Raises `InvalidError` with one sentence."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise InvalidError("The file is not an ONNX model, or it is truncated.") from None
    if not model.ir_version or not _has(model, "graph"):
        raise InvalidError("The file is not an ONNX model: it has no version or no graph.")
    parameters = sum(_elements(tensor) for tensor in _tensors(model))
    try:
        # The checker reads the file again rather than yet another copy in memory.
        onnx.checker.check_model(str(path))
    except UnicodeDecodeError:
        # The checker quotes the name that it objects to, whatever its bytes are.
        raise InvalidError("The ONNX model holds names that are not UTF-8.") from None
    except onnx.checker.ValidationError as error:
        raise InvalidError(f"The ONNX model is not valid: {_first_line(error)}") from None
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = [_spec("input", value) for value in graph.input if value.name not in constants]
    outputs = [_spec("output", value) for value in graph.output]
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    compiled = _is_compiled(model)
    return checked_findings(inputs, outputs, parameters, max(opsets, default=None), compiled)


def _has(message: Any, field: str) -> bool:
    return bool(message.HasField(field))


def _spec(what: str, value: onnx.ValueInfoProto) -> TensorSpec:
    name = value.name[:80]
    if not _has(value.type, "tensor_type"):
        raise InvalidError(
            f"The model's {what} '{name}' is no tensor, but a sequence, map or optional: "
            "export it without."
        )
    kind = value.type.tensor_type
    if kind.elem_type not in DATATYPES:
        raise InvalidError(
            f"The model's {what} '{name}' is of {_type_name(kind.elem_type)}, which cannot "
            "be served: cast it within the model."
        )
    # A negative size is how some exporters write a free one.
    shape = tuple(
        dim.dim_value if _has(dim, "dim_value") and dim.dim_value >= 0 else -1
        for dim in kind.shape.dim
    )
    return TensorSpec(name=value.name, datatype=DATATYPES[kind.elem_type], shape=shape)


def _type_name(elem_type: int) -> str:
    try:
        return onnx.helper.tensor_dtype_to_string(elem_type).removeprefix("TensorProto.")
    except KeyError:
        return "an unknown type"


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a model, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if _has(attribute, "t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if _has(attribute, "g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _is_compiled(model: onnx.ModelProto) -> bool:
    """Whether nodes hold code for one kind of chip, which must lie within the file.

    Source: ONNX Runtime's "EP context design"; `embed_mode` 0 makes the code a path.
    """
    contexts = [n for n in model.graph.node if (n.domain, n.op_type) == _CONTEXT]
    for node in contexts:
        if any(a.name == "embed_mode" and a.i != 1 for a in node.attribute):
            raise InvalidError(
                "The compiled model keeps its code in another file: compile it with "
                "ep.context_embed_mode = 1."
            )
    return bool(contexts)


def _elements(tensor: onnx.TensorProto) -> int:
    """Elements of a constant, which must lie whole within the file."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise InvalidError(
            f"The model keeps '{tensor.name[:80]}' in another file: save it as one file, without "
            "external data."
        )
    count = math.prod(tensor.dims)
    datatype = DATATYPES.get(tensor.data_type, "BYTES")
    if _has(tensor, "raw_data") and datatype != "BYTES":
        needed = count * NUMPY[datatype].itemsize
        if len(tensor.raw_data) != needed:
            raise InvalidError(
                f"The model is damaged: '{tensor.name[:80]}' has {len(tensor.raw_data)} bytes, "
                f"not {needed}."
            )
    return count


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
