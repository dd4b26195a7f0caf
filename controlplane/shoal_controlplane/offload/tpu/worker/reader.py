"""ONNX files as the worker sees them: read, checked against the table of operators, no JAX needed.

Models come from outside: whatever is wrong with one ends in a sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from shoal_controlplane.offload.tpu.worker.errors import ModelError, UnsupportedError
from shoal_controlplane.offload.tpu.worker.operators import Call, Operator, lookup
from shoal_controlplane.offload.tpu.worker.operators.elementwise import ELEMENT_TYPES
from shoal_shared.signature import ModelSignature, TensorSpec

Array = np.ndarray[Any, Any]

_DATATYPES = {
    "float32": "FP32",
    "uint8": "UINT8",
    "int8": "INT8",
    "uint16": "UINT16",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "float16": "FP16",
    "float64": "FP64",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bfloat16": "BF16",
}
_MAX_DEPTH = 16
_DOMAIN = {"ai.onnx": ""}


@dataclass(frozen=True, slots=True)
class Step:
    """One node: what to run on which values. A name is empty where an input is left out."""

    operator: Operator
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph in the order of its nodes; `constants` are its weights and constants by name."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the table of operators covers."""

    graph: Graph
    signature: ModelSignature


def read(path: Path, digest: str = "") -> Model:
    """The model in a file, whose content must have `digest` (`sha256:…`) where one is given.

    Raises `ModelError`, or `UnsupportedError` with the name of what the worker lacks.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    return parse(content, digest)


def parse(content: bytes, digest: str = "") -> Model:
    """As `read`, of a file's content."""
    if digest and f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise ModelError(f"the model is not the one that was asked for: it lacks digest {digest}")
    try:
        proto = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"the model is no ONNX file: {str(error)[:200]}") from None
    if not proto.graph.node and not proto.graph.output:
        raise ModelError("the model is no ONNX file: it has no graph")
    if proto.functions:
        proto = _inlined(proto)
    opsets = {_DOMAIN.get(o.domain, o.domain): o.version for o in proto.opset_import}
    graph = _graph(proto.graph, opsets, 0)
    return Model(graph, _signature(proto.graph, set(graph.constants)))


def steps(graph: Graph) -> Iterator[Step]:
    """All nodes, those of subgraphs included."""
    for step in graph.steps:
        yield step
        for value in step.call.attributes.values():
            if isinstance(value, Graph):
                yield from steps(value)


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import inliner

    try:
        return inliner.inline_local_functions(proto)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"the model's own functions cannot be resolved: {str(error)[:200]}"
        ) from None


def _graph(proto: onnx.GraphProto, opsets: Mapping[str, int], depth: int) -> Graph:
    if depth > _MAX_DEPTH:
        raise ModelError(f"the model's graphs are nested deeper than {_MAX_DEPTH}")
    if proto.sparse_initializer:
        raise UnsupportedError("the TPU worker has no sparse weights")
    constants = {t.name: _tensor(t, f"weight '{t.name[:80]}'") for t in proto.initializer}
    found = []
    for node in proto.node:
        step = _step(node, opsets, depth)
        if step.call.op == "Constant" and not step.call.domain:
            constants[step.outputs[0]] = np.asarray(step.operator.run(step.call))
        else:
            found.append(step)
    return Graph(
        tuple(found),
        tuple(value.name for value in proto.input if value.name not in constants),
        tuple(value.name for value in proto.output),
        constants,
    )


def _step(node: onnx.NodeProto, opsets: Mapping[str, int], depth: int) -> Step:
    domain = _DOMAIN.get(node.domain, node.domain)
    if domain not in opsets:
        raise ModelError(f"the model imports no opset of domain {node.domain[:80] or 'ai.onnx'}")
    outputs = tuple(node.output)
    while outputs and not outputs[-1]:
        outputs = outputs[:-1]
    call = Call(node.op_type, domain, opsets[domain], node.name, {}, len(outputs))
    call.attributes = {a.name: _attribute(a, call, opsets, depth) for a in node.attribute}
    return Step(lookup(call), call, tuple(node.input), outputs)


def _attribute(
    attribute: onnx.AttributeProto, call: Call, opsets: Mapping[str, int], depth: int
) -> Any:
    if attribute.ref_attr_name:
        raise call.unsupported(f"attribute {attribute.name[:80]} refers to a function's")
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return _tensor(value, f"attribute {attribute.name[:80]} of {call.title}")
    if isinstance(value, onnx.GraphProto):
        return _graph(value, opsets, depth + 1)
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    if isinstance(value, int | float):
        return value
    raise call.unsupported(f"attribute {attribute.name[:80]} is of an unknown type")


def _tensor(tensor: onnx.TensorProto, what: str) -> Array:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise UnsupportedError(f"{what} lies outside of the model's file")
    if tensor.data_type not in ELEMENT_TYPES:
        raise UnsupportedError(f"the TPU worker has no element type of {what}")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{what} contradicts itself: {str(error)[:200]}") from None


def _signature(proto: onnx.GraphProto, constants: set[str]) -> ModelSignature:
    return ModelSignature(
        inputs=tuple(_spec(value) for value in proto.input if value.name not in constants),
        outputs=tuple(_spec(value) for value in proto.output),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    if kind.elem_type not in ELEMENT_TYPES:
        raise UnsupportedError(
            f"the TPU worker has no element type of '{value.name[:80]}': no text, no sequences"
        )
    if not kind.HasField("shape"):  # type: ignore[no-untyped-call]
        raise ModelError(f"'{value.name[:80]}' has no shape")
    shape = tuple(size.dim_value if size.dim_value > 0 else -1 for size in kind.shape.dim)
    return TensorSpec(
        name=value.name, datatype=_DATATYPES[ELEMENT_TYPES[kind.elem_type]], shape=shape
    )
