"""Runs a graph under JAX's tracing.

What follows from shapes and small constants alone is computed by numpy while tracing, so that
compiled code holds tensors only; the rest becomes JAX's operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from shoal_controlplane.offload.tpu.worker.errors import ModelError
from shoal_controlplane.offload.tpu.worker.operators import Value
from shoal_controlplane.offload.tpu.worker.reader import Array, Graph, Step

# Larger constants are arguments of the compiled function: in its code each batch size would hold
# them once more, and the compiler would try to compute with them.
_SMALL = 1024

Scope = dict[str, Value]


def weights(graph: Graph) -> dict[str, Array]:
    """The constants of a graph that its compiled form takes as arguments."""
    return {
        name: value
        for name, value in graph.constants.items()
        # Wide integers are indices and shapes, which operators may need to know.
        if value.size > _SMALL and not (value.dtype.kind == "i" and value.itemsize >= 4)
    }


def run(graph: Graph, inputs: Mapping[str, Value], outer: Mapping[str, Value]) -> tuple[Value, ...]:
    """Outputs of a graph in their order. `outer` are values from around it: weights that are
    arguments, and for a subgraph the scope of its node. Raises `ModelError`."""
    scope: Scope = {**graph.constants, **outer, **inputs}
    for step in graph.steps:
        scope.update(zip(step.outputs, _outputs(step, scope), strict=False))
    missing = [name for name in graph.outputs if name not in scope]
    if missing:
        raise ModelError(f"no node gives the output '{missing[0][:80]}'")
    return tuple(scope[name] for name in graph.outputs)


def _outputs(step: Step, scope: Scope) -> tuple[Value, ...]:
    missing = [name for name in step.inputs if name and name not in scope]
    if missing:
        raise ModelError(f"{step.call.title} needs '{missing[0][:80]}', which no node gives")
    inputs = [scope[name] if name else None for name in step.inputs]
    known = all(value is None or isinstance(value, np.ndarray) for value in inputs)
    call = replace(
        step.call, known=known, branch=lambda subgraph: run(subgraph, {}, _around(scope, subgraph))
    )
    try:
        if not known or any(isinstance(value, Graph) for value in call.attributes.values()):
            return _many(step.operator.run(call, *inputs))
        with jax.ensure_compile_time_eval():
            return tuple(np.asarray(value) for value in _many(step.operator.run(call, *inputs)))
    except (
        TypeError,
        ValueError,
        IndexError,
        KeyError,
        AttributeError,
        ZeroDivisionError,
    ) as error:
        if isinstance(error, ModelError):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{call.title} cannot be compiled: {said[:300]}") from error


def _around(scope: Scope, subgraph: Graph) -> Mapping[str, Value]:
    return {name: value for name, value in scope.items() if name not in subgraph.constants}


def _many(found: Any) -> tuple[Value, ...]:
    return tuple(found) if isinstance(found, tuple | list) else (found,)
