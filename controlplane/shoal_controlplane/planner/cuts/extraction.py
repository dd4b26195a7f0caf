"""Stages as models of their own: the units of consecutive segments with the constants they need."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import onnx

from shoal_controlplane.planner.cuts.analysis import CutError, StageFile
from shoal_controlplane.planner.cuts.reading import checked_bytes, reads
from shoal_controlplane.planner.cuts.segments import CutGraph


def write_stages(cut: CutGraph, bounds: Sequence[int], folder: Path) -> tuple[StageFile, ...]:
    """Write stage k, the segments [bounds[k], bounds[k + 1]), into `folder`. Raises `CutError`."""
    count = len(cut.analysis.segments)
    if (
        len(bounds) < 2
        or (bounds[0], bounds[-1]) != (0, count)
        or any(a >= b for a, b in pairwise(bounds))
    ):
        raise CutError(
            f"The bounds of the stages must ascend from 0 to {count}, the number of segments."
        )
    return tuple(_write(cut, first, last, folder) for first, last in pairwise(bounds))


def _write(cut: CutGraph, first: int, last: int, folder: Path) -> StageFile:
    graph = cut.graph
    units = graph.units[cut.starts[first] : cut.starts[last]]
    made = {name for unit in units for name in unit.gives}
    taken = dict.fromkeys(name for unit in units for name in unit.takes if name not in made)
    is_last = last == len(cut.analysis.segments)
    leaving = graph.outputs if is_last else cut.crossing[last - 1]
    # A constant that the model gives as an output is one of its last stage.
    constant = [name for name in leaving if name not in graph.used]
    outputs = tuple(name for name in leaving if name in made or name in constant)
    if not taken or not outputs:
        raise CutError("The model computes nothing from its inputs, so no stage can be made of it.")
    stored, folded = graph.constants_of(
        (*(name for unit in units for name in unit.constants), *constant)
    )
    nodes = [*folded, *(unit.node for unit in units)]
    model = _model(cut, nodes, stored, tuple(taken), outputs)
    data = checked_bytes(model)
    path = folder / f"stage-{first}-{last}.onnx"
    path.write_bytes(data)
    return StageFile(
        first=first,
        last=last,
        filename=path.name,
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        size=len(data),
        inputs=tuple(cut.shapes.static[name] for name in taken),
        outputs=outputs,
        passes=tuple(name for name in leaving if name not in outputs),
    )


def _model(
    cut: CutGraph,
    nodes: Sequence[onnx.NodeProto],
    stored: set[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    whole = cut.graph.model
    model = onnx.ModelProto()
    model.ir_version = whole.ir_version
    model.producer_name = whole.producer_name
    model.producer_version = whole.producer_version
    model.domain = whole.domain
    model.model_version = whole.model_version
    model.doc_string = whole.doc_string
    model.opset_import.extend(whole.opset_import)
    model.metadata_props.extend(whole.metadata_props)
    graph = model.graph
    graph.name = whole.graph.name or "graph"
    graph.node.extend(nodes)
    graph.initializer.extend(t for t in whole.graph.initializer if t.name in stored)
    graph.sparse_initializer.extend(
        t for t in whole.graph.sparse_initializer if t.values.name in stored
    )
    # What the model states of its own inputs and outputs holds for the stages, too.
    stated = {value.name: value for value in (*whole.graph.input, *whole.graph.output)}
    graph.input.extend(_value(cut, name, stated) for name in inputs)
    graph.output.extend(_value(cut, name, stated) for name in outputs)
    present = {*stored, *inputs, *(name for node in nodes for name in (*reads(node), *node.output))}
    graph.quantization_annotation.extend(
        a for a in whole.graph.quantization_annotation if a.tensor_name in present
    )
    return model


def _value(cut: CutGraph, name: str, stated: dict[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    if name in stated:
        return stated[name]
    return onnx.helper.make_value_info(name, cut.shapes.free[name])
