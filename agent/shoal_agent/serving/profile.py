"""Warm a model up and measure its service time t(b) on this device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal_agent.runtimes.base import RuntimeRunError
from shoal_shared.clock import Clock
from shoal_shared.profiles import Profile, fit, is_past_knee
from shoal_shared.signature import ModelSignature, TensorSpec, shape_fits
from shoal_shared.tensors import NUMPY, Array

RUNS = 5
BUDGET_S = 2.0
MAX_ELEMENTS = 1 << 26

TimedRun = Callable[[Mapping[str, Array]], Awaitable[tuple[float, Mapping[str, Array]]]]
"""Runs the model once on its accelerator: (pure compute seconds, outputs)."""

# Sizes to try for free dimensions: pictures want a picture's size, anything else the smallest.
_SIZES = (1, 32, 224, 320)
_PICTURE_SIZES = (224, 320, 32, 1)
_PICTURE_RANK = 4


@dataclass(frozen=True)
class Measured:
    """A profile and, where no input made up here could be run, a `note`: one sentence on it."""

    profile: Profile
    note: str = ""


def checked_shapes(
    signature: ModelSignature, option: object
) -> Mapping[str, tuple[int, ...]] | None:
    """Option `profile_shapes`, {input: [dimensions]}; None where it is not given.

    The first dimension of a model with a batch dimension is replaced by the batch sizes to
    measure. Raises `ValueError` with one sentence.
    """
    if option is None:
        return None
    if not isinstance(option, Mapping):
        raise ValueError("option 'profile_shapes' must map inputs to lists of dimensions")
    known = {spec.name: spec.shape for spec in signature.inputs}
    out: dict[str, tuple[int, ...]] = {}
    for name, dims in option.items():
        if name not in known:
            raise ValueError(f"option 'profile_shapes' names the unknown input {str(name)[:80]!r}")
        if not isinstance(dims, list | tuple) or not all(_is_size(d) for d in dims):
            raise ValueError(f"option 'profile_shapes' of '{name}' must be a list of sizes")
        if math.prod(dims) > MAX_ELEMENTS:
            raise ValueError(
                f"option 'profile_shapes' of '{name}' has more than {MAX_ELEMENTS} elements"
            )
        if not shape_fits(tuple(dims), known[name]):
            raise ValueError(
                f"option 'profile_shapes' of '{name}' is {list(dims)}, but the model takes "
                f"{list(known[name])}"
            )
        out[name] = tuple(dims)
    return out


async def measure(
    signature: ModelSignature,
    max_batch: int,
    shapes: Mapping[str, tuple[int, ...]] | None,
    run: TimedRun,
    clock: Clock,
    budget_s: float = BUDGET_S,
) -> Measured:
    """Measure t(b) for b = 1, 2, 4 … until the knee, `max_batch`, or the budget is spent.

    Only b = 1 for a model that has no batch dimension, or turns out not to keep its items apart.
    The first run of each size warms up and is not counted. Never fails: a model that rejects
    every input made up here gets the profile of `unknown`, and a note.
    """
    ends = clock() + budget_s
    candidate: dict[str, tuple[int, ...]] | None = None
    reason = ""
    for attempt in _candidates(signature, shapes):
        try:
            await run(_inputs(signature, attempt, 1))
        except RuntimeRunError as error:
            reason = reason or str(error)
            continue
        candidate = attempt
        break
    if candidate is None:
        return Measured(
            unknown(),
            "no input that could be made up for profiling runs, so the service time comes from "
            f"the first requests (set the option 'profile_shapes'): {reason}",
        )
    samples = [(1, await _median_ms(_inputs(signature, candidate, 1), run, clock, ends))]
    for batch in _ladder(max_batch if signature.batchable else 1):
        # A warm-up and one run, at about twice the time of half the batch each.
        if clock() + 4 * samples[-1][1] / 1000 > ends:
            break
        inputs = _inputs(signature, candidate, batch)
        try:
            _, outputs = await run(inputs)
        except RuntimeRunError:
            break
        if any(a.ndim == 0 or a.shape[0] != batch for a in outputs.values()):
            break
        samples.append((batch, await _median_ms(inputs, run, clock, ends)))
        if is_past_knee(samples):
            break
    return Measured(fit(samples))


def unknown() -> Profile:
    """Nothing is known yet: no time, and no merging."""
    return fit([(1, 0.0)])


async def _median_ms(
    inputs: Mapping[str, Array], run: TimedRun, clock: Clock, ends: float
) -> float:
    times: list[float] = []
    while not times or (len(times) < RUNS and clock() < ends):
        seconds, _ = await run(inputs)
        times.append(seconds * 1000)
    return statistics.median(times)


def _ladder(max_batch: int) -> Iterator[int]:
    batch = 2
    while batch < max_batch:
        yield batch
        batch *= 2
    if max_batch > 1:
        yield max_batch


def _candidates(
    signature: ModelSignature, shapes: Mapping[str, tuple[int, ...]] | None
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes to try, one after the other: those given, or guesses where they leave room."""
    given = dict(shapes or {})
    first = 1 if signature.batchable else 0
    guessed = any(-1 in spec.shape[first:] for spec in signature.inputs if spec.name not in given)
    for size, picture_size in zip(_SIZES, _PICTURE_SIZES, strict=True):
        yield {
            spec.name: given.get(spec.name)
            or _filled(spec, picture_size if len(spec.shape) >= _PICTURE_RANK else size)
            for spec in signature.inputs
        }
        if not guessed:
            return


def _filled(spec: TensorSpec, size: int) -> tuple[int, ...]:
    return tuple(size if d == -1 else d for d in spec.shape)


def _inputs(
    signature: ModelSignature, shapes: Mapping[str, tuple[int, ...]], batch: int
) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = shapes[spec.name]
        if signature.batchable:
            shape = (batch, *shape[1:])
        if spec.datatype == "BYTES":
            out[spec.name] = np.full(shape, b"", dtype=object)
        else:
            out[spec.name] = np.zeros(shape, NUMPY[spec.datatype])
    return out


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
