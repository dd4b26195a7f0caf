"""The way of one request where devices may be full: to them, to a cloud, or back at once.

What is decided stands in `admission`; this does it. A cloud that fails is followed by the next one,
then by the devices if they can still be in time; devices that fail are followed by a cloud. A
request that must not be computed twice goes to one place only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal_controlplane.gateway.admission import Admission, Ask, Priority, Way, p95_ms
from shoal_controlplane.gateway.clouds import CloudOption, Clouds
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.pressure import Pressures
from shoal_controlplane.gateway.router import Ticket
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_controlplane.offload.target import Fault, TargetError
from shoal_shared.clock import Clock
from shoal_shared.oip import InferReply, InferRequest

RESCUED = (GatewayStatus.UNAVAILABLE, GatewayStatus.EXHAUSTED, GatewayStatus.INTERNAL)
"""Failures of devices after which a cloud is asked."""

PATIENCE = 4.0
MIN_PATIENCE_S = 0.5
"""A target gets `PATIENCE` times as long as 95 of 100 requests take, and at least so long, before
another place is asked."""

MAX_SENTENCE = 500


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request wants to be answered. `deadline` ends it, and by `due` it should be answered;
    both, and `started`, are readings of the clock."""

    started: float
    due: float
    deadline: float
    idempotent: bool = True
    priority: Priority = Priority.STANDARD
    client: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A request for a model, with `items` batch items and `payload_bytes` of inputs."""

    request: InferRequest
    model: ServedModel
    replicas: Callable[[], Sequence[Replica]]
    items: int
    terms: Terms

    @property
    def key(self) -> str:
        return f"{self.model.name}:{self.model.version}"

    @property
    def payload_bytes(self) -> int:
        return sum(tensor.data.nbytes for tensor in self.request.inputs)


class _Spill(Exception):  # noqa: N818 — no error: the way out of the dispatcher to a cloud
    def __init__(self, option: CloudOption) -> None:
        super().__init__(option.target)
        self.option = option


class Overflow:
    """Sends requests to where there is room for them."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        admission: Admission,
        clouds: Clouds,
        pressures: Pressures,
        clock: Clock,
    ) -> None:
        self._dispatcher = dispatcher
        self._admission = admission
        self._clouds = clouds
        self._pressures = pressures
        self._clock = clock

    async def call(self, job: Job) -> InferReply:
        """Answer a request. The reply's parameters say by which `device` or `target`. Raises
        `GatewayError`."""
        refusal: GatewayError | None = None

        def admit(ticket: Ticket | None, now: float) -> Exception | None:
            nonlocal refusal
            outcome = self.admit(job, ticket, now)
            refusal = outcome if isinstance(outcome, GatewayError) else None
            return outcome

        try:
            reply = await self._devices(job, admit)
        except _Spill as spill:
            return await self._spill(job, spill.option)
        except GatewayError as error:
            if error is refusal:
                raise
            return await self.rescue(job, error)
        now, terms = self._clock(), job.terms
        took_ms, may_ms = (now - terms.started) * 1e3, (terms.due - terms.started) * 1e3
        self._admission.answered(job.key, took_ms, may_ms, now)
        return reply

    def split(self, job: Job) -> None:
        """Several devices together take a request."""
        self._pressures.edge(job.model, job.items)

    async def rescue(self, job: Job, error: GatewayError) -> InferReply:
        """Have a cloud answer what devices failed with `error`, or raise that."""
        if error.status is GatewayStatus.EXHAUSTED:
            self._pressures.turned_away(job.model, job.items)
        if job.terms.idempotent and error.status in RESCUED:
            option = self._option(job, ())
            if option is not None:
                return await self._ask_clouds(job, option, error)
        self._note_shed(job, error)
        raise error

    def admit(self, job: Job, ticket: Ticket | None, now: float) -> Exception | None:
        model, items, terms = job.model, job.items, job.terms

        def options() -> Sequence[CloudOption]:
            return self._clouds.options(model, items, job.payload_bytes, now)

        left_ms = (terms.due - now) * 1e3
        ask = Ask(job.key, items, left_ms, terms.priority, terms.client)
        decision = self._admission.decide(ask, ticket, options, now)
        if decision.full:
            self._pressures.turned_away(model, items)
        if decision.option is not None:
            return _Spill(decision.option)
        if decision.way is Way.EDGE:
            if ticket is not None:
                self._pressures.edge(model, items, ticket)
            return None
        self._pressures.shed(model, items)
        return GatewayError(GatewayStatus.EXHAUSTED, decision.reason, decision.retry_after_s)

    async def _devices(
        self, job: Job, admit: Callable[[Ticket | None, float], Exception | None]
    ) -> InferReply:
        reply, ticket = await self._dispatcher.call(
            job.request,
            job.replicas,
            job.items,
            job.terms.deadline,
            idempotent=job.terms.idempotent,
            sharded=job.model.sharded,
            admit=admit,
        )
        return by_device(reply, ticket.device)

    async def _spill(self, job: Job, option: CloudOption) -> InferReply:
        """Answer by a cloud, the next one, or, after all, by the devices."""
        try:
            return await self._ask_clouds(job, option, None)
        except GatewayError as error:
            if error.status is GatewayStatus.INVALID:
                raise
            failed = error
        if not job.terms.idempotent or self._clock() >= job.terms.deadline:
            self._note_shed(job, failed)
            raise failed

        def in_time(ticket: Ticket | None, now: float) -> Exception | None:
            left_ms = (job.terms.deadline - now) * 1e3
            if ticket is None:
                return None
            if p95_ms(ticket) > left_ms:
                sentence = (
                    f"devices would answer 95 of 100 such requests within {p95_ms(ticket):.0f} ms, "
                    f"and {left_ms:.0f} ms are left"
                )
                late_s = (p95_ms(ticket) - left_ms) / 1e3
                return GatewayError(GatewayStatus.EXHAUSTED, sentence, late_s)
            self._pressures.edge(job.model, job.items, ticket)
            return None

        try:
            return await self._devices(job, in_time)
        except GatewayError as error:
            both = GatewayError(error.status, f"{failed}; {error}", error.retry_after_s)
            self._note_shed(job, both)
            raise both from None

    async def _ask_clouds(
        self, job: Job, option: CloudOption | None, before: GatewayError | None
    ) -> InferReply:
        """Answer by `option`, or the next cloud; `before` is what devices failed with."""
        model, terms = job.model, job.terms
        words = [str(before)] if before is not None else []
        status = before.status if before is not None else GatewayStatus.UNAVAILABLE
        retry_after_s = before.retry_after_s if before is not None else 1.0
        tried: set[str] = set()
        while option is not None:
            tried.add(option.target)
            try:
                reply = await self._clouds.infer(
                    option.target, model, job.request, job.items, self._until(job, option)
                )
            except TargetError as error:
                words.append(f"target {option.target} failed: {error}")
                if error.fault is Fault.INVALID:
                    raise GatewayError(GatewayStatus.INVALID, words[-1][:MAX_SENTENCE]) from None
                if error.retry_after_s is not None and before is None:
                    status, retry_after_s = GatewayStatus.EXHAUSTED, error.retry_after_s
                option = self._option(job, tried) if terms.idempotent else None
            else:
                self._pressures.spilled(model, job.items, option.target)
                reply.parameters = {"target": option.target}
                return reply
        failed = GatewayError(status, "; ".join(words)[:MAX_SENTENCE], retry_after_s)
        if before is not None:
            self._note_shed(job, failed)
        raise failed

    def _option(self, job: Job, tried: Sequence[str] | set[str]) -> CloudOption | None:
        """A cloud that was not tried and is in time before the deadline."""
        now = self._clock()
        left_ms = (job.terms.deadline - now) * 1e3
        options = self._clouds.options(job.model, job.items, job.payload_bytes, now)
        fitting = (o for o in options if o.target not in tried and o.finish_ms <= left_ms)
        return next(fitting, None)

    def _until(self, job: Job, option: CloudOption) -> float:
        """Until when a target may answer; without another place, until the deadline."""
        if not job.terms.idempotent:
            return job.terms.deadline
        patience_s = max(MIN_PATIENCE_S, PATIENCE * option.finish_ms / 1e3)
        return min(job.terms.deadline, self._clock() + patience_s)

    def _note_shed(self, job: Job, error: GatewayError) -> None:
        """Nobody answers: for the picture that counts where room or places were wanting."""
        if error.status in (GatewayStatus.EXHAUSTED, GatewayStatus.UNAVAILABLE):
            self._pressures.shed(job.model, job.items)


def by_device(reply: InferReply, device: str) -> InferReply:
    """A device's reply, which must not speak for others."""
    for name in ("devices", "target"):
        reply.parameters.pop(name, None)
    reply.parameters["device"] = device
    return reply
