"""A graph as at most about a hundred segments: the cuts worth weighing, and what each costs."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx

from shoal_controlplane.models.findings import MAX_TENSOR_NAME
from shoal_controlplane.planner.cuts.analysis import Analysis, BoundaryTensor
from shoal_controlplane.planner.cuts.costs import macs
from shoal_controlplane.planner.cuts.fusion import forbidden_cuts
from shoal_controlplane.planner.cuts.graph import Graph, Unit
from shoal_controlplane.planner.cuts.shapes import Shapes, declared, infer
from shoal_controlplane.planner.partition.problem import Segment

MAX_SEGMENTS = 100
MAX_TENSORS = 32
"""Tensors that may cross a cut: they travel in one message."""

_NEGLIGIBLE = 1e-3
"""Share of the model's work that alone is not worth a segment."""


@dataclass(frozen=True, slots=True)
class CutGraph:
    """A graph with its cuts: segment i is `graph.units[starts[i]:starts[i + 1]]`, and `crossing[i]`
    are the activations alive between segments i and i + 1."""

    graph: Graph
    shapes: Shapes
    starts: tuple[int, ...]
    crossing: tuple[tuple[str, ...], ...]
    analysis: Analysis


def cut_graph(model: onnx.ModelProto, hints: Mapping[str, tuple[int, ...]]) -> CutGraph:
    """Find the cuts of a model that `reading.read_model` gave. Raises `CutError`."""
    shapes = infer(model, hints)
    graph = Graph(model)
    alive = graph.alive(MAX_TENSORS)
    places = _places(graph, shapes, alive)
    work = [_work(graph, unit, shapes) for unit in graph.units]
    kept = _merged(places, work, [_bytes(alive[i] or (), shapes) for i in range(len(alive))])
    starts = (0, *(place + 1 for place in kept), len(graph.units))
    crossing = tuple(alive[place] or () for place in kept)
    analysis = Analysis(
        segments=_segments(graph, shapes, starts, crossing),
        cuts=tuple(tuple(shapes.static[name] for name in names) for names in crossing),
        inputs=_declared(model.graph.input, shapes),
        outputs=_declared(model.graph.output, shapes),
        shapes=dict(shapes.inputs),
        reason="" if kept else _reason(graph, shapes, places),
    )
    return CutGraph(graph, shapes, starts, crossing, analysis)


def _declared(values: Sequence[onnx.ValueInfoProto], shapes: Shapes) -> tuple[BoundaryTensor, ...]:
    return tuple({value.name: declared(value, shapes) for value in values}.values())


def _places(graph: Graph, shapes: Shapes, alive: Sequence[tuple[str, ...] | None]) -> list[int]:
    """Units after which the graph may be cut: everything alive can be sent, no fused group is
    parted, and each part between two cuts reads something that another part gives."""
    forbidden = forbidden_cuts(graph)
    places: list[int] = []
    start = 0
    fed = False
    for index, unit in enumerate(graph.units):
        fed = fed or any(graph.made.get(name, -1) < start for name in unit.takes)
        names = alive[index]
        if index == len(graph.units) - 1 or forbidden[index] or not names or not fed:
            continue
        if all(_can_be_sent(name, shapes) for name in names):
            places.append(index)
            start, fed = index + 1, False
    # The rest must be fed as well.
    while places and not _is_fed(graph, places[-1] + 1):
        places.pop()
    return places


def _is_fed(graph: Graph, start: int) -> bool:
    return any(
        graph.made.get(name, -1) < start for unit in graph.units[start:] for name in unit.takes
    )


def _can_be_sent(name: str, shapes: Shapes) -> bool:
    tensor = shapes.static.get(name)
    return (
        tensor is not None
        and tensor.datatype != "BYTES"
        and len(name) <= MAX_TENSOR_NAME
        and name.isprintable()
    )


def _bytes(names: Sequence[str], shapes: Shapes) -> int:
    return sum(shapes.size(name) for name in names)


def _work(graph: Graph, unit: Unit, shapes: Shapes) -> float:
    return macs(unit.node, shapes.dims) + _moved(graph, unit, shapes)


