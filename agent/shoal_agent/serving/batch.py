"""Run the requests of a batch as one: merge along dimension 0, run, split into views."""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shoal_agent.runtimes.base import (
    LoadedModel,
    RuntimeInputError,
    RuntimeRunError,
    RuntimeShapeError,
)
from shoal_shared.clock import Clock
from shoal_shared.tensors import Array

logger = logging.getLogger(__name__)


class Fault(enum.Enum):
    """What is to blame for a request that failed."""

    DEVICE = enum.auto()
    """The runtime; another device may succeed."""
    REQUEST = enum.auto()
    """The request; no device can answer it."""
    SHAPE = enum.auto()
    """Nobody: the model is compiled for other shapes here, but maybe not elsewhere."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request: its outputs, or `error`, one sentence, and its `fault`.

    `seconds` is the pure compute
    time of the run it was in, `batch` the items of that run.
    """

    outputs: Mapping[str, Array]
    error: str
    seconds: float
    batch: int
    fault: Fault = Fault.DEVICE


def run_batch(
    model: LoadedModel, inputs: Sequence[Mapping[str, Array]], items: Sequence[int], clock: Clock
) -> list[Outcome]:
    """Run requests with `items` items each; one outcome per request, in order. Never raises.

    Requests that cannot be answered as one are run one by one, so that a bad one fails alone.
    """
    if len(inputs) > 1:
        merged = {name: np.concatenate([i[name] for i in inputs]) for name in inputs[0]}
        whole = _run(model, merged, sum(items), clock)
        if all(a.ndim and a.shape[0] == whole.batch for a in whole.outputs.values()):
            if not whole.error:
                return _split(whole, items)
        else:
            logger.warning("A merged batch came back with another number of items")
    return [_run(model, one, n, clock) for one, n in zip(inputs, items, strict=True)]


def _run(model: LoadedModel, inputs: Mapping[str, Array], items: int, clock: Clock) -> Outcome:
    started = clock()
    try:
        outputs = model.run(inputs)
    except RuntimeRunError as error:
        return Outcome({}, str(error), clock() - started, items, _fault(error))
    except Exception as error:
        logger.exception("A runtime raised what it should not")
        return Outcome({}, f"the runtime failed: {type(error).__name__}", clock() - started, items)
    return Outcome(outputs, "", clock() - started, items)


def _fault(error: RuntimeRunError) -> Fault:
    if isinstance(error, RuntimeInputError):
        return Fault.REQUEST
    return Fault.SHAPE if isinstance(error, RuntimeShapeError) else Fault.DEVICE


def _split(whole: Outcome, items: Sequence[int]) -> list[Outcome]:
    out: list[Outcome] = []
    at = 0
    for n in items:
        part = {name: array[at : at + n] for name, array in whole.outputs.items()}
        out.append(Outcome(part, "", whole.seconds, whole.batch))
        at += n
    return out
