"""The stages of plans that this device computes: from activations to activations, or an answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from shoal_agent.connectivity.exchange import Exchange
from shoal_agent.service.logs import fields
from shoal_agent.serving.activations import Activations, Step, computed_nan
from shoal_agent.serving.request import Answer, Done, Refusal, answer, deadline_of, refuse
from shoal_shared import oip
from shoal_shared.activations import compress
from shoal_shared.clock import Clock
from shoal_shared.messages import RoleGoal
from shoal_shared.oip import InferRequest, OipError, Tensor
from shoal_shared.signature import ModelSignature
from shoal_shared.status import InferCode
from shoal_shared.tensors import TensorError
from shoal_shared.topics import Topics

log = logging.getLogger("stages")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""As much as a device takes in one message."""


class Computing(Protocol):
    """What stages ask of the models on the device; see `InferenceService`."""

    @property
    def depth(self) -> int: ...

    def signature(self, model: str, version: str) -> ModelSignature | None: ...

    def submit(self, request: InferRequest, expires_at: float | None, done: Done) -> None: ...


class Requests(Protocol):
    """Where requests come from, by topic; see `DeviceSession`."""

    def listen(self, topic: str, handler: Callable[[Exchange], None]) -> None: ...

    def leave(self, topic: str) -> None: ...


class Stages:
    """Computes the roles of a goal, and listens on exactly their topics."""

    def __init__(
        self, computing: Computing, requests: Requests, topics: Topics, device: str, *, clock: Clock
    ) -> None:
        self._computing = computing
        self._requests = requests
        self._topics = topics
        self._device = device
        self._clock = clock
        self._stages: dict[str, Stage] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The stages as people read them."""
        roles = (stage.role for stage in self._stages.values())
        return tuple(f"{r.stage} of {r.plan}, epoch {r.epoch}" for r in roles)

    def assign(self, roles: Iterable[RoleGoal]) -> None:
        """Take up new roles and leave those that are gone. What was accepted is still answered."""
        wanted = {self._topics.stage(r.plan, r.epoch, r.stage, r.replica): r for r in roles}
        gone = [topic for topic in self._stages if topic not in wanted]
        new = [t for t, r in wanted.items() if t not in self._stages or self._stages[t].role != r]
        for topic in gone:
            self._requests.leave(topic)
            del self._stages[topic]
        for topic in new:
            stage = Stage(
                wanted[topic], self._computing, self._topics, self._device, clock=self._clock
            )
            self._stages[topic] = stage
            self._requests.listen(topic, stage.handle)
        if gone or new:
            log.info("stages changed", extra=fields(now=len(wanted), new=len(new), gone=len(gone)))


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A request under way in a stage. `request` is its message, `passes` what travels on of it."""

    request: InferRequest
    exchange: Exchange
    activations: Activations
    inputs: list[Tensor]
    passes: list[Tensor]
    arrived: float
    deadline: float


