"""The way of one request over MQTT: attempts on devices until one answers.

Inference is idempotent, so a request whose device dies, stays silent or fails is sent to another
one; whichever answers first wins, and the others are told to drop it. Only a request with a
`sequence_id` is tried once. A request that is late is hedged, see `hedging`.

A pipeline is one more place to send to. It takes as many requests as it has credits; the others
wait here. When one of its devices goes, all that is under way in it starts again in the next epoch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog

from shoal_controlplane.gateway.call import (
    MAX_RESENDS,
    MIN_SILENCE_S,
    Admit,
    Call,
    Suspect,
    patience_s,
    read_answer,
)
from shoal_controlplane.gateway.errors import GatewayStatus
from shoal_controlplane.gateway.hedging import Hedging, late_after_ms, look_again_at
from shoal_controlplane.gateway.inquiry import Alive, Inquiry, all_alive
from shoal_controlplane.gateway.pipelines import Pipelines
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.sender import Sender
from shoal_controlplane.gateway.table import Pipeline, Replica
from shoal_controlplane.gateway.waiting import Overdue, Stranded
from shoal_controlplane.mqtt.link import Link
from shoal_shared.clock import Clock
from shoal_shared.oip import InferReply, InferRequest
from shoal_shared.publish import Message
from shoal_shared.status import RETRYABLE, InferCode
from shoal_shared.topics import Topics

log = structlog.get_logger("gateway")

MAX_SENTENCE = 500
_TICK_S = 1e-3
"""Timers may fire this much too early."""

# What it means if the last device that was tried answers so, too.
_STATUS = {
    InferCode.OVERLOADED: GatewayStatus.EXHAUSTED,
    InferCode.NOT_FOUND: GatewayStatus.UNAVAILABLE,
    InferCode.INTERNAL: GatewayStatus.INTERNAL,
}


class Dispatcher:
    """Sends requests, matches replies by their correlation data, and tries again."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        gateway_id: str,
        router: Router,
        clock: Clock,
        alive: Alive = all_alive,
        listed: Callable[[], Iterable[Pipeline]] = tuple,
    ) -> None:
        self.pipelines: Pipelines[Call] = Pipelines()
        self.pipelines.listeners.append(self._abandoned)
        self._inquiry = Inquiry(
            alive, self.pipelines.suspect, lambda p: self.pipelines.doubt(p, self._clock())
        )
        self._listed = listed
        self._router = router
        self._clock = clock
        self._overdue = Overdue()
        self._stranded = Stranded()
        self._sender = Sender(link, topics, gateway_id)
        self.hedges = Hedging()
        link.subscribe(topics.replies(gateway_id), 0, self._on_reply)

    @property
    def in_flight(self) -> int:
        return len(self._sender)

    async def call(
        self,
        request: InferRequest,
        replicas: Callable[[], Sequence[Replica]],
        items: int,
        deadline: float,
        *,
        idempotent: bool = True,
        sharded: bool = False,
        hedges: bool = True,
        admit: Admit | None = None,
    ) -> tuple[InferReply, Ticket]:
        """Send `request` (with model name and version) and wait for its answer.

        `deadline` is a reading of the clock. Where nothing serves a `sharded` model now, the
        request waits for the next plan. `hedges` is false for requests whose caller sees to those
        that are late. Cancelling the coroutine cancels the request on its device. Raises
        `GatewayError`, and what `admit` returns.
        """
        answer = asyncio.get_running_loop().create_future()
        call = Call(request, replicas, items, deadline, idempotent, sharded, hedges, admit, answer)
        self.hedges.request()
        try:
            self._attempt(call)
            return await call.answer
        finally:
            self._forget(call)

    def device_gone(self, device: str) -> None:
        """The device lost its session: what it was working on goes elsewhere at once."""
        self.pipelines.left(device, f"device {device} went offline")
        for key, call, ticket in self._sender.attempts(lambda ticket: ticket.device == device):
            if self._settle(key) is not None:
                self._router.failed(ticket, self._clock())
                self._failed(call, f"device {device} went offline", GatewayStatus.INTERNAL)

    def device_back(self, device: str) -> None:
        """The device has a session again."""
        self.pipelines.returned(device)

    def _abandoned(self, pipeline: Pipeline, device: str, reason: str) -> None:
        """An epoch ended: its requests start again, and late answers of it find nothing."""
        log.warning(
            "pipeline abandoned",
            plan=pipeline.plan,
            epoch=pipeline.epoch,
            device=device,
            reason=reason,
        )
        again: dict[int, Call] = {}
        # Those who wait for a credit come first: the credits that come back must not send them.
        for call in self.pipelines.waiting(pipeline):
            if call.queued is not None:
                self._router.withdrawn(call.queued)
                call.queued = None
                again[id(call)] = call
        for key, call, ticket in self._sender.attempts(lambda t: t.pipeline == pipeline):
            if self._settle(key) is not None:
                self._router.withdrawn(ticket)
                again[id(call)] = call
        for call in again.values():
            if call.idempotent:
                call.attempts_left = max(1, call.attempts_left)
            self._failed(call, f"pipeline {pipeline.plan}: {reason}", GatewayStatus.UNAVAILABLE)

    def _attempt(self, call: Call, *, all_silent: bool = False) -> None:
        """Send to the best device that was not tried, or end the call.

        If all were tried and stay silent, the best of them is asked once more.
        """
        if call.answer.done():
            return
        now = self._clock()
        remaining = call.deadline - now
        if remaining <= 0:
            call.fail(GatewayStatus.DEADLINE, "the deadline passed before an answer came")
            return
        ticket = None
        if call.attempts_left > 0:
            failed = [suspect.device for suspect in call.suspects]
            places = self.pipelines.usable(call.replicas(), call.tried, failed)
            ticket = self._router.pick(call.model, places, call.items, now, exclude=call.tried)
        if ticket is None and all_silent and call.resends_left > 0:
            call.resends_left -= 1
            places = self.pipelines.usable(call.replicas(), ())
            ticket = self._router.pick(call.model, places, call.items, now)
        if call.admit is not None:
            admit, call.admit = call.admit, None
            refusal = admit(ticket, now)
            if refusal is not None:
                if ticket is not None:
                    self._router.withdrawn(ticket)
                call.answer.set_exception(refusal)
                return
        if ticket is None:
            if call.waiting and call.queued is None and call.resends_left:
                pause = MIN_SILENCE_S * 2 ** (MAX_RESENDS - call.resends_left)
                call.wake(min(remaining, pause), self._on_silence)
            elif call.waiting or call.queued is not None or self._stranded.take_in(call):
                call.wake(remaining, self._on_silence)
            elif call.last_error:
                passing = call.last_status is not GatewayStatus.INTERNAL
                call.fail(call.last_status, call.last_error, 1.0 if passing else None)
            else:
                text = f"no device serves {call.model} now"
                call.fail(GatewayStatus.UNAVAILABLE, text, retry_after_s=1.0)
            return
        if ticket.delay_ms > remaining * 1e3 and not call.tried:
            self._router.withdrawn(ticket)
            late = ticket.delay_ms / 1e3 - remaining
            call.fail(
                GatewayStatus.EXHAUSTED,
                f"no device can answer within {remaining * 1e3:.0f} ms: the earliest would take "
                f"{ticket.delay_ms:.0f} ms",
                retry_after_s=late,
            )
            return
        call.tried.add(ticket.device)
        call.attempts_left = max(0, call.attempts_left - 1)
        if ticket.pipeline is not None and not self.pipelines.enter(ticket.pipeline):
            self._queue(call, ticket, ticket.pipeline, remaining)
            return
        self._launch(call, ticket, remaining)

    def table_changed(self) -> None:
        """There are other places to send to."""
        self.pipelines.learn(self._listed())
        for call in self._stranded.let_go():
            self._attempt(call)

    def _queue(self, call: Call, ticket: Ticket, pipeline: Pipeline, remaining: float) -> None:
        """Wait for a credit of a pipeline."""
        if not self.pipelines.wait(pipeline, call):
            self._router.withdrawn(ticket)
            call.fail(
                GatewayStatus.EXHAUSTED,
                f"too many requests to {call.model} are waiting already",
                retry_after_s=max(1.0, ticket.delay_ms / 1e3),
            )
            return
        call.queued = ticket
        call.wake(remaining, self._on_silence)

    def _credit(self, pipeline: Pipeline) -> None:
        """A request left a pipeline: whoever waits longest for its credit is next."""
        self.pipelines.leave(pipeline)
        while (call := self.pipelines.next_waiting(pipeline)) is not None:
            ticket, call.queued = call.queued, None
            if ticket is None:
                continue
            if call.answer.done():
                self._router.withdrawn(ticket)
                continue
            ticket.sent_at = self._clock()
            self.pipelines.enter(pipeline)
            self._launch(call, ticket, call.deadline - ticket.sent_at)

    def _launch(self, call: Call, ticket: Ticket, remaining: float) -> None:
        """Send to the place of a ticket, and set the time for it to answer."""
        if not self._send(call, ticket, remaining):
            call.fail(GatewayStatus.UNAVAILABLE, "the broker cannot be reached", retry_after_s=1.0)
            return
        silence = remaining
        if call.attempts_left > 0 or call.resends_left > 0:
            silence = min(silence, patience_s(ticket) * 2 ** (MAX_RESENDS - call.resends_left))
        late = late_after_ms(ticket) / 1e3
        if call.hedges and late < silence and ticket.pipeline is None and call.attempts_left > 0:
            call.wake(late, self._on_late, ticket, ticket.sent_at + silence)
        else:
            call.wake(silence, self._on_silence)

    def _on_late(self, call: Call, first: Ticket, silent_at: float) -> None:
        """A device takes longer than it should: ask a second one, or look again later."""
        now = self._clock()
        again = look_again_at(first, now)
        second = self.hedges.second(self._router, call, first, now)
        if second is not None and self._send(call, second, call.deadline - now):
            self.hedges.count(call, second)
        elif again < silent_at:
            call.wake(again - now, self._on_late, first, silent_at)
            return
        call.wake(max(0.0, silent_at - now), self._on_silence)

    def _send(self, call: Call, ticket: Ticket, remaining: float) -> bool:
        replica = 0 if ticket.pipeline is None else self.pipelines.entry(ticket.pipeline)
        if self._sender.send(call, ticket, replica, remaining):
            return True
        self._router.withdrawn(ticket)
        if ticket.pipeline is not None:
            self._credit(ticket.pipeline)
        return False

    def _settle(self, key: bytes) -> tuple[Call, Ticket] | None:
        """Take out the attempt that `key` names, if it is still waited for."""
        entry = self._sender.settle(key)
        if entry is not None and entry[1].pipeline is not None:
            self._credit(entry[1].pipeline)
        return entry

    def _on_reply(self, message: Message) -> None:
        # Late, replayed and forged replies find nothing that waits for them.
        entry = self._settle(message.correlation or b"")
        if entry is None:
            self._on_late_reply(message)
            return
        call, ticket = entry
        now = self._clock()
        try:
            answer = read_answer(message, ticket)
        except ValueError as error:
            log.warning("unreadable reply", device=ticket.device, error=str(error))
            self._blame(ticket, now)
            sentence = f"device {ticket.device} sent a reply that cannot be read"
            self._failed(call, sentence, GatewayStatus.INTERNAL)
            return
        reply, code = answer.reply, answer.code
        if code is None:
            service_ms = answer.service_us / 1e3
            self._router.succeeded(ticket, now, answer.queue_depth, service_ms, answer.batch)
            self._observe(reply, ticket, now)
            if not call.answer.done():
                call.answer.set_result((reply, ticket))
                self.hedges.won += ticket is call.hedge
            return
        self._router.released(ticket, now)
        sentence = reply.error[:MAX_SENTENCE]
        if code in RETRYABLE:
            device = ticket.device
            if ticket.pipeline is not None:
                device = str(reply.parameters.get("device", device))[:MAX_SENTENCE]
            if code is InferCode.INTERNAL:
                call.suspects.append(Suspect(ticket, device, sentence))
            self._failed(call, f"device {device}: {sentence}", _STATUS[code])
        elif code is InferCode.EXPIRED:
            call.fail(GatewayStatus.DEADLINE, sentence)
        else:
            call.fail(GatewayStatus.INVALID, sentence)

    def _on_late_reply(self, message: Message) -> None:
        """A place answers after another one did: that is how slow ones show themselves."""
        late = self._overdue.take(message)
        if late is None:
            return
        (ticket, answer), now = late, self._clock()
        self._observe(answer.reply, ticket, now)
        if ticket.pipeline is None and answer.code is None:
            figures = (answer.queue_depth, answer.service_us / 1e3, answer.batch)
            self._router.answered_late(ticket, now, *figures)

    def _observe(self, reply: InferReply, ticket: Ticket, now: float) -> None:
        trace = reply.parameters.get("trace")
        if ticket.pipeline is not None and isinstance(trace, list):
            taken_ms = (now - ticket.sent_at) * 1e3
            self.pipelines.observe(ticket.pipeline, trace, taken_ms, now)

    def _failed(self, call: Call, error: str, status: GatewayStatus) -> None:
        """An attempt came to nothing: make another, and if there is none, say `error`."""
        call.last_error, call.last_status = error, status
        self._attempt(call)

    def _on_silence(self, call: Call) -> None:
        now = self._clock()
        call.timer = None
        for ticket in list(call.waiting.values()):
            if ticket.pipeline is not None:
                self._inquiry.ask(ticket.pipeline)
            # The reply may still come and then wins; the device is to blame all the same, unless
            # the deadline was too short to tell.
            if now - ticket.sent_at >= patience_s(ticket) - _TICK_S:
                self._blame(ticket, now)
        if now >= call.deadline - _TICK_S:
            call.fail(GatewayStatus.DEADLINE, "the deadline passed before an answer came")
        else:
            self._attempt(call, all_silent=True)

    def _blame(self, ticket: Ticket, now: float) -> None:
        """A place is at fault. Whether a pipeline is used is not for the router to say."""
        if ticket.pipeline is None:
            self._router.failed(ticket, now)
        else:
            self._router.withdrawn(ticket)

    def _forget(self, call: Call) -> None:
        if call.timer is not None:
            call.timer.cancel()
        now = self._clock()
        answered = call.answered
        for key, ticket in list(call.waiting.items()):
            self._settle(key)
            if answered:
                self._overdue.keep(key, ticket)
            if answered and ticket.pipeline is None:
                self._router.overtaken(ticket, now)
            else:
                self._router.withdrawn(ticket)
            # After the deadline the device drops it by itself.
            if ticket.pipeline is None and now < call.deadline - _TICK_S:
                self._sender.cancel(ticket.device, key)
        if call.queued is not None:
            self._router.withdrawn(call.queued)
            call.queued = None
        if answered:
            # Another device answered the same request: the suspects were at fault, not it.
            for suspect in call.suspects:
                pipeline = suspect.ticket.pipeline
                if pipeline is None:
                    self._router.blame(suspect.device, now, probe=suspect.ticket.probe)
                else:
                    self.pipelines.bad(pipeline, suspect.device, suspect.error)
