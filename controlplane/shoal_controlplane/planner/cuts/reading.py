"""Reader of a model that is to be cut: checked, and brought into a form that is simple to cut.

In that form the nodes stand in a topological order, functions are inlined, constants are
initializers, no initializer is an input, and each DequantizeLinear has one reader, so that what
crosses a cut of a quantised graph is the small tensor before it. (ONNX Runtime's
EnsureUniqueDQForNodeUnit does the same.)
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner

from shoal_controlplane.planner.cuts.analysis import CutError
from shoal_controlplane.planner.cuts.protobuf import copied, has, is_text_valid

_NOT_UTF8 = "The model holds names that are not UTF-8."
_SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def read_model(path: Path) -> onnx.ModelProto:
    """A valid model in the form that the other modules expect. Raises `CutError`."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise CutError("The file is not an ONNX model, or it is truncated.") from None
    except OSError as error:
        raise CutError(f"The model cannot be read: {error.strerror}.") from None
    if not model.ir_version or not has(model, "graph"):
        raise CutError("The file is not an ONNX model: it has no version or no graph.")
    if not is_text_valid(model):
        raise CutError(_NOT_UTF8)
    _refuse_external_data(model)
    _sort(model.graph)
    _check(model)
    if model.functions:
        model = inliner.inline_local_functions(model)
        _sort(model.graph)
    _constants_to_initializers(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    # From version 4 on, initializers need not be inputs as well.
    model.ir_version = max(model.ir_version, 4)
    _split_dequantizers(model.graph)
    return model


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a control-flow node."""
    for attribute in node.attribute:
        if attribute.type in _SUBGRAPHS:
            if has(attribute, "g"):
                yield attribute.g
            yield from attribute.graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, each once: its inputs, and what its bodies take from outside."""
    names = dict.fromkeys(name for name in node.input if name)
    for body in subgraphs(node):
        names |= dict.fromkeys(_free_names(body))
    return list(names)


def _free_names(body: onnx.GraphProto) -> Iterator[str]:
    bound = {value.name for value in body.input}
    bound |= {tensor.name for tensor in body.initializer}
    bound |= {tensor.values.name for tensor in body.sparse_initializer}
    for node in body.node:
        bound.update(node.output)
    for node in body.node:
        yield from (name for name in reads(node) if name not in bound)
    yield from (value.name for value in body.output if value.name not in bound)


def checked_bytes(model: onnx.ModelProto) -> bytes:
    """A model as bytes, the same for the same model. Raises `CutError` if it is not valid."""
    try:
        data: bytes = model.SerializeToString(deterministic=True)  # type: ignore[no-untyped-call]
        onnx.checker.check_model(data)
    except UnicodeDecodeError:
        raise CutError(_NOT_UTF8) from None
    except onnx.checker.ValidationError as error:
        lines = str(error).strip().splitlines()
        raise CutError(
            f"The ONNX model is not valid: {lines[0][:300] if lines else error!r}"
        ) from None
    except ValueError:
        raise CutError("The model is larger than 2 GiB, the limit of an ONNX file.") from None
    return data


def _check(model: onnx.ModelProto) -> None:
    if not any(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        raise CutError("The ONNX model is not valid: it does not say its operators' version.")
    checked_bytes(model)


def _refuse_external_data(model: onnx.ModelProto) -> None:
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            for tensor in graph.initializer:
                _refuse_external(tensor)
            nodes += graph.node
        else:
            node = nodes.pop()
            graphs += subgraphs(node)
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    _refuse_external(tensor)


def _refuse_external(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise CutError(
            f"The model keeps '{tensor.name[:80]}' in another file: save it as one file, without "
            "external data."
        )


def _sort(graph: onnx.GraphProto) -> None:
    """Bring the nodes into a topological order, the one that they have if it is one."""
    maker: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name and maker.setdefault(name, index) != index:
                raise CutError(f"The ONNX model is not valid: two nodes make '{name[:80]}'.")
    missing: list[int] = []
    readers: list[list[int]] = [[] for _ in graph.node]
    for index, node in enumerate(graph.node):
        before = {maker[name] for name in reads(node) if name in maker}
        missing.append(len(before))
        for other in before:
            readers[other].append(index)
    ready = [index for index, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for other in readers[index]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(ready, other)
    if len(order) < len(missing):
        stuck = next(index for index, count in enumerate(missing) if count)
        named = (*graph.node[stuck].output, "")[0]
        raise CutError(f"The graph of the model has a cycle, near '{named[:80]}'.")
    if order != sorted(order):
        nodes = [graph.node[index] for index in order]
        _replace_nodes(graph, nodes)


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = onnx.GraphProto()
    copies.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(copies.node)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value" and has(a, "t")), None)
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and value is not None:
            tensor = copied(value.t)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            nodes.append(node)
    if len(nodes) < len(graph.node):
        _replace_nodes(graph, nodes)


def _split_dequantizers(graph: onnx.GraphProto) -> None:
    """Give each node that reads a dequantised tensor a DequantizeLinear of its own."""
    constants = {tensor.name for tensor in graph.initializer}
    kept = {value.name for value in graph.output}
    count = Counter[str]()
    for node in graph.node:
        count.update(dict.fromkeys(reads(node), 1))
        # A body keeps the names that it reads.
        kept.update(set(reads(node)) - set(node.input))
    taken = constants | {name for node in graph.node for name in node.output}
    taken |= {value.name for value in graph.input}
    shared = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] not in constants
        and node.output[0] not in kept
        and count[node.output[0]] > 1
    }
    if not shared:
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in shared:
            continue
        for name in dict.fromkeys(node.input):
            if name not in shared:
                continue
            copy = copied(shared[name])
            number = 1
            while f"{name}_{number}" in taken:
                number += 1
            fresh = f"{name}_{number}"
            taken.add(fresh)
            copy.output[0] = fresh
            if copy.name:
                copy.name = f"{copy.name}_{number}"
            nodes.append(copy)
            for slot, used in enumerate(node.input):
                if used == name:
                    node.input[slot] = fresh
        nodes.append(node)
    _replace_nodes(graph, nodes)
