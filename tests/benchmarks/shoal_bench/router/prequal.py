"""Prequal, after "Load is not what you should balance: introducing Prequal" (NSDI 2024).

Asynchronous probing: each request triggers probes of random devices, whose answers (requests in
flight, estimated latency) enter a pool. The choice is hot-cold lexicographic over the pool.
"""

from __future__ import annotations

import random
from bisect import insort
from collections import deque
from dataclasses import dataclass
from functools import partial

from shoal_bench.router.simulation import Simulation

_RIF_KEPT = 128


@dataclass(frozen=True, slots=True)
class PrequalSettings:
    """The paper's defaults: a pool of 16, 3 probes a request, alive for 1 s, Q_RIF = 2^-0.25.

    How often a probe is used (b_reuse) the paper computes for fleets far larger than the pool,
    and it removes one more probe a request. For a fleet smaller than the pool that has no finite
    value; 2 uses and no further removal gave the lowest p99 at load 0.7, of pools of 8, 14 and
    16, 0 or 1 removals, and 1 to 8 uses.
    """

    pool: int = 16
    probes: int = 3
    remove: int = 0
    age_ms: float = 1000.0
    quantile: float = 2**-0.25
    reuse: int = 2


@dataclass(slots=True)
class _Probe:
    device: int
    in_flight: int
    latency: float
    at: float
    uses: int


class Prequal:
    """One gateway's pool of probes."""

    def __init__(
        self,
        simulation: Simulation,
        rng: random.Random,
        settings: PrequalSettings | None = None,
    ) -> None:
        self._simulation = simulation
        self._count = len(simulation.devices)
        self._rng = rng
        self._settings = settings or PrequalSettings()
        self._pool: list[_Probe] = []
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self._remove_oldest = True

    def pick(self, request: int, now: float) -> int:
        self._probe(now)
        if len(self._pool) < 2:
            return self._rng.randrange(self._count)
        limit = self._limit()
        cold = [probe for probe in self._pool if probe.in_flight <= limit]
        if cold:
            best = min(cold, key=lambda probe: probe.latency)
        else:
            best = min(self._pool, key=lambda probe: (probe.in_flight, probe.latency))
        # What is sent now the probe has not seen.
        best.in_flight += 1
        best.uses -= 1
        if best.uses <= 0:
            self._pool.remove(best)
        for _ in range(self._settings.remove):
            self._drop(limit)
        return best.device

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        """Learns by probes only."""

    def dropped(self, request: int, device: int, now: float) -> None:
        """Learns by probes only."""

    def _probe(self, now: float) -> None:
        s = self._settings
        self._pool = [probe for probe in self._pool if now - probe.at < s.age_ms]
        for index in self._rng.sample(range(self._count), s.probes):
            self._simulation.probe(index, now, partial(self._receive, index))

    def _receive(self, index: int, in_flight: int, latency: float, now: float) -> None:
        self._pool.append(_Probe(index, in_flight, latency, now, self._settings.reuse))
        self._recent.append(in_flight)
        insort(self._sorted, in_flight)
        if len(self._recent) > _RIF_KEPT:
            self._sorted.remove(self._recent.popleft())
        del self._pool[: max(0, len(self._pool) - self._settings.pool)]

    def _limit(self) -> int:
        """Above this many requests in flight a device is hot."""
        return self._sorted[int(self._settings.quantile * (len(self._sorted) - 1))]

    def _drop(self, limit: int) -> None:
        """Remove a probe: in turn the oldest, and the one that would be chosen last."""
        if len(self._pool) < 2:
            return
        oldest, self._remove_oldest = self._remove_oldest, not self._remove_oldest
        if oldest:
            del self._pool[0]
            return
        worst = max(
            self._pool,
            key=lambda p: (1, p.in_flight) if p.in_flight > limit else (0, p.latency),
        )
        self._pool.remove(worst)
