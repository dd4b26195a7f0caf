"""Discrete-event simulation: requests come, a policy picks, devices serve first come first served.

A message between a gateway and a device takes `hop_ms`, for every policy: requests, replies,
probes and their answers. Where requests have a deadline, devices drop what has expired before it
starts, and a policy may refuse.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from shoal_bench.router.scenario import Scenario

HOP_MS = 0.25
"""Half of what a message takes through a broker and back on one machine."""

WARM_UP_SHARE = 0.1
UNANSWERED = math.inf
_LATENCIES_KEPT = 8


class Policy(Protocol):
    """What one gateway decides with. Times in milliseconds."""

    def pick(self, request: int, now: float) -> int | None:
        """The index of the device that gets `request`, which counts as in flight from now on;
        None if it is refused."""

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        """The reply to `request` is here: it took `service` ms of pure computing, and the device
        had `depth` requests left when it sent it."""

    def dropped(self, request: int, device: int, now: float) -> None:
        """The device dropped `request`, whose deadline had passed."""


@dataclass(slots=True)
class Device:
    """A device with one server. `in_flight` counts what waits or runs."""

    base_ms: float
    waiting: deque[int] = field(default_factory=deque)
    in_flight: int = 0
    latencies: dict[int, deque[float]] = field(default_factory=dict)

    def probe(self) -> tuple[int, float]:
        """Requests in flight, and the latency to expect: as Prequal's servers answer, the median
        of recent latencies of requests that came when as many were in flight, or nearly so."""
        if not self.latencies:
            return self.in_flight, self.base_ms * (self.in_flight + 1)
        nearest = min(self.latencies, key=lambda tag: abs(tag - self.in_flight - 1))
        return self.in_flight, statistics.median(self.latencies[nearest])

    def record(self, tag: int, latency: float) -> None:
        """Remember the latency of a request that was the `tag`-th in flight when it came."""
        kept = self.latencies.get(tag)
        if kept is None:
            kept = self.latencies[tag] = deque(maxlen=_LATENCIES_KEPT)
        kept.append(latency)


class Simulation:
    """Devices, the clock and what lies ahead of it. Times in milliseconds."""

    def __init__(
        self, scenario: Scenario, hop_ms: float = HOP_MS, deadline_ms: float = math.inf
    ) -> None:
        self.scenario = scenario
        self.deadline_ms = deadline_ms
        self.devices = [Device(ms) for ms in scenario.fleet]
        self.travelling = [0] * len(self.devices)
        self.hop_ms = hop_ms
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._tags = [0] * len(scenario.arrivals)
        self._reached = [0.0] * len(scenario.arrivals)

    def at(self, when: float, action: Callable[[float], None]) -> None:
        """Call `action(when)` when the clock gets there."""
        heapq.heappush(self._events, (when, next(self._order), action))

    def probe(self, index: int, now: float, receive: Callable[[int, float, float], None]) -> None:
        """Ask a device; `receive(in_flight, latency, now)` is called when its answer is back."""

        def ask(then: float) -> None:
            in_flight, latency = self.devices[index].probe()
            self.at(then + self.hop_ms, lambda back: receive(in_flight, latency, back))

        self.at(now + self.hop_ms, ask)

    def run(self, policies: Sequence[Policy]) -> list[float]:
        """Sojourn times in ms in the order of arrival, warm-up left out, one policy a gateway.

        `UNANSWERED` stands for what was refused or dropped.
        """
        scenario = self.scenario
        sojourn = [UNANSWERED] * len(scenario.arrivals)

        def start(index: int, now: float) -> None:
            device = self.devices[index]
            while device.waiting:
                request = device.waiting[0]
                if now < scenario.arrivals[request] + self.deadline_ms:
                    service = device.base_ms * scenario.jitter[request]
                    service *= scenario.slowdown(index, now)
                    self.at(now + service, partial(finish, index, service))
                    return
                device.waiting.popleft()
                device.in_flight -= 1
                policy = policies[scenario.gateways[request]]
                self.at(now + self.hop_ms, partial(policy.dropped, request, index))

        def finish(index: int, service: float, now: float) -> None:
            device = self.devices[index]
            request = device.waiting.popleft()
            device.in_flight -= 1
            device.record(self._tags[request], now - self._reached[request])
            self.at(now + self.hop_ms, partial(reply, request, index, service, device.in_flight))
            start(index, now)

        def reply(request: int, index: int, service: float, depth: int, now: float) -> None:
            sojourn[request] = now - scenario.arrivals[request]
            policy = policies[scenario.gateways[request]]
            policy.answered(request, index, now, service, depth)

        def reach(request: int, index: int, now: float) -> None:
            device = self.devices[index]
            self.travelling[index] -= 1
            device.in_flight += 1
            self._tags[request] = device.in_flight
            self._reached[request] = now
            device.waiting.append(request)
            if device.in_flight == 1:
                start(index, now)

        for request, now in enumerate(scenario.arrivals):
            self._pass(now)
            index = policies[scenario.gateways[request]].pick(request, now)
            if index is not None:
                self.travelling[index] += 1
                self.at(now + self.hop_ms, partial(reach, request, index))
        self._pass(math.inf)
        return sojourn[int(WARM_UP_SHARE * len(sojourn)) :]

    def _pass(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, action = heapq.heappop(self._events)
            action(when)
