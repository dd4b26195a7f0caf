"""A model's graph as units in a topological order, with what is alive between them.

Constants, and nodes that read nothing but constants, are no units: each stage that needs them gets
its own. Everything else that carries data is an activation, outputs of `Shape` among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from shoal_controlplane.planner.cuts.analysis import CutError
from shoal_controlplane.planner.cuts.protobuf import byte_size
from shoal_controlplane.planner.cuts.reading import reads, subgraphs

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


@dataclass(frozen=True, slots=True)
class Unit:
    """One node that is never split. `takes` and `gives` are activations, each name once;
    `constants` the constant tensors that it or its bodies read."""

    node: onnx.NodeProto
    takes: tuple[str, ...]
    constants: tuple[str, ...]
    gives: tuple[str, ...]

    @property
    def op(self) -> str:
        return str(self.node.op_type)


class Graph:
    """What the units of a model read and write.

    `made[t]` is the index of the unit that makes activation t, `used[t]` the indices of those that
    read it, ascending. Inputs of the model are in `used` only.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.inputs = tuple(value.name for value in graph.input)
        self.outputs = tuple(dict.fromkeys(value.name for value in graph.output))
        self.weights = {tensor.name: byte_size(tensor) for tensor in graph.initializer}
        for sparse in graph.sparse_initializer:
            self.weights[sparse.values.name] = byte_size(sparse)
        nodes, self.folded = _living_nodes(graph, set(self.weights))
        self.units = tuple(self._unit(node) for node in nodes)
        self.made: dict[str, int] = {}
        self.used: dict[str, list[int]] = {name: [] for name in self.inputs}
        for index, unit in enumerate(self.units):
            for name in unit.takes:
                self.used[name].append(index)
            for name in unit.gives:
                self.made[name] = index
                self.used[name] = []
        end = len(self.units)
        self._last = {name: used[-1] for name, used in self.used.items() if used}
        self._last |= {name: end for name in self.outputs if name in self.used}

    def _unit(self, node: onnx.NodeProto) -> Unit:
        named = reads(node)
        constants = tuple(n for n in named if n in self.weights or n in self.folded)
        takes = tuple(n for n in named if n not in self.weights and n not in self.folded)
        gives = tuple(name for name in node.output if name)
        return Unit(node, takes, constants, gives)

    def last_use(self, name: str) -> int:
        """Index of the last unit that reads an activation, the number of units for an output of
        the model, -1 if nobody does."""
        return self._last.get(name, -1)

    def sole_user(self, name: str) -> int | None:
        """The one unit that reads an activation, if it is no output of the model."""
        used = self.used[name]
        return used[0] if len(used) == 1 and self._last[name] == used[0] else None

    def alive(self, limit: int) -> list[tuple[str, ...] | None]:
        """Activations alive after each unit in the order in which they came to be, None where
        they are more than `limit`."""
        living = {name: None for name in self.inputs if self.last_use(name) >= 0}
        dying: list[list[str]] = [[] for _ in self.units]
        for name, last in self._last.items():
            if last < len(self.units):
                dying[last].append(name)
        result: list[tuple[str, ...] | None] = []
        for index, unit in enumerate(self.units):
            living |= dict.fromkeys(name for name in unit.gives if self.last_use(name) > index)
            for name in dying[index]:
                living.pop(name, None)
            result.append(tuple(living) if len(living) <= limit else None)
        return result

    def constants_of(self, names: Iterable[str]) -> tuple[set[str], list[onnx.NodeProto]]:
        """The stored constants from which `names` come, and the nodes that make them from those,
        in their order."""
        stored: set[str] = set()
        nodes: dict[int, onnx.NodeProto] = {}
        todo = list(names)
        seen = set(todo)
        while todo:
            name = todo.pop()
            if name in self.weights:
                stored.add(name)
                continue
            place, node = self.folded[name]
            nodes[place] = node
            fresh = [n for n in reads(node) if n not in seen]
            seen.update(fresh)
            todo += fresh
        return stored, [nodes[place] for place in sorted(nodes)]

    def weight_bytes(self, units: Sequence[Unit]) -> int:
        """Bytes of the stored constants that any of the units needs, each counted once."""
        stored, _ = self.constants_of({name for unit in units for name in unit.constants})
        return sum(self.weights[name] for name in stored)


def _living_nodes(
    graph: onnx.GraphProto, constants: set[str]
) -> tuple[list[onnx.NodeProto], dict[str, tuple[int, onnx.NodeProto]]]:
    """Nodes on the way to an output: those that depend on an input, and by the name that they
    make those that depend on constants alone."""
    needed = {value.name for value in graph.output}
    living = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(reads(node))
            living.append(node)
    nodes: list[onnx.NodeProto] = []
    folded: dict[str, tuple[int, onnx.NodeProto]] = {}
    known = constants | {value.name for value in graph.input}
    for node in reversed(living):
        named = reads(node)
        unknown = next((name for name in named if name not in known), None)
        if unknown is not None:
            raise CutError(f"The ONNX model is not valid: nothing makes '{unknown[:80]}'.")
        known.update(node.output)
        if _is_constant(node, named, constants, folded):
            folded |= {name: (len(folded), node) for name in node.output if name}
        else:
            nodes.append(node)
    return nodes, folded


def _is_constant(
    node: onnx.NodeProto,
    named: list[str],
    constants: set[str],
    folded: dict[str, tuple[int, onnx.NodeProto]],
) -> bool:
    """Whether a node gives the same wherever it is computed. Bodies, which may draw random
    numbers, and unknown operators may not. (com.microsoft: ONNX Runtime's own, which 16-bit
    quantised models need.)"""
    if node.domain not in _KNOWN_DOMAINS or next(subgraphs(node), None) is not None:
        return False
    if node.op_type.startswith(("Random", "Multinomial", "Bernoulli", "Dropout")):
        return False
    if not named:
        return node.op_type == "Constant"
    return all(name in constants or name in folded for name in named)
