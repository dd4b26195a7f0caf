"""Where a request goes: to the devices, to a cloud, or back to its client at once.

Pure decision code: a place that the router proposes, options of clouds and clock readings in, a
decision out. A request goes to the devices if 95 of 100 such requests are answered there in time;
else to the first cloud of which the same holds; else it is shed. "In time" is the earlier of its
own timeout and the model's SLO.

Those who matter less leave time unused: of the time that there is, devices get a part by rank, so
that what waits there always leaves room for those who matter more. Whoever is beyond its fair share
ranks last. A place that is idle takes anyone.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoal_controlplane.gateway.clouds import CloudOption
from shoal_controlplane.gateway.codel import INTERVAL_S, Codel
from shoal_controlplane.gateway.fairness import FairShares
from shoal_controlplane.gateway.router import Ticket

HEADROOM = (1.0, 0.8, 0.5, 0.25)
"""Part of the time that devices may take, by rank: interactive, standard, bulk, and anything of a
client that is beyond its fair share."""

_OVER = len(HEADROOM) - 1

TRIAL_S = 0.1
"""Where none went to the devices for so long, one goes that is expected to be in time although its
95th percentile is not: else nobody would learn that they have become faster."""

MAX_MODELS = 1024
"""Versions of models that are remembered."""


class Priority(enum.IntEnum):
    """How much a request matters; the numbers are those of Triton's parameter `priority`."""

    INTERACTIVE = 1
    """Somebody waits for it."""
    STANDARD = 2
    BULK = 3
    """Can be sent again at any time."""


NAMES = ", ".join(f"{p.value} ({p.name.lower()})" for p in Priority)


def priority_of(parameter: Any, name: str | None = None) -> Priority:
    """The priority that a request's parameter `priority` says, or, before it, the `name` in a
    header; STANDARD without either. Raises `ValueError` with one sentence."""
    if name is not None:
        try:
            return Priority[name.strip().upper()]
        except KeyError:
            raise ValueError(
                f"the priority {name[:40]!r} is unknown: use interactive, standard or bulk"
            ) from None
    if parameter is None:
        return Priority.STANDARD
    if type(parameter) is not int or not 0 <= parameter <= max(Priority):
        raise ValueError(f"the parameter 'priority' must be 0 (standard) or one of {NAMES}")
    return Priority(parameter) if parameter else Priority.STANDARD


class Way(enum.Enum):
    """What becomes of a request."""

    EDGE = "edge"
    CLOUD = "cloud"
    SHED = "shed"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that is to be decided on. `left_ms` is the time until it should be answered."""

    model: str
    items: int
    left_ms: float
    priority: Priority = Priority.STANDARD
    client: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """`full` says that devices had no room for it. `option` is set for CLOUD; `reason`, a
    sentence, and `retry_after_s` for SHED."""

    way: Way
    full: bool = False
    option: CloudOption | None = None
    reason: str = ""
    retry_after_s: float = 0.0


_EDGE = Decision(Way.EDGE)
_NO_PLACE = Decision(Way.EDGE, full=True)
"""What there is no device for is left to the dispatcher."""

Options = Callable[[], Sequence[CloudOption]]
"""Asked only where it matters: targets by expected finish, then by price."""


class _Model:
    """What is known of one model version."""

    __slots__ = ("codel", "edge_at", "shares")

    def __init__(self) -> None:
        self.codel = Codel(len(HEADROOM))
        self.shares = FairShares()
        self.edge_at = -math.inf


class Admission:
    """Decides request by request. `ms_per_price` says how many milliseconds one unit of currency
    is worth: with it, a cloud that is so much faster is taken although the devices are in time."""

    def __init__(self, *, ms_per_price: float = math.inf) -> None:
        self._ms_per_price = ms_per_price
        self._models: dict[str, _Model] = {}

    def decide(self, ask: Ask, ticket: Ticket | None, options: Options, now: float) -> Decision:
        """Decide on a request for which the router proposes `ticket`, None for no place at all.

        Counts the request for its client's share, and as shed only if that is what comes out.
        """
        model = self._model(ask.model)
        decision = self._decide(model, ask, ticket, options, now)
        admitted = decision.way is not Way.SHED
        model.shares.count(ask.client, ask.items, now, admitted=admitted)
        return decision

    def answered(self, model: str, took_ms: float, left_ms: float, now: float) -> None:
        """A device answered a request that might take `left_ms` after `took_ms`."""
        self._model(model).codel.answered(took_ms / max(left_ms, 1e-3), now)

    def _decide(
        self, model: _Model, ask: Ask, ticket: Ticket | None, options: Options, now: float
    ) -> Decision:
        if ticket is None:
            option = _first(options(), ask.left_ms)
            return _NO_PLACE if option is None else Decision(Way.CLOUD, True, option)
        rank = ask.priority - 1
        if model.shares.is_over(ask.client, now):
            rank = _OVER
        allowed_ms = ask.left_ms
        if not is_idle(ticket):
            allowed_ms *= HEADROOM[rank]
        fits = p95_ms(ticket) <= allowed_ms or (
            now - model.edge_at >= TRIAL_S and ticket.delay_ms <= allowed_ms
        )
        late = fits and model.codel.drops(rank, now)
        if fits and not late:
            option = self._faster(ticket, options)
            if option is not None:
                return Decision(Way.CLOUD, False, option)
            model.edge_at = now
            return _EDGE
        offered = options()
        option = _first(offered, ask.left_ms)
        full = not is_idle(ticket)
        if option is not None:
            return Decision(Way.CLOUD, full, option)
        if late:
            reason = f"{ask.model} is full: devices answer later than expected"
            retry_after_s = INTERVAL_S
        else:
            finish_ms = p95_ms(ticket)
            reason = (
                f"{ask.model} is full: devices would answer 95 of 100 such requests within "
                f"{finish_ms:.0f} ms, and {ask.priority.name.lower()} ones may take "
                f"{allowed_ms:.0f} ms now"
            )
            retry_after_s = max((finish_ms - allowed_ms) / 1e3, 1e-3)
        return Decision(Way.SHED, full, None, f"{reason}; {_clouds(offered)}", retry_after_s)

    def _faster(self, ticket: Ticket, options: Options) -> CloudOption | None:
        """A cloud that is worth its price although the devices are in time."""
        if self._ms_per_price == math.inf:
            return None
        for option in options():
            if ticket.delay_ms > option.finish_ms + self._ms_per_price * option.price:
                return option
        return None

    def _model(self, key: str) -> _Model:
        model = self._models.get(key)
        if model is None:
            if len(self._models) >= MAX_MODELS:
                del self._models[next(iter(self._models))]
            model = self._models[key] = _Model()
        return model


def p95_ms(ticket: Ticket) -> float:
    """95 of 100 requests with such a ticket are answered within this."""
    return max(ticket.p95_ms, ticket.delay_ms)


def is_idle(ticket: Ticket) -> bool:
    """Whether the request is the only one of ours on its way to its place."""
    return ticket.state is not None and ticket.state.in_flight <= 1


def _first(options: Sequence[CloudOption], left_ms: float) -> CloudOption | None:
    return next((option for option in options if option.finish_ms <= left_ms), None)


def _clouds(offered: Sequence[CloudOption]) -> str:
    if not offered:
        return "no target takes more"
    best = min(offered, key=lambda option: option.finish_ms)
    return f"target {best.target} would take {best.finish_ms:.0f} ms"
