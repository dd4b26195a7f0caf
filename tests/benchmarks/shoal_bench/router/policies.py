"""The policies: Shoal's real router, the peers, and a reference that no gateway can have."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from shoal_bench.router.simulation import Device, Simulation
from shoal_controlplane.gateway.predictions import RouterSettings
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.table import Replica
from shoal_shared.profiles import fit


class Shoal:
    """The gateway's router, told what replies carry. A profile is the device's normal speed.

    Like the gateway, it refuses what no device is expected to answer within the deadline.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        seed: int,
        deadline_ms: float = math.inf,
        settings: RouterSettings | None = None,
    ) -> None:
        self._router = Router(settings, random.Random(seed))
        self._deadline_ms = deadline_ms
        self._replicas = [
            Replica(str(index), fit([(1, device.base_ms)])) for index, device in enumerate(devices)
        ]
        self._tickets: dict[int, Ticket] = {}

    def pick(self, request: int, now: float) -> int | None:
        ticket = self._router.pick("resnet50", self._replicas, 1, now / 1e3)
        if ticket is None:
            return None
        if ticket.delay_ms > self._deadline_ms:
            self._router.released(ticket, now / 1e3)
            return None
        self._tickets[request] = ticket
        return int(ticket.device)

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        self._router.succeeded(self._tickets.pop(request), now / 1e3, depth, service, 1)

    def dropped(self, request: int, device: int, now: float) -> None:
        self._router.released(self._tickets.pop(request), now / 1e3)


class _Blind:
    """Learns nothing from replies."""

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        pass

    def dropped(self, request: int, device: int, now: float) -> None:
        pass


class RoundRobin(_Blind):
    """One after the other, from a random one on."""

    def __init__(self, devices: Sequence[Device], rng: random.Random) -> None:
        self._count = len(devices)
        self._next = rng.randrange(self._count)

    def pick(self, request: int, now: float) -> int:
        self._next = (self._next + 1) % self._count
        return self._next


class Weighted(_Blind):
    """Smooth weighted round robin (nginx) on the static capacities, from a random state on."""

    def __init__(self, devices: Sequence[Device], rng: random.Random) -> None:
        self._weights = [1 / device.base_ms for device in devices]
        self._total = sum(self._weights)
        self._credit = [rng.uniform(0, self._total) for _ in devices]

    def pick(self, request: int, now: float) -> int:
        credit = self._credit
        for index, weight in enumerate(self._weights):
            credit[index] += weight
        best = max(range(len(credit)), key=credit.__getitem__)
        credit[best] -= self._total
        return best


class _Counting:
    """Chooses by own requests in flight, per device."""

    def __init__(self, devices: Sequence[Device], rng: random.Random) -> None:
        self._rng = rng
        self._in_flight = [0] * len(devices)

    def pick(self, request: int, now: float) -> int:
        best = self._choose()
        self._in_flight[best] += 1
        return best

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        self._in_flight[device] -= 1

    def dropped(self, request: int, device: int, now: float) -> None:
        self._in_flight[device] -= 1

    def _choose(self) -> int:
        raise NotImplementedError


class PowerOfTwo(_Counting):
    """Of two random devices the one with fewer requests in flight."""

    def _choose(self) -> int:
        first, second = self._rng.sample(range(len(self._in_flight)), 2)
        return first if self._in_flight[first] <= self._in_flight[second] else second


class JoinShortestQueue(_Counting):
    """The fewest requests in flight, ties at random."""

    def _choose(self) -> int:
        counts, rng = self._in_flight, self._rng
        return min(range(len(counts)), key=lambda index: (counts[index], rng.random()))


class WeightedLeastRequest(_Counting):
    """Requests in flight over static capacity: the router without what it learns."""

    def __init__(self, devices: Sequence[Device], rng: random.Random) -> None:
        super().__init__(devices, rng)
        self._base = [device.base_ms for device in devices]

    def _choose(self) -> int:
        counts, base = self._in_flight, self._base
        return min(range(len(counts)), key=lambda index: (counts[index] + 1) * base[index])


class Omniscient(_Blind):
    """Shortest expected delay with the true queues and the present speeds, at any distance."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def pick(self, request: int, now: float) -> int:
        simulation = self._simulation

        def delay(index: int) -> float:
            device = simulation.devices[index]
            speed = device.base_ms * simulation.scenario.slowdown(index, now)
            return (device.in_flight + simulation.travelling[index] + 1) * speed

        return min(range(len(simulation.devices)), key=delay)
