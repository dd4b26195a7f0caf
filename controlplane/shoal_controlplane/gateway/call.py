"""A request under way at the gateway, and an answer to it as far as it was checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.router import Ticket
from shoal_controlplane.gateway.table import Replica
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest
from shoal_shared.publish import Message
from shoal_shared.status import InferCode

MAX_FIGURE = 2**40
"""Of a figure in a reply; in µs more than any request may take."""

MAX_ATTEMPTS = 3
MAX_RESENDS = 4
"""A message of QoS 0 may be lost with a session; with pauses that double this outlasts most."""

MIN_SILENCE_S = 0.5
SILENCE_FACTOR = 6.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """A device that failed with a request which another one may answer, and its words."""

    ticket: Ticket
    device: str
    error: str


Admit: TypeAlias = Callable[[Ticket | None, float], Exception | None]
"""Asked once, before the first attempt, with the place that the router chose (None where there is
none) and a reading of the clock: None lets the request go on, an exception ends it."""


@dataclass(slots=True, eq=False)
class Call:
    """A request under way. `replicas` is asked anew for each attempt; `waiting` holds the
    attempts that may still be answered, `queued` the one that waits for a pipeline's credit.
    `hedges` says whether another device may be asked when one is late, and `hedge` is that one."""

    request: InferRequest
    replicas: Callable[[], Sequence[Replica]]
    items: int
    deadline: float
    idempotent: bool
    sharded: bool
    hedges: bool
    admit: Admit | None
    answer: asyncio.Future[tuple[InferReply, Ticket]]
    attempts_left: int = field(init=False)
    resends_left: int = field(init=False)
    waiting: dict[bytes, Ticket] = field(default_factory=dict)
    queued: Ticket | None = None
    tried: set[str] = field(default_factory=set)
    suspects: list[Suspect] = field(default_factory=list)
    last_error: str = ""
    last_status: GatewayStatus = GatewayStatus.UNAVAILABLE
    timer: asyncio.TimerHandle | None = None
    hedge: Ticket | None = None

    def __post_init__(self) -> None:
        self.attempts_left = MAX_ATTEMPTS if self.idempotent else 1
        self.resends_left = MAX_RESENDS if self.idempotent else 0

    @property
    def model(self) -> str:
        return f"{self.request.model_name}:{self.request.model_version}"

    @property
    def answered(self) -> bool:
        """Whether a place answered it."""
        answer = self.answer
        return answer.done() and not answer.cancelled() and answer.exception() is None

    def fail(self, status: GatewayStatus, message: str, retry_after_s: float | None = None) -> None:
        """End it without an answer, unless it has ended."""
        if not self.answer.done():
            self.answer.set_exception(GatewayError(status, message, retry_after_s))

    def wake(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        """Call `action` with the call and `arguments` after so long, instead of what was to be
        called before."""
        if self.timer is not None:
            self.timer.cancel()
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(seconds, action, self, *arguments)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply; `code` is None where it holds outputs."""

    reply: InferReply
    code: InferCode | None
    queue_depth: int
    service_us: int
    batch: int


def read_answer(message: Message, ticket: Ticket) -> Answer:
    """Check a reply to the attempt `ticket`. Raises `ValueError`."""
    length = message.user_properties.get(oip.HEADER_LENGTH)
    reply = oip.decode_reply(message.payload, int(length) if length else None)
    code = InferCode(reply.code) if reply.error else None
    names = ("queue_depth", "service_us", "batch")
    depth, service_us, batch = (_figure(reply, name) for name in names)
    if ticket.pipeline is not None and _figure(reply, "epoch") != ticket.pipeline.epoch:
        raise ValueError("it is of another epoch")
    return Answer(reply, code, depth, service_us, batch)


def patience_s(ticket: Ticket) -> float:
    """How long a place may stay silent before the request is sent to another one, too."""
    return max(MIN_SILENCE_S, SILENCE_FACTOR * ticket.delay_ms / 1e3)


def _figure(reply: InferReply, name: str) -> int:
    value = reply.parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= MAX_FIGURE:
        raise ValueError(f"its {name} is not a number that can be")
    return value