class Stage:
    """One role. `stale` counts messages that were dropped because they are of another epoch."""

    def __init__(
        self, role: RoleGoal, computing: Computing, topics: Topics, device: str, *, clock: Clock
    ) -> None:
        self.role = role
        self.stale = 0
        self._computing = computing
        self._topics = topics
        self._device = device
        self._clock = clock
        self._turns = Turns(role.next)
        self._under_way: set[_Work] = set()

    def handle(self, exchange: Exchange) -> None:
        """Take a message of the stage's topic. Nothing in it makes this raise."""
        role, now = self.role, self._clock()
        request = None
        try:
            request = oip.decode_request(exchange.payload, exchange.header_length)
            epoch = request.parameters.get("epoch")
            if type(epoch) is not int or epoch != role.epoch:
                self.stale += 1
                return
            if len(self._under_way) >= role.credits:
                text = f"{role.credits} requests are under way in {self._name} already"
                self._refuse(request, exchange, Refusal(InferCode.OVERLOADED, text))
                return
            deadline = deadline_of(request.parameters, now, exchange.expires_at)
            activations = Activations.of(request)
            passes = activations.passes(role.passes)
        except OipError as error:
            self._refuse(request, exchange, Refusal(InferCode.INVALID, str(error)))
            return
        signature = self._computing.signature(role.model, role.version)
        names = [spec.name for spec in signature.inputs] if signature else []
        inputs = activations.inputs(names)
        work = _Work(request, exchange, activations, inputs, passes, now, deadline)
        self._under_way.add(work)
        self._computing.submit(
            InferRequest(inputs, [], role.model, role.version), deadline, partial(self._done, work)
        )

    def _done(self, work: _Work, result: Answer | Refusal) -> None:
        """Raises `TensorError` for outputs that cannot be used."""
        self._under_way.discard(work)
        if isinstance(result, Refusal):
            self._refuse(work.request, work.exchange, result)
            return
        if computed_nan(work.inputs, result.outputs):
            raise TensorError(f"{self._name} computed NaN on this device")
        now = self._clock()
        waited = max(0.0, now - work.arrived - result.seconds)
        step: Step = (self._device, _microseconds(waited), _microseconds(result.seconds))
        trace = (*work.activations.trace, step)
        outputs = {tensor.name for tensor in result.outputs}
        passes = [tensor for tensor in work.passes if tensor.name not in outputs]
        if not self.role.next:
            self._answer(work, result, passes, trace)
        elif work.deadline <= now:
            text = f"the deadline passed in {self._name}"
            self._refuse(work.request, work.exchange, Refusal(InferCode.EXPIRED, text))
        else:
            self._send_on(work, [*result.outputs, *passes], passes, trace, work.deadline - now)

    def _answer(
        self, work: _Work, result: Answer, passes: list[Tensor], trace: tuple[Step, ...]
    ) -> None:
        tensors = [*result.outputs, *map(work.activations.restored, passes)]
        parameters = {
            "queue_depth": self._computing.depth,
            "service_us": sum(service for _, _, service in trace),
            "batch": result.batch,
            "epoch": self.role.epoch,
            "trace": trace,
        }
        answer(work.request, work.exchange.reply, tensors, parameters)

    def _send_on(
        self,
        work: _Work,
        tensors: list[Tensor],
        passes: list[Tensor],
        trace: tuple[Step, ...],
        left_s: float,
    ) -> None:
        role, arrived = self.role, work.activations.scales
        known = {tensor.name: arrived[tensor.name] for tensor in passes if tensor.name in arrived}
        tensors, scales = compress(tensors, role.compression, known)
        parameters: dict[str, Any] = {"epoch": role.epoch, "trace": trace}
        expires = left_s < math.inf
        if expires:
            parameters["timeout"] = max(1, _microseconds(left_s))
        if scales:
            parameters["scales"] = scales
        request = work.request
        buffers, header_length = oip.encode_request(
            InferRequest(tensors, [], request.model_name, request.model_version, None, parameters)
        )
        size = sum(map(len, buffers))
        if size > MAX_MESSAGE_BYTES:
            raise TensorError(
                f"the activations of {self._name} have {size} bytes, "
                f"more than the limit of {MAX_MESSAGE_BYTES}"
            )
        topic = self._topics.stage(role.plan, role.epoch, role.stage + 1, self._turns.next())
        work.exchange.forward(topic, buffers, header_length, left_s if expires else None)

    def _refuse(self, request: InferRequest | None, exchange: Exchange, refusal: Refusal) -> None:
        parameters = {
            "queue_depth": self._computing.depth,
            "epoch": self.role.epoch,
            "stage": self.role.stage,
            "device": self._device,
        }
        refuse(request, exchange.reply, refusal, parameters)

    @property
    def _name(self) -> str:
        return f"stage {self.role.stage} of plan {self.role.plan}"


class Turns:
    """Smooth weighted round robin: after every turn each has had its share, but for less than
    one turn per participant."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self._due = [0.0] * len(shares)

    def next(self) -> int:
        """The index of whose turn it is."""
        self._due = [due + share for due, share in zip(self._due, self._shares, strict=True)]
        first = max(range(len(self._due)), key=self._due.__getitem__)
        self._due[first] -= sum(self._shares)
        return first


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