def _moved(graph: Graph, unit: Unit, shapes: Shapes) -> int:
    return _bytes((*unit.takes, *unit.gives), shapes) + graph.weight_bytes((unit,))


def _merged(places: Sequence[int], work: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """The cuts to keep. Those go first that part the least work and are dearest: work on both
    sides per byte, the smallest first, until no segment is negligible next to a cut that is no
    dearer, and no more than `MAX_SEGMENTS` segments remain."""
    total = sum(work) or 1.0
    ends = [-1, *places, len(work) - 1]
    loads = [sum(work[a + 1 : b + 1]) for a, b in pairwise(ends)]
    before = list(range(-1, len(places) - 1))
    after = list(range(1, len(places) + 1))
    gone = [False] * len(places)

    def price(cut: int) -> tuple[int, float, int]:
        """Order of removal: cuts beside negligible work before others."""
        left, right = loads[cut], loads[after[cut]]
        idle = min(left, right) < _NEGLIGIBLE * total
        return (0 if idle else 1, (left + right) / (1 + sizes[places[cut]]), cut)

    queue = [price(cut) for cut in range(len(places))]
    heapq.heapify(queue)
    remaining = len(places)
    while queue:
        entry = heapq.heappop(queue)
        cut = entry[2]
        if gone[cut]:
            continue
        now = price(cut)
        if now != entry:
            heapq.heappush(queue, now)
            continue
        if entry[0] and remaining < MAX_SEGMENTS:
            break
        gone[cut] = True
        remaining -= 1
        loads[after[cut]] += loads[cut]
        if before[cut] >= 0:
            after[before[cut]] = after[cut]
        if after[cut] < len(places):
            before[after[cut]] = before[cut]
    return [place for place, lost in zip(places, gone, strict=True) if not lost]


def _segments(
    graph: Graph,
    shapes: Shapes,
    starts: Sequence[int],
    crossing: Sequence[tuple[str, ...]],
) -> tuple[Segment, ...]:
    peaks = _live_bytes(graph, shapes)
    results = (*crossing, graph.outputs)
    segments = []
    for (first, last), leaving in zip(pairwise(starts), results, strict=True):
        units = graph.units[first:last]
        segments.append(
            Segment(
                name=_name(units[-1].node) if units else "",
                weight_bytes=graph.weight_bytes(units),
                peak_bytes=max(peaks[first:last], default=0),
                out_bytes=_bytes(leaving, shapes),
                macs=sum(macs(unit.node, shapes.dims) for unit in units),
                moved_bytes=sum(_moved(graph, unit, shapes) for unit in units),
            )
        )
    return tuple(segments)


def _live_bytes(graph: Graph, shapes: Shapes) -> list[int]:
    """Bytes of activations alive while each unit runs: what it reads and writes among them."""
    ends = [0] * (len(graph.units) + 1)
    alive = 0
    for name in graph.inputs:
        if graph.last_use(name) >= 0:
            alive += shapes.size(name)
            ends[graph.last_use(name)] += shapes.size(name)
    peaks = []
    for index, unit in enumerate(graph.units):
        for name in unit.gives:
            alive += shapes.size(name)
            ends[max(graph.last_use(name), index)] += shapes.size(name)
        peaks.append(alive)
        alive -= ends[index]
    return peaks


def _name(node: onnx.NodeProto) -> str:
    name = node.name or f"{node.op_type}:{next(iter(node.output), '')}"
    return "".join(c if c.isprintable() else "?" for c in name[:80])


def _reason(graph: Graph, shapes: Shapes, places: Sequence[int]) -> str:
    """Why a graph is one segment."""
    if len(graph.units) < 2:
        return "The graph has a single node that computes, so there is nothing to cut."
    if places:
        return "All the work of the graph is in one group of nodes that are computed together."
    unknown = next((n for unit in graph.units for n in unit.gives if n not in shapes.static), None)
    if unknown is not None:
        shown = "".join(c if c.isprintable() else "?" for c in unknown[:80])
        return f"The graph cannot be cut: the size of its tensor '{shown}' depends on the data."
    return (
        "The graph cannot be cut: at every place nodes that are computed together would be "
        f"parted, or more than {MAX_TENSORS} tensors cross."
    )
