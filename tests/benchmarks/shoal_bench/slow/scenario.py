"""A fleet in which one device becomes slower at one moment, and stays so."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_bench.router.scenario import FLEET_MS, Scenario, draw

SLOWER = 10.0
AT_MS = 2_500.0
AFTER_MS = 2_500.0


@dataclass(frozen=True, slots=True)
class Throttled(Scenario):
    """All devices at their normal speed, until `device` takes `SLOWER` times as long."""

    device: int = 0

    def slowdown(self, device: int, now: float) -> float:
        return SLOWER if device == self.device and now >= AT_MS else 1.0


def throttled(load: float, seed: int, device: int) -> Throttled:
    """Poisson arrivals at `load` times the capacity before."""
    rate = load * sum(1 / ms for ms in FLEET_MS)
    drawn = draw(load, seed, int(rate * (AT_MS + AFTER_MS)))
    return Throttled(drawn.fleet, drawn.arrivals, drawn.jitter, drawn.gateways, (), device)
