"""The pool of cloud targets on the way of a request: which can take it, and what came of it.

Everything that the choice needs is in memory and on the event loop; what targets do besides
answering is `manager`'s.
"""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from shoal_controlplane.gateway.clouds import CloudOption, Level, Pressure
from shoal_controlplane.gateway.table import ServedModel
from shoal_controlplane.offload.state import Placed, TargetState, over_budget
from shoal_controlplane.offload.target import CloudTarget, Fault, TargetError
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.clock import Clock
from shoal_shared.oip import InferReply, InferRequest

log = structlog.get_logger("offload")

GRACE_S = 0.25
"""How much longer than it was told a target may take to say that time is over."""
MAX_PAUSE_S = 3600.0
"""How long a target may have itself be left alone."""
PRESSURE_S = 3.0
"""What was said about pressure holds so long; while not calm it is said every second."""
_CLOSE = math.log(1.1)
"""Finish times within a tenth are alike; then the price decides."""


@dataclass(frozen=True, slots=True)
class _Told:
    pressure: Pressure
    slo_ms: float | None
    at: float


class CloudPool:
    """Implements `gateway.clouds.Clouds`. `targets` and `placed` are the manager's to change."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pressures: dict[ModelKey, _Told] = {}
        self.targets: dict[str, TargetState] = {}
        self.placed: dict[tuple[str, ModelKey], Placed] = {}
        self.alarm = asyncio.Event()
        """Set when the pressure on a model has changed."""

    def options(
        self, model: ServedModel, items: int, payload_bytes: int, now: float
    ) -> Sequence[CloudOption]:
        """See `Clouds.options`. Nothing is counted: `infer` counts."""
        key = (model.name, model.version)
        found: list[tuple[int, float, float, str]] = []
        for name in model.offload:
            placed = self.placed.get((name, key))
            if placed is None or not takes(placed, items, now):
                continue
            ahead = placed.in_flight_items / placed.ready
            finish = placed.learner.p95_ms(items, payload_bytes, ahead, now)
            price = placed.request_price(items)
            rank = round(math.log(finish) / _CLOSE)
            found.append((rank, price, finish, name))
        found.sort()
        return [CloudOption(name, finish, price) for _, price, finish, name in found]

    async def infer(
        self, target: str, model: ServedModel, request: InferRequest, items: int, deadline: float
    ) -> InferReply:
        """See `Clouds.infer`."""
        placed = self.placed.get((target, (model.name, model.version)))
        if placed is None or placed.owner.cloud is None:
            raise TargetError(
                Fault.NOT_DEPLOYED, f"target {target} has no model {model.name}:{model.version}"
            )
        return await self.ask(placed, request, items, deadline)

    def demand(self, model: ServedModel, pressure: Pressure) -> None:
        """See `Clouds.demand`."""
        if not model.offload:
            return
        key = (model.name, model.version)
        told = self._pressures.get(key)
        if told is None or told.pressure.level is not pressure.level or _grew(told, pressure):
            self.alarm.set()
        self._pressures[key] = _Told(pressure, model.slo_ms, self._clock())

    def pressure(self, key: ModelKey, now: float) -> Pressure:
        """The pressure on a model; calm where nothing was said lately."""
        told = self._pressures.get(key)
        if told is None or now - told.at > PRESSURE_S:
            return Pressure(Level.CALM)
        return told.pressure

    def slo_ms(self, key: ModelKey) -> float | None:
        """Within which answers are wanted, as far as it was said with the last pressure."""
        told = self._pressures.get(key)
        return told.slo_ms if told is not None else None

    def on(self, owner: TargetState) -> list[Placed]:
        """What is on a target."""
        found = [placed for placed in self.placed.values() if placed.owner is owner]
        return sorted(found, key=lambda placed: placed.model.key)

    def keep(self, keys: Collection[ModelKey]) -> None:
        """No other models are of interest."""
        self._pressures = {k: told for k, told in self._pressures.items() if k in keys}

    async def ask(
        self,
        placed: Placed,
        request: InferRequest,
        items: int,
        deadline: float,
        *,
        learn: bool = True,
        own: bool = False,
    ) -> InferReply:
        """Send a request to a model on a target, pay for it, and learn from what comes of it.
        One of our `own` is not counted. Raises `TargetError`."""
        owner, sent_at = placed.owner, self._clock()
        cloud, name = owner.cloud, owner.settings.name
        timeout_s = deadline - sent_at
        if cloud is None:
            raise TargetError(Fault.NOT_DEPLOYED, f"target {name} is not open")
        if timeout_s <= 0:
            raise TargetError(Fault.TIMEOUT, f"no time is left to ask target {name}")
        cost = owner.price.per_request
        if wait_s := owner.budget.wait_s(cost, sent_at):
            raise TargetError(
                Fault.QUOTA,
                f"target {name}: {over_budget(owner, sent_at)}",
                None if math.isinf(wait_s) else wait_s,
            )
        owner.budget.charge(cost, sent_at)
        payload_bytes = sum(tensor.data.nbytes for tensor in request.inputs)
        ahead = placed.ahead
        expected = placed.learner.expect(items, payload_bytes, ahead, sent_at)
        placed.in_flight += 1
        placed.in_flight_items += items
        probe = placed.breaker.begin()
        told = False
        try:
            reply = await _bounded(cloud, name, placed.model.key, request, timeout_s)
            if placed.model.max_batch:
                _check_batch(reply, items, name)
            told = True
        except TargetError as error:
            told = True
            too_short = timeout_s * 1e3 < expected.p95_ms
            self._blame(placed, error, probe, too_short=too_short, own=own)
            if learn and error.fault is Fault.TIMEOUT and not too_short:
                self._learn(placed, items, payload_bytes, ahead, sent_at)
            raise
        finally:
            placed.in_flight -= 1
            placed.in_flight_items -= items
            if not told:
                placed.breaker.released(probe)
        placed.breaker.succeeded()
        placed.failure = ""
        if not own:
            placed.requests += 1
            placed.items += items
        placed.shapes = {tensor.name: tensor.data.shape for tensor in request.inputs}
        if learn:
            self._learn(placed, items, payload_bytes, ahead, sent_at)
        return reply

    def _learn(
        self, placed: Placed, items: int, payload_bytes: int, ahead: float, sent_at: float
    ) -> None:
        now = self._clock()
        placed.learner.observe(items, payload_bytes, ahead, (now - sent_at) * 1e3, now)
        placed.learnt()

    def _blame(
        self, placed: Placed, error: TargetError, probe: bool, *, too_short: bool, own: bool
    ) -> None:
        """Hold a failure against the target, if it is to blame."""
        now, fault, breaker = self._clock(), error.fault, placed.breaker
        if fault is Fault.INVALID or (fault is Fault.TIMEOUT and too_short):
            breaker.released(probe)
            return
        if not own:
            placed.requests += 1
            placed.failures += 1
        placed.failure = str(error)
        match fault:
            case Fault.CREDENTIALS:
                placed.owner.refused = str(error)
                placed.owner.wake.set()
                breaker.eject(now)
            case Fault.THROTTLED | Fault.QUOTA:
                pause_s = error.retry_after_s
                breaker.eject(now, None if pause_s is None else min(pause_s, MAX_PAUSE_S))
            case Fault.UNSUPPORTED:
                placed.unsupported = True
                breaker.failed(now, probe)
            case Fault.NOT_DEPLOYED:
                placed.ready = 0
                breaker.failed(now, probe)
            case _:
                breaker.failed(now, probe)
        placed.next_check = min(placed.next_check, now)
        placed.wake.set()


def takes(placed: Placed, items: int, now: float) -> bool:
    """Whether a model on a target is warm, healthy, within the budget and has room for `items`
    more; an idle replica has room for any request."""
    owner = placed.owner
    return (
        placed.ready > 0
        and placed.breaker.admits(now)
        and not owner.refused
        and not placed.leaving
        and not placed.unsupported
        and (not placed.in_flight or placed.in_flight_items + items <= placed.room * placed.ready)
        and owner.budget.affords(owner.price.per_request, now)
    )


async def _bounded(
    cloud: CloudTarget, name: str, key: ModelKey, request: InferRequest, timeout_s: float
) -> InferReply:
    try:
        async with asyncio.timeout(timeout_s + GRACE_S):
            return await cloud.infer(key, request, timeout_s)
    except TimeoutError:
        raise TargetError(
            Fault.TIMEOUT, f"target {name} did not answer within {timeout_s * 1e3:.0f} ms"
        ) from None
    except (TargetError, asyncio.CancelledError):
        raise
    except Exception as error:
        # A fault of ours or of an SDK: for the request the target is broken.
        log.error("a target failed", target=name, error=type(error).__name__, at=where_of(error))
        raise TargetError(Fault.BROKEN, f"target {name} failed: {type(error).__name__}") from error


def where_of(error: Exception) -> str:
    """Where a fault is in the code; its text may have secrets in it."""
    return " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)[-6:])
    )


def _check_batch(reply: InferReply, items: int, name: str) -> None:
    for tensor in reply.outputs:
        if tensor.data.shape[:1] != (items,):
            raise TargetError(
                Fault.BROKEN,
                f"target {name} answered {items} items with {list(tensor.data.shape)} as "
                f"'{tensor.name}'",
            )


def _grew(told: _Told, pressure: Pressure) -> bool:
    return pressure.excess_per_s > 1.2 * told.pressure.excess_per_s
