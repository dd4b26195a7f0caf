"""What every policy meets: a fleet, arrivals, service times and slow phases, drawn beforehand.

Each is drawn by a generator of its own per seed, so that a policy's choices change nothing of
what the next policy meets, and the ratio of two policies in one seed is fair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

# ResNet-50, batch 1, milliseconds: MLPerf single-stream, Qualcomm AI Hub and vendors' figures.
FLEET_MS: tuple[float, ...] = (
    *(0.64,) * 1,  # Jetson AGX Orin
    *(1.08,) * 2,  # Jetson Orin NX
    *(2.5,) * 2,  # Ascend 310
    *(2.67,) * 3,  # QCS6490
    *(8.9,) * 3,  # Snapdragon 855
    *(27.0,) * 3,  # Jetson Nano
)

PHASE_MS = 150.0
SLOW_SHARE = 0.2
SLOW_FACTOR = 3.0
JITTER_SIGMA = 0.2

EFFECTIVE_CAPACITY = 1 - SLOW_SHARE + SLOW_SHARE / SLOW_FACTOR
"""Mean share of the nominal capacity that slow phases leave."""


class _Stream(IntEnum):
    ARRIVALS = 0
    SERVICE = 1
    PHASES = 2
    GATEWAYS = 3


def effective_load(load: float) -> float:
    """The load on the capacity that slow phases leave, from the load on the nominal one."""
    return load / EFFECTIVE_CAPACITY


@dataclass(frozen=True, slots=True)
class Scenario:
    """One seed's draw. Times in milliseconds.

    `arrivals`, `jitter` (factor on the service time, mean 1) and `gateways` (which gateway gets
    it) are per request, shape [requests]. `slow[phase][device]` is the factor during a phase of
    `PHASE_MS`; a run that outlasts them meets them again from the start.
    """

    fleet: tuple[float, ...]
    arrivals: tuple[float, ...]
    jitter: tuple[float, ...]
    gateways: tuple[int, ...]
    slow: tuple[tuple[float, ...], ...]

    def slowdown(self, device: int, now: float) -> float:
        """The factor on the service time of what starts on `device` at `now`."""
        return self.slow[int(now / PHASE_MS) % len(self.slow)][device]


def draw(
    load: float,
    seed: int,
    requests: int,
    gateways: int = 1,
    fleet: Sequence[float] = FLEET_MS,
) -> Scenario:
    """Poisson arrivals at `load` times the nominal capacity, that is without slow phases."""

    def generator(stream: _Stream) -> np.random.Generator:
        return np.random.default_rng([seed, stream])

    rate = load * sum(1 / ms for ms in fleet)
    arrivals = np.cumsum(generator(_Stream.ARRIVALS).exponential(1 / rate, requests))
    mean = -(JITTER_SIGMA**2) / 2
    jitter = generator(_Stream.SERVICE).lognormal(mean, JITTER_SIGMA, requests)
    phases = int(arrivals[-1] / PHASE_MS) * 2 + 2
    slow = generator(_Stream.PHASES).random((phases, len(fleet))) < SLOW_SHARE
    return Scenario(
        fleet=tuple(fleet),
        arrivals=tuple(arrivals.tolist()),
        jitter=tuple(jitter.tolist()),
        gateways=tuple(generator(_Stream.GATEWAYS).integers(0, gateways, requests).tolist()),
        slow=tuple(map(tuple, np.where(slow, SLOW_FACTOR, 1.0).tolist())),
    )


def pooled_sojourn(scenario: Scenario, hop_ms: float) -> list[float]:
    """Sojourn times if all devices were one that serves a request with the capacity of all.

    First come, first served, in ms, the network included and a tenth of warm-up left out. No
    policy has a shorter mean backlog.
    """
    rates = [
        sum(1 / (ms * slow) for ms, slow in zip(scenario.fleet, phase, strict=True))
        for phase in scenario.slow
    ]
    free_at = 0.0
    sojourn: list[float] = []
    for arrival, work in zip(scenario.arrivals, scenario.jitter, strict=True):
        now, left, phase = max(arrival, free_at), work, int(max(arrival, free_at) / PHASE_MS)
        while True:
            rate, end = rates[phase % len(rates)], (phase + 1) * PHASE_MS
            if left <= rate * (end - now):
                free_at = now + left / rate
                break
            left -= rate * (end - now)
            now, phase = end, phase + 1
        sojourn.append(free_at - arrival + 2 * hop_ms)
    return sojourn[len(sojourn) // 10 :]
