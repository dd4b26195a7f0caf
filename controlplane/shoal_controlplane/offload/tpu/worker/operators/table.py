"""The table of operators: what the worker can run, by domain, name and opset.

An operator is a function `(call, *inputs)` that returns its output, or a tuple of them. Inputs are
numpy arrays where their values are known while compiling (weights that are small, shapes and what
is computed from them) and JAX arrays where they are not; None stands for an input left out. Where
all inputs are known, `call.xp` is numpy and the result stays known.

Source: the operator schemas of ONNX, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal_controlplane.offload.tpu.worker.errors import UnsupportedError
from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp

Value = Any
"""A numpy array that is known while compiling, or a JAX array that is not."""

Run = Callable[..., Any]

NEWEST_OPSET: Mapping[str, int] = {"": 28, "com.microsoft": 1}
"""The newest opset of each domain whose schemas the table was compared with."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An implementation for models of opset `since` and later, up to the next entry's.

    `attributes` names those that it honours, with the values allowed, or none for any value.
    """

    name: str
    domain: str
    since: int
    attributes: Mapping[str, tuple[Any, ...]]
    run: Run


_TABLE: dict[tuple[str, str], list[Operator]] = {}


def operator(
    *names: str,
    since: int = 1,
    domain: str = "",
    attributes: str = "",
    only: Mapping[str, tuple[Any, ...]] | None = None,
) -> Callable[[Run], Run]:
    """Enter a function for the operators `names` into the table. `attributes` are names separated
    by blanks; `only` names further ones with the values that are allowed."""
    allowed: dict[str, tuple[Any, ...]] = dict.fromkeys(attributes.split(), ())
    allowed |= only or {}

    def enter(run: Run) -> Run:
        for name in names:
            entries = _TABLE.setdefault((domain, name), [])
            entries.append(Operator(name, domain, since, allowed, run))
            entries.sort(key=lambda entry: -entry.since)
        return run

    return enter


def entries() -> Sequence[Operator]:
    """All of the table, by domain, name and opset."""
    return sorted(
        (entry for versions in _TABLE.values() for entry in versions),
        key=lambda entry: (entry.domain, entry.name, entry.since),
    )


@dataclass(slots=True)
class Call:
    """One node of a graph as its operator sees it."""

    op: str
    domain: str
    opset: int
    name: str
    attributes: Mapping[str, Any]
    outputs: int
    known: bool = False
    """Whether all inputs are known while compiling."""
    branch: Callable[[Any], tuple[Value, ...]] = field(repr=False, default=lambda graph: ())
    """Runs a subgraph within the scope of this node."""

    @property
    def xp(self) -> Any:
        """numpy where all inputs are known, JAX's numpy otherwise."""
        return np if self.known else jnp

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return self.attributes.get(name, default)

    def constant(self, value: Value, what: str) -> np.ndarray[Any, Any]:
        """An input whose value must be known while compiling."""
        if not isinstance(value, np.ndarray):
            raise self.unsupported(f"its {what} depends on the data of a request")
        return value

    def integers(self, value: Value, what: str) -> list[int]:
        """A known input as integers."""
        return [int(item) for item in self.constant(value, what).reshape(-1)]

    def unsupported(self, reason: str) -> UnsupportedError:
        """The refusal of this node."""
        return UnsupportedError(f"{self.title} cannot run on the TPU worker: {reason}")

    @property
    def title(self) -> str:
        """Operator, domain, opset and node in words."""
        where = f"node '{self.name[:80]}'" if self.name else "a node without a name"
        return (
            f"operator {self.op[:80]} (domain {self.domain[:80] or 'ai.onnx'}, "
            f"opset {self.opset}, {where})"
        )


def lookup(call: Call) -> Operator:
    """The implementation for a node. Raises `UnsupportedError` where there is none, or where the
    node has an attribute that it does not honour."""
    versions = _TABLE.get((call.domain, call.op))
    if versions is None:
        raise UnsupportedError(f"the TPU worker has no {call.title}")
    newest = NEWEST_OPSET[call.domain]
    if call.opset > newest:
        raise call.unsupported(f"it knows opsets up to {newest}")
    entry = next((entry for entry in versions if entry.since <= call.opset), None)
    if entry is None:
        raise call.unsupported(f"it knows {call.op} from opset {versions[-1].since} on")
    for name, value in call.attributes.items():
        if name not in entry.attributes:
            raise call.unsupported(f"attribute {name[:80]} is unknown")
        allowed = entry.attributes[name]
        if allowed and (tuple(value) if isinstance(value, list) else value) not in allowed:
            raise call.unsupported(f"attribute {name} is {repr(value)[:80]}")
    return entry


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis, counted from the front."""
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is outside of {rank} dimensions")
    return axis % rank if rank else 0
