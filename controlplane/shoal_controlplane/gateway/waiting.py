"""What waits at the gateway for something else than an answer to a request; all of it bounded."""

from __future__ import annotations

import structlog

from shoal_controlplane.gateway.call import Answer, Call, read_answer
from shoal_controlplane.gateway.errors import GatewayStatus
from shoal_controlplane.gateway.router import Ticket
from shoal_shared.publish import Message

log = structlog.get_logger("gateway")

MAX_STRANDED = 1024
MAX_OVERDUE = 1024


class Stranded:
    """Requests that wait for the next plan of their model, `MAX_STRANDED` at most."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def take_in(self, call: Call) -> bool:
        """Have a request wait if it may: its model is sharded, nothing serves it now, and it did
        not fail for a reason of its own."""
        if len(self._calls) >= MAX_STRANDED:
            self._calls = [waiting for waiting in self._calls if not waiting.answer.done()]
        may = (
            call.sharded
            and call.attempts_left > 0
            and call.last_status is not GatewayStatus.INTERNAL
            and len(self._calls) < MAX_STRANDED
        )
        if may:
            self._calls.append(call)
        return may

    def let_go(self) -> list[Call]:
        """All of them: there are other places to send to."""
        calls, self._calls = self._calls, []
        return calls


class Overdue:
    """Attempts whose replies are of interest although another place has answered: that is how
    slow ones show themselves. The newest `MAX_OVERDUE` are kept."""

    def __init__(self) -> None:
        self._tickets: dict[bytes, Ticket] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def keep(self, key: bytes, ticket: Ticket) -> None:
        """Go on to wait for the reply that `key` names."""
        self._tickets[key] = ticket
        while len(self._tickets) > MAX_OVERDUE:
            del self._tickets[next(iter(self._tickets))]

    def take(self, message: Message) -> tuple[Ticket, Answer] | None:
        """The attempt that a reply belongs to, once; None if there is none, or it cannot be
        read."""
        ticket = self._tickets.pop(message.correlation or b"", None)
        if ticket is not None:
            try:
                return ticket, read_answer(message, ticket)
            except ValueError as error:
                log.warning("unreadable reply", device=ticket.device, error=str(error))
        return None
