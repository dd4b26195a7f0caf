"""How others decide what goes to the cloud, on the same simulation.

Both send what stays to the device with the least requests for its static speed, which they are
told, and get answers from the cloud as Shoal does.
"""

from __future__ import annotations

import math
import random

from shoal_bench.overload.gateway import Cloud
from shoal_bench.router.policies import WeightedLeastRequest
from shoal_bench.router.simulation import Simulation


class _Spilling(WeightedLeastRequest):
    """Keeps what became of each request, ms to its answer and whether the cloud gave it."""

    def __init__(self, simulation: Simulation, cloud: Cloud, rng: random.Random) -> None:
        super().__init__(simulation.devices, rng)
        count = len(simulation.scenario.arrivals)
        self.sojourn = [math.inf] * count
        self.in_cloud = [False] * count
        self._simulation = simulation
        self._cloud = cloud

    @property
    def in_flight(self) -> int:
        return sum(self._in_flight)

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        super().answered(request, device, now, service, depth)
        self.sojourn[request] = now - self._simulation.scenario.arrivals[request]

    def spill(self, request: int) -> None:
        self.in_cloud[request] = True
        self.sojourn[request] = self._cloud.draw_ms()


class Threshold(_Spilling):
    """To the cloud while more than `most` requests are on the devices."""

    def __init__(self, simulation: Simulation, cloud: Cloud, rng: random.Random, most: int) -> None:
        super().__init__(simulation, cloud, rng)
        self._most = most

    def pick(self, request: int, now: float) -> int | None:  # type: ignore[override]
        if self.in_flight >= self._most:
            self.spill(request)
            return None
        return super().pick(request, now)


class Autoscaling(_Spilling):
    """Replicas in the cloud by the devices' utilisation, as Kubernetes' HorizontalPodAutoscaler
    has it: desired = current * utilisation / `TARGET`, unless within a tenth of it, and fewer only
    `DOWN_MS` after more were wanted last. Requests are spread by capacity.

    Kinder than the defaults (15 s, 5 min, and minutes until a node is there): it looks every
    second, gives up after 5 s, and replicas are there at once. A replica does as much as a tenth
    of the fleet.
    """

    TARGET = 0.8
    PERIOD_MS = 1e3
    DOWN_MS = 5e3
    TOLERANCE = 0.1
    EDGE = 10

    def __init__(
        self, simulation: Simulation, cloud: Cloud, rng: random.Random, until_ms: float
    ) -> None:
        super().__init__(simulation, cloud, rng)
        self.changes = 0
        self.replicas = 0
        self.changed_at = 0.0
        self._busy_ms = 0.0
        self._wanted: list[tuple[float, int]] = []
        for number in range(1, int(until_ms / self.PERIOD_MS) + 1):
            simulation.at(number * self.PERIOD_MS, self._look)

    def pick(self, request: int, now: float) -> int | None:  # type: ignore[override]
        if self._rng.random() * (self.EDGE + self.replicas) >= self.EDGE:
            self.spill(request)
            return None
        return super().pick(request, now)

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        super().answered(request, device, now, service, depth)
        self._busy_ms += service

    def _look(self, now: float) -> None:
        used, self._busy_ms = self._busy_ms / (self.PERIOD_MS * len(self._base)), 0.0
        current = self.EDGE + self.replicas
        ratio = used / self.TARGET
        wanted = current if abs(ratio - 1) <= self.TOLERANCE else math.ceil(current * ratio)
        self._wanted.append((now, max(0, wanted - self.EDGE)))
        self._wanted = [entry for entry in self._wanted if now - entry[0] < self.DOWN_MS]
        replicas = max(count for _, count in self._wanted)
        if replicas != self.replicas:
            self.replicas, self.changed_at = replicas, now
            self.changes += 1
