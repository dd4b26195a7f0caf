"""A gateway for the simulation: the real router, admission and pressure, and a cloud if any.

It does what `gateway.overflow` does without hedging and second attempts; times in milliseconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from shoal_bench.router.simulation import Simulation
from shoal_controlplane.gateway.admission import Admission, Ask, Priority, Way
from shoal_controlplane.gateway.clouds import CloudOption, Clouds, NoClouds
from shoal_controlplane.gateway.pressure import Pressures
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.saturation import WINDOW_S
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_shared.profiles import fit
from shoal_shared.signature import ModelSignature

KEY = "resnet50:1"


@dataclass(slots=True)
class Taken:
    """What became of each request: ms from arrival to answer, infinite where there was none, and
    who took it."""

    sojourn: list[float]
    way: list[Way]
    at: list[float]


@dataclass(slots=True)
class Cloud(NoClouds):
    """A warm target without a limit, whose answers take `mean_ms` times a lognormal factor."""

    mean_ms: float
    rng: random.Random
    sigma: float = 0.05
    expected_ms: float = field(init=False)

    def __post_init__(self) -> None:
        self.expected_ms = self.mean_ms * math.exp(1.65 * self.sigma)

    def options(
        self, model: ServedModel, items: int, payload_bytes: int, now: float
    ) -> Sequence[CloudOption]:
        return (CloudOption("cloud", self.expected_ms, 0.001),)

    def draw_ms(self) -> float:
        return self.mean_ms * self.rng.lognormvariate(0.0, self.sigma)


class SimulatedGateway:
    """A policy for `Simulation`; `priorities` and `clients` are those of each request, the
    standard one and nobody where left out."""

    def __init__(
        self,
        simulation: Simulation,
        slo_ms: float,
        seed: int,
        cloud: Cloud | None = None,
        priorities: Sequence[Priority] = (),
        clients: Sequence[str] = (),
    ) -> None:
        count = len(simulation.scenario.arrivals)
        self.taken = Taken([math.inf] * count, [Way.SHED] * count, [0.0] * count)
        self.levels: list[tuple[float, str]] = []
        self.rhos: list[tuple[float, float]] = []
        self._simulation = simulation
        self._slo_ms = slo_ms
        self._cloud = cloud
        self._priorities = priorities
        self._clients = clients
        self._router = Router(rng=random.Random(seed))
        self._admission = Admission()
        self._tickets: dict[int, Ticket] = {}
        self._now_ms = 0.0
        profiles = [fit([(1, device.base_ms)]) for device in simulation.devices]
        self.model = ServedModel(
            "resnet50",
            "1",
            "onnxruntime_onnx",
            ModelSignature(inputs=(), outputs=()),
            0,
            tuple(Replica(str(index), profile) for index, profile in enumerate(profiles)),
            slo_ms=slo_ms,
            offload=("cloud",) if cloud is not None else (),
        )
        clouds: Clouds = cloud if cloud is not None else NoClouds()
        self._clouds = clouds
        self.pressures = Pressures(
            self._router,
            lambda: (self.model,),
            clouds,
            lambda: self._now_ms / 1e3,
            record=lambda kind, subject, message, data: self.levels.append(
                (self._now_ms, data["level"])
            ),
            wall_clock=lambda: self._now_ms / 1e3,
        )

    def watch(self, until_ms: float) -> None:
        """Have the pressure looked at every window until `until_ms`."""
        for number in range(1, int(until_ms / (WINDOW_S * 1e3)) + 1):
            self._simulation.at(number * WINDOW_S * 1e3, self._tick)

    def _tick(self, now: float) -> None:
        self._now_ms = now
        self.pressures.tick(now / 1e3)
        self.rhos.append((now, self.pressures.of("resnet50", "1").rho))

    def pick(self, request: int, now: float) -> int | None:
        seconds = now / 1e3
        ticket = self._router.pick(KEY, self.model.replicas, 1, seconds)
        priority = self._priorities[request] if self._priorities else Priority.STANDARD
        client = self._clients[request] if self._clients else ""
        ask = Ask(KEY, 1, self._slo_ms, priority, client)
        options = partial(self._clouds.options, self.model, 1, 0, seconds)
        decision = self._admission.decide(ask, ticket, options, seconds)
        self.taken.way[request] = decision.way
        if decision.full:
            self.pressures.turned_away(self.model, 1)
        if decision.way is Way.EDGE and ticket is not None:
            self._tickets[request] = ticket
            self.pressures.edge(self.model, 1, ticket)
            return int(ticket.device)
        if ticket is not None:
            self._router.withdrawn(ticket)
        if decision.way is Way.CLOUD and self._cloud is not None:
            took = self._cloud.draw_ms()
            self._simulation.at(now + took, partial(self._cloud_answered, request, took))
        else:
            self.pressures.shed(self.model, 1)
        return None

    def _cloud_answered(self, request: int, took: float, now: float) -> None:
        self.taken.sojourn[request] = took
        self.taken.at[request] = now
        self.pressures.spilled(self.model, 1, "cloud")

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        ticket = self._tickets.pop(request)
        seconds = now / 1e3
        took = now - ticket.sent_at * 1e3
        self.taken.sojourn[request] = took
        self.taken.at[request] = now
        self._router.succeeded(ticket, seconds, depth, service, 1)
        self._admission.answered(KEY, took, self._slo_ms, seconds)

    def dropped(self, request: int, device: int, now: float) -> None:
        self._router.released(self._tickets.pop(request), now / 1e3)
