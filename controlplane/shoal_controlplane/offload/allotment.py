"""Who has how many replicas, and what they cost: decisions over the records of the pool."""

from __future__ import annotations

import math
from collections.abc import Iterable

from shoal_controlplane.gateway.clouds import Level
from shoal_controlplane.offload.pool import CloudPool
from shoal_controlplane.offload.scaling import Place, Scale, ScalingSettings, needed, step
from shoal_controlplane.offload.state import Placed
from shoal_controlplane.planner.snapshot import ModelKey

_START_S, _STOP_S = 300.0, 60.0
"""A replica is started if it can be paid for so long, and stopped when no longer for that."""


class Allotment:
    """Sets `Placed.scale` and wakes its loop where that changes. `pins` are numbers of replicas
    that were fixed by hand, by target and model."""

    def __init__(self, pool: CloudPool, settings: ScalingSettings, now: float) -> None:
        self._pool = pool
        self._scaling = settings
        self._charged_at = now
        self.pins: dict[tuple[str, ModelKey], int] = {}

    def charge(self, driven: Iterable[Placed], now: float) -> None:
        """What runs has cost since the last time."""
        hours = max(0.0, now - self._charged_at) / 3600.0
        self._charged_at = now
        for placed in driven:
            running = max(placed.running, placed.asked or 0)
            placed.owner.budget.charge(placed.owner.price.per_replica_hour * running * hours, now)

    def decide(self, now: float) -> None:
        """Decide for all models how many replicas each target should have."""
        models: dict[ModelKey, list[Placed]] = {}
        for (_, key), placed in self._pool.placed.items():
            models.setdefault(key, []).append(placed)
        for key, everywhere in models.items():
            everywhere.sort(key=lambda placed: _preference(placed, now))
            pressure = self._pool.pressure(key, now)
            places = {placed: self._seen(placed, now) for placed in everywhere}
            need = needed(pressure, list(places.values()), self._scaling)
            for placed, place in places.items():
                if placed.owner.cloud is None or placed.owner.refused:
                    continue  # Nothing can be asked of it now.
                pin = self.pins.get((place.target, key))
                asks = pressure.level is not Level.CALM if pin is None else pin > 0
                placed.short_of_money = asks and self._affordable(placed, now) <= 0
                wanted = need.get(place.target, 0) if pin is None else pin
                if not wanted and placed.scaling.due(now):
                    placed.scaling.worked()
                before = placed.scale.replicas
                if pin is None:
                    placed.scale = step(placed.scale, wanted, place.most, now, self._scaling)
                else:
                    placed.scale = Scale(min(pin, place.most), now, now)
                if placed.scale.replicas != before:
                    placed.wake.set()
                if placed.ready or not placed.scale.replicas:
                    placed.warming_since = None
                elif placed.warming_since is None:
                    placed.warming_since = now

    def _seen(self, placed: Placed, now: float) -> Place:
        owner = placed.owner
        usable = (
            owner.cloud is not None
            and not owner.refused
            and not placed.leaving
            and not placed.unsupported
            and not placed.deploying.attempts
            and placed.warming.due(now)
        )
        most = min(owner.settings.max_replicas, self._affordable(placed, now)) if usable else 0
        most = min(most, self.pins.get((owner.settings.name, placed.model.key), most))
        if placed.quota is not None and not placed.scaling.due(now):
            most = min(most, placed.quota)
        ejected = bool(placed.breaker.until)
        since = placed.warming_since
        warming_s = math.inf if ejected else (now - since if since is not None else 0.0)
        return Place(
            owner.settings.name,
            placed.learner.capacity(self._pool.slo_ms(placed.model.key)).items_per_s,
            max(0, most),
            ready=0 if ejected else placed.ready,
            warming_s=warming_s,
        )

    def _affordable(self, placed: Placed, now: float) -> int:
        """Replicas of this model that its target can pay, beside those of other models."""
        owner = placed.owner
        seconds = _STOP_S if placed.scale.replicas else _START_S
        others = sum(p.scale.replicas for p in self._pool.on(owner) if p is not placed)
        return owner.budget.runs(owner.price.per_replica_hour, seconds, now) - others


def _preference(placed: Placed, now: float) -> tuple[bool, float, float]:
    """The order in which requests would prefer targets, warm ones first."""
    expected = placed.learner.expect(1, 0, 0.0, now)
    return placed.ready == 0, expected.p95_ms, placed.request_price(1)
