"""A request on its way through this device: checked, computed, and answered in bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal_agent.serving.queue import Entry
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, OipError, Tensor
from shoal_shared.signature import ModelSignature
from shoal_shared.status import InferCode
from shoal_shared.tensors import Array, Buffer
from shoal_shared.validation import check_request

_MAX_TIMEOUT_US = 2**53

Reply = Callable[[list[Buffer], "int | None"], None]
"""Takes the buffers of a reply, to be joined, and the length of its header."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs that a request asked for, the pure compute time, and the items of its run."""

    outputs: list[Tensor]
    seconds: float
    batch: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not computed: a code, and one sentence."""

    code: InferCode
    error: str


Key = tuple[str, bytes]
"""What names a request to whoever may cancel it: the topic of its answer, which is its gateway's
own, and the correlation data."""

Done = Callable[["Answer | Refusal"], None]
"""Takes what became of a request, on the event loop. It may raise `TensorError` for outputs that
cannot be used, and is then called once more, with a refusal that says so."""


@dataclass(slots=True, eq=False)
class Pending(Entry):
    """A request that was accepted; `done` is told what became of it, unless it is withdrawn."""

    request: InferRequest
    done: Done
    key: Key | None = None
    withdrawn: bool = False

    @property
    def inputs(self) -> dict[str, Array]:
        return {tensor.name: tensor.data for tensor in self.request.inputs}


@dataclass(frozen=True, slots=True)
class Contract:
    """What requests to a model must fit, and what can be asked of it.

    `max_batch` is 0 where its requests are not merged: then a batch dimension, if there is one,
    is the model's own affair.
    """

    signature: ModelSignature
    max_batch: int
    datatypes: Mapping[str, str]
    """Of the outputs, in their order."""
    shapes_vary: bool
    """Whether requests may differ in other dimensions than the first."""

    @classmethod
    def of(cls, signature: ModelSignature, max_batch: int) -> Contract:
        """`max_batch` as in a goal: 1 where requests must not be merged."""
        return cls(
            signature,
            max_batch if max_batch > 1 and signature.batchable else 0,
            {spec.name: spec.datatype for spec in signature.outputs},
            any(-1 in spec.shape[1:] for spec in signature.inputs),
        )


def deadline_of(parameters: Mapping[str, Any], now: float, expires_at: float | None) -> float:
    """When a request expires: the earlier of its `timeout` (µs from now, 0 for none) and the
    message's own expiry. Infinite where there is neither. Raises `OipError`.
    """
    deadline = math.inf if expires_at is None else expires_at
    timeout = parameters.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0:
        raise OipError("parameter 'timeout' must be a number of microseconds")
    # JSON may hold integers that no float does.
    return min(deadline, now + min(timeout, _MAX_TIMEOUT_US) / 1e6) if timeout else deadline


def accept(
    request: InferRequest,
    contract: Contract,
    *,
    number: int,
    now: float,
    deadline: float,
    done: Done,
    key: Key | None = None,
) -> Pending:
    """Check a request; raises `OipError` naming what was expected."""
    items = check_request(request, contract.signature, contract.max_batch)
    kind: Hashable = None
    # A request without items is counted as one, so it runs alone.
    if contract.max_batch and request.inputs[0].data.shape[0]:
        kind = _shapes(request, contract.signature) if contract.shapes_vary else ()
    return Pending(number, items, kind, now, deadline, request, done, key)


def answer(
    request: InferRequest, reply: Reply, outputs: list[Tensor], parameters: dict[str, Any]
) -> None:
    """Send outputs. Raises `TensorError` if they cannot be encoded."""
    buffers, header_length = oip.encode_reply(
        InferReply(outputs, request.model_name, request.model_version, request.id, parameters)
    )
    reply(buffers, header_length)


def refuse(
    request: InferRequest | None, reply: Reply, refusal: Refusal, parameters: dict[str, Any]
) -> None:
    """Send an error; `request` is None where it could not be read."""
    request = request or InferRequest([])
    buffers, header_length = oip.encode_reply(
        InferReply(
            [],
            request.model_name,
            request.model_version,
            request.id,
            parameters,
            refusal.error,
            refusal.code.value,
        )
    )
    reply(buffers, header_length)


def _shapes(request: InferRequest, signature: ModelSignature) -> Hashable:
    """Everything but the batch dimension, in the order of the model's inputs."""
    shapes = {tensor.name: tensor.data.shape[1:] for tensor in request.inputs}
    return tuple(shapes[spec.name] for spec in signature.inputs)
