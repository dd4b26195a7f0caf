"""The way of one request over MQTT: attempts on devices until one answers.

Inference is idempotent, so a request whose device dies, stays silent or fails is sent to another
one; whichever answers first wins. Only a request with a `sequence_id` is tried once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.table import Replica
from shoal_controlplane.mqtt.link import Link
from shoal_shared import oip
from shoal_shared.clock import Clock
from shoal_shared.oip import InferReply, InferRequest, OipError
from shoal_shared.publish import (
    Message,
    PublishProperties,
    correlation_data,
    message_expiry,
    response_topic,
    user_property,
)
from shoal_shared.status import RETRYABLE, InferCode
from shoal_shared.topics import DeviceTopic, Topics

log = structlog.get_logger("gateway")

MAX_ATTEMPTS = 3
MIN_SILENCE_S = 0.5
SILENCE_FACTOR = 6.0


@dataclass(slots=True, eq=False)
class Call:
    """A request under way. `replicas` is asked anew for each attempt."""

    request: InferRequest
    replicas: Callable[[], Sequence[Replica]]
    items: int
    deadline: float
    attempts_left: int
    answer: asyncio.Future[tuple[InferReply, Ticket]]
    tried: set[str] = field(default_factory=set)
    suspects: list[Ticket] = field(default_factory=list)
    last_error: str = ""
    timer: asyncio.TimerHandle | None = None

    @property
    def model(self) -> str:
        return f"{self.request.model_name}:{self.request.model_version}"


class Dispatcher:
    """Sends requests, matches replies by their correlation data, and tries again."""

    def __init__(
        self, link: Link, topics: Topics, gateway_id: str, router: Router, clock: Clock
    ) -> None:
        self._link = link
        self._topics = topics
        self._router = router
        self._clock = clock
        self._numbers = itertools.count(1)
        self._pending: dict[bytes, tuple[Call, Ticket]] = {}
        self._infer_topics: dict[str, str] = {}
        reply_topic = topics.replies(gateway_id)
        self._reply_to = response_topic(reply_topic)
        link.subscribe(reply_topic, 0, self._on_reply)

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    async def call(
        self,
        request: InferRequest,
        replicas: Callable[[], Sequence[Replica]],
        items: int,
        deadline: float,
        *,
        idempotent: bool = True,
    ) -> tuple[InferReply, Ticket]:
        """Send `request` (with model name and version) and wait for its answer.

        `deadline` is a reading of the clock. Cancelling the coroutine forgets the request.
        Raises `GatewayError`.
        """
        loop = asyncio.get_running_loop()
        attempts = MAX_ATTEMPTS if idempotent else 1
        call = Call(request, replicas, items, deadline, attempts, loop.create_future())
        self._attempt(call)
        try:
            return await call.answer
        finally:
            self._forget(call)

    def device_gone(self, device: str) -> None:
        """The device lost its session: what it was working on goes elsewhere at once."""
        for key, (call, ticket) in list(self._pending.items()):
            if ticket.device == device:
                del self._pending[key]
                self._router.failed(ticket, self._clock())
                call.last_error = f"device {device} went offline"
                self._attempt(call)

    def _attempt(self, call: Call) -> None:
        """Send to the best device that was not tried, or end the call."""
        if call.answer.done():
            return
        now = self._clock()
        remaining = call.deadline - now
        waiting = any(c is call for c, _ in self._pending.values()) if call.tried else False
        if remaining <= 0:
            self._fail(call, GatewayStatus.DEADLINE, "the deadline passed before an answer came")
            return
        ticket = None
        if call.attempts_left > 0:
            ticket = self._router.pick(
                call.model, call.replicas(), call.items, now, exclude=call.tried
            )
        if ticket is None:
            if waiting:
                self._set_timer(call, remaining)
            elif call.last_error:
                self._fail(call, GatewayStatus.INTERNAL, call.last_error)
            else:
                self._fail(
                    call,
                    GatewayStatus.UNAVAILABLE,
                    f"no device serves {call.model} now",
                    retry_after_s=1.0,
                )
            return
        if ticket.delay_ms > remaining * 1e3 and not call.tried:
            self._router.released(ticket, now)
            late = ticket.delay_ms / 1e3 - remaining
            self._fail(
                call,
                GatewayStatus.EXHAUSTED,
                f"no device can answer within {remaining * 1e3:.0f} ms: the earliest would take "
                f"{ticket.delay_ms:.0f} ms",
                retry_after_s=late,
            )
            return
        if not self._send(call, ticket, remaining):
            self._router.released(ticket, now)
            self._fail(
                call, GatewayStatus.UNAVAILABLE, "the broker cannot be reached", retry_after_s=1.0
            )
            return
        call.tried.add(ticket.device)
        call.attempts_left -= 1
        silence = max(MIN_SILENCE_S, SILENCE_FACTOR * ticket.delay_ms / 1e3)
        self._set_timer(call, min(remaining, silence) if call.attempts_left else remaining)

    def _send(self, call: Call, ticket: Ticket, remaining: float) -> bool:
        call.request.parameters = {"timeout": int(remaining * 1e6)}
        buffers, header_length = oip.encode_request(call.request)
        key = next(self._numbers).to_bytes(8, "big")
        topic = self._infer_topics.get(ticket.device)
        if topic is None:
            topic = self._topics.device(ticket.device, DeviceTopic.INFER)
            self._infer_topics[ticket.device] = topic
        properties = PublishProperties(
            self._reply_to,
            correlation_data(key),
            message_expiry(int(remaining) + 1),
            user_property(oip.HEADER_LENGTH, str(header_length)),
        )
        self._pending[key] = (call, ticket)
        if self._link.publish(topic, b"".join(buffers), properties=properties):
            return True
        del self._pending[key]
        return False

    def _on_reply(self, message: Message) -> None:
        # Late, replayed and forged replies find nothing that waits for them.
        entry = self._pending.pop(message.correlation or b"", None)
        if entry is None:
            return
        call, ticket = entry
        now = self._clock()
        try:
            length = message.user_properties.get(oip.HEADER_LENGTH)
            reply = oip.decode_reply(message.payload, int(length) if length else None)
            code = InferCode(reply.code) if reply.error else None
            names = ("queue_depth", "service_us", "batch")
            depth, service_us, batch = (int(reply.parameters.get(name, 0)) for name in names)
        except (OipError, ValueError, TypeError) as error:
            log.warning("unreadable reply", device=ticket.device, error=str(error))
            self._router.failed(ticket, now)
            call.last_error = f"device {ticket.device} sent a reply that cannot be read"
            self._attempt(call)
            return
        if code is None:
            self._router.succeeded(ticket, now, depth, service_us / 1e3, batch)
            if not call.answer.done():
                call.answer.set_result((reply, ticket))
            return
        self._router.released(ticket, now)
        if code in RETRYABLE:
            if code is InferCode.INTERNAL:
                call.suspects.append(ticket)
            call.last_error = f"device {ticket.device}: {reply.error}"
            self._attempt(call)
        elif code is InferCode.EXPIRED:
            self._fail(call, GatewayStatus.DEADLINE, reply.error)
        else:
            self._fail(call, GatewayStatus.INVALID, reply.error)

    def _on_silence(self, call: Call) -> None:
        now = self._clock()
        call.timer = None
        for other, ticket in self._pending.values():
            # The reply may still come and then wins; the device is to blame all the same.
            if other is call and ticket.open:
                self._router.failed(ticket, now)
        if now >= call.deadline:
            self._fail(call, GatewayStatus.DEADLINE, "the deadline passed before an answer came")
        else:
            self._attempt(call)

    def _set_timer(self, call: Call, seconds: float) -> None:
        if call.timer is not None:
            call.timer.cancel()
        loop = asyncio.get_running_loop()
        call.timer = loop.call_later(seconds, self._on_silence, call)

    def _fail(
        self,
        call: Call,
        status: GatewayStatus,
        message: str,
        retry_after_s: float | None = None,
    ) -> None:
        if not call.answer.done():
            call.answer.set_exception(GatewayError(status, message, retry_after_s))

    def _forget(self, call: Call) -> None:
        if call.timer is not None:
            call.timer.cancel()
        now = self._clock()
        answered = call.answer.done() and not call.answer.cancelled()
        answered = answered and call.answer.exception() is None
        if not answered or len(call.tried) > 1:
            for key in [k for k, (c, _) in self._pending.items() if c is call]:
                self._router.released(self._pending.pop(key)[1], now)
        if answered:
            # Another device answered the same request: the suspects were at fault, not it.
            for ticket in call.suspects:
                self._router.blame(ticket.device, now, probe=ticket.probe)
