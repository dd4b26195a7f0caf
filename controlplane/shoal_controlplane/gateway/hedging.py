"""When a request that is late is sent to a second device, too: pure decisions, and their budget.

A request is late when its predicted 95th percentile has passed. Then the device has a long queue
that nobody told of, throttles, or is busy with something else; one more attempt elsewhere costs
little and cuts the tail, as long as only few requests get one: the budget is a token bucket that
fills by the request, not by the second, so that a fleet which is slow as a whole gets no second
load on top of the first.

Source: Dean and Barroso, "The Tail at Scale", 2013.
"""

from __future__ import annotations

from shoal_controlplane.gateway.call import Call
from shoal_controlplane.gateway.router import Router, Ticket

SHARE = 0.03
"""Hedges a request, at most."""

BURST = 8.0
"""Hedges that may follow each other when there were none for long."""

FLOOR_MS = 2.0
"""No request is late before: timers and networks are no more exact."""

ROUND_TRIPS = 2.0
"""Nor before so many round trips."""

_EXACT = 1e-9
"""Sums of floating point numbers may be this much too small."""


class Hedging:
    """The budget of one gateway. It is empty at first, so that `sent` never exceeds `SHARE` of
    the requests."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self.sent = 0
        """Requests that were sent to a second device."""
        self.won = 0
        """Those that the second device answered first."""

    def request(self) -> None:
        """Count a request."""
        self._tokens = min(BURST, self._tokens + SHARE)

    def second(self, router: Router, call: Call, first: Ticket, now: float) -> Ticket | None:
        """A device that should answer before the first one can, if one more hedge is within the
        budget. Whoever sends the request there has it counted."""
        if call.answer.done() or self._tokens < 1.0 - _EXACT:
            return None
        devices = [replica for replica in call.replicas() if replica.pipeline is None]
        within_ms = router.left_ms(first, now)
        return router.pick(call.model, devices, call.items, now, call.tried, within_ms)

    def count(self, call: Call, second: Ticket) -> None:
        """The request was sent to a second device; it is sent to no third one for being late."""
        self._tokens -= 1.0
        self.sent += 1
        call.hedges, call.hedge = False, second
        call.tried.add(second.device)
        call.attempts_left -= 1


def late_after_ms(ticket: Ticket) -> float:
    """How long after it was sent a request counts as late."""
    return max(FLOOR_MS, ROUND_TRIPS * ticket.round_trip_ms, ticket.p95_ms)


def look_again_at(ticket: Ticket, now: float) -> float:
    """When to see again whether a late request is worth a hedge: after half as long again."""
    return now + (now - ticket.sent_at) / 2
