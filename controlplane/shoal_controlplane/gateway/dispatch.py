"""The way of one request over MQTT: attempts on devices until one answers.

Inference is idempotent, so a request whose device dies, stays silent or fails is sent to another
one; whichever answers first wins. Only a request with a `sequence_id` is tried once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.table import Replica
from shoal_controlplane.mqtt.link import Link
from shoal_shared import oip
from shoal_shared.clock import Clock
from shoal_shared.oip import InferReply, InferRequest
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
MAX_RESENDS = 4
"""A message of QoS 0 may be lost with a session; with pauses that double this outlasts most."""

MIN_SILENCE_S = 0.5
SILENCE_FACTOR = 6.0
MAX_FIGURE = 2**40
"""Of a figure in a reply; in µs more than any request may take."""

MAX_SENTENCE = 500
_TICK_S = 1e-3
"""Timers may fire this much too early."""

# What it means if the last device that was tried answers so, too.
_STATUS = {
    InferCode.OVERLOADED: GatewayStatus.EXHAUSTED,
    InferCode.NOT_FOUND: GatewayStatus.UNAVAILABLE,
    InferCode.INTERNAL: GatewayStatus.INTERNAL,
}


@dataclass(slots=True, eq=False)
class Call:
    """A request under way. `replicas` is asked anew for each attempt; `waiting` holds the
    attempts that may still be answered."""

    request: InferRequest
    replicas: Callable[[], Sequence[Replica]]
    items: int
    deadline: float
    attempts_left: int
    resends_left: int
    answer: asyncio.Future[tuple[InferReply, Ticket]]
    waiting: dict[bytes, Ticket] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    suspects: list[Ticket] = field(default_factory=list)
    last_error: str = ""
    last_status: GatewayStatus = GatewayStatus.INTERNAL
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
        self._pending: dict[bytes, Call] = {}
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
        resends = MAX_RESENDS if idempotent else 0
        call = Call(request, replicas, items, deadline, attempts, resends, loop.create_future())
        try:
            self._attempt(call)
            return await call.answer
        finally:
            self._forget(call)

    def device_gone(self, device: str) -> None:
        """The device lost its session: what it was working on goes elsewhere at once."""
        for key, call in list(self._pending.items()):
            ticket = call.waiting.get(key)
            if ticket is not None and ticket.device == device:
                self._settle(key)
                self._router.failed(ticket, self._clock())
                self._failed(call, f"device {device} went offline", GatewayStatus.INTERNAL)

    def _attempt(self, call: Call, *, all_silent: bool = False) -> None:
        """Send to the best device that was not tried, or end the call.

        If all were tried and stay silent, the best of them is asked once more.
        """
        if call.answer.done():
            return
        now = self._clock()
        remaining = call.deadline - now
        if remaining <= 0:
            self._fail(call, GatewayStatus.DEADLINE, "the deadline passed before an answer came")
            return
        ticket = None
        if call.attempts_left > 0:
            ticket = self._router.pick(
                call.model, call.replicas(), call.items, now, exclude=call.tried
            )
        if ticket is None and all_silent and call.resends_left > 0:
            call.resends_left -= 1
            ticket = self._router.pick(call.model, call.replicas(), call.items, now)
        if ticket is None:
            if call.waiting:
                pause = MIN_SILENCE_S * 2 ** (MAX_RESENDS - call.resends_left)
                self._set_timer(call, min(remaining, pause) if call.resends_left else remaining)
            elif call.last_error:
                passing = call.last_status is not GatewayStatus.INTERNAL
                self._fail(call, call.last_status, call.last_error, 1.0 if passing else None)
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
        call.tried.add(ticket.device)
        call.attempts_left = max(0, call.attempts_left - 1)
        if not self._send(call, ticket, remaining):
            self._router.released(ticket, now)
            self._fail(
                call, GatewayStatus.UNAVAILABLE, "the broker cannot be reached", retry_after_s=1.0
            )
            return
        patience = _patience_s(ticket) * 2 ** (MAX_RESENDS - call.resends_left)
        again = call.attempts_left > 0 or call.resends_left > 0
        self._set_timer(call, min(remaining, patience) if again else remaining)

    def _send(self, call: Call, ticket: Ticket, remaining: float) -> bool:
        call.request.parameters = {"timeout": int(remaining * 1e6)}
        buffers, header_length = oip.encode_request(call.request)
        # Not to be guessed: one device must not answer for another, nor a reply to an earlier
        # process for this one.
        key = secrets.token_bytes(8)
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
        self._pending[key] = call
        call.waiting[key] = ticket
        if self._link.publish(topic, b"".join(buffers), properties=properties):
            return True
        self._settle(key)
        return False

    def _settle(self, key: bytes) -> tuple[Call, Ticket] | None:
        """Take out the attempt that `key` names, if it is still waited for."""
        call = self._pending.pop(key, None)
        return None if call is None else (call, call.waiting.pop(key))

    def _on_reply(self, message: Message) -> None:
        # Late, replayed and forged replies find nothing that waits for them.
        entry = self._settle(message.correlation or b"")
        if entry is None:
            return
        call, ticket = entry
        now = self._clock()
        try:
            length = message.user_properties.get(oip.HEADER_LENGTH)
            reply = oip.decode_reply(message.payload, int(length) if length else None)
            code = InferCode(reply.code) if reply.error else None
            names = ("queue_depth", "service_us", "batch")
            depth, service_us, batch = (_figure(reply, name) for name in names)
        except ValueError as error:
            log.warning("unreadable reply", device=ticket.device, error=str(error))
            self._router.failed(ticket, now)
            sentence = f"device {ticket.device} sent a reply that cannot be read"
            self._failed(call, sentence, GatewayStatus.INTERNAL)
            return
        if code is None:
            self._router.succeeded(ticket, now, depth, service_us / 1e3, batch)
            if not call.answer.done():
                call.answer.set_result((reply, ticket))
            return
        self._router.released(ticket, now)
        sentence = reply.error[:MAX_SENTENCE]
        if code in RETRYABLE:
            if code is InferCode.INTERNAL:
                call.suspects.append(ticket)
            self._failed(call, f"device {ticket.device}: {sentence}", _STATUS[code])
        elif code is InferCode.EXPIRED:
            self._fail(call, GatewayStatus.DEADLINE, sentence)
        else:
            self._fail(call, GatewayStatus.INVALID, sentence)

    def _failed(self, call: Call, error: str, status: GatewayStatus) -> None:
        """An attempt came to nothing: make another, and if there is none, say `error`."""
        call.last_error, call.last_status = error, status
        self._attempt(call)

    def _on_silence(self, call: Call) -> None:
        now = self._clock()
        call.timer = None
        for ticket in call.waiting.values():
            # The reply may still come and then wins; the device is to blame all the same, unless
            # the deadline was too short to tell.
            if now - ticket.sent_at >= _patience_s(ticket) - _TICK_S:
                self._router.failed(ticket, now)
        if now >= call.deadline - _TICK_S:
            self._fail(call, GatewayStatus.DEADLINE, "the deadline passed before an answer came")
        else:
            self._attempt(call, all_silent=True)

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
        for key, ticket in call.waiting.items():
            del self._pending[key]
            self._router.released(ticket, now)
        call.waiting.clear()
        if answered:
            # Another device answered the same request: the suspects were at fault, not it.
            for ticket in call.suspects:
                self._router.blame(ticket.device, now, probe=ticket.probe)


def _patience_s(ticket: Ticket) -> float:
    """How long a device may stay silent before the request is sent to another one, too."""
    return max(MIN_SILENCE_S, SILENCE_FACTOR * ticket.delay_ms / 1e3)


def _figure(reply: InferReply, name: str) -> int:
    value = reply.parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= MAX_FIGURE:
        raise ValueError(f"its {name} is not a number that can be")
    return value
