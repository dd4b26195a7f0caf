"""The step of load that every rule meets, and the fewest requests that must leave.

A fleet at `BASE_LOAD` of its capacity gets `STEP_LOAD` of it for `STEP_S` seconds, then `BASE_LOAD`
again. Capacity is what slow phases leave on average. Service times of a request vary by 8.3 %, as
measured on a Snapdragon 8 Gen 3; slow phases are those of the benchmark `router`.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from shoal_bench.router.scenario import (
    FLEET_MS,
    PHASE_MS,
    SLOW_FACTOR,
    SLOW_SHARE,
    Scenario,
    effective_load,
)

BASE_LOAD = 0.6
STEP_LOAD = 2.0
BEFORE_S = 3.0
STEP_S = 5.0
AFTER_S = 7.0
END_MS = 1e3 * (BEFORE_S + STEP_S + AFTER_S)
STEP_END_MS = 1e3 * (BEFORE_S + STEP_S)
SLO_MS = 200.0
JITTER = 0.083
_ROUNDING = 1e-6


class _Stream(IntEnum):
    ARRIVALS = 10
    SERVICE = 11
    PHASES = 12


def draw(seed: int, *, slow: bool = True) -> Scenario:
    """One seed's arrivals, service times and, where `slow`, slow phases."""

    def generator(stream: _Stream) -> np.random.Generator:
        return np.random.default_rng([seed, stream])

    capacity = sum(1 / ms for ms in FLEET_MS) / (effective_load(1.0) if slow else 1.0)
    arrivals: list[float] = []
    rng, start = generator(_Stream.ARRIVALS), 0.0
    for seconds, load in ((BEFORE_S, BASE_LOAD), (STEP_S, STEP_LOAD), (AFTER_S, BASE_LOAD)):
        end = start + seconds * 1e3
        count = rng.poisson(load * capacity * (end - start))
        arrivals.extend(np.sort(rng.uniform(start, end, count)).tolist())
        start = end
    jitter = generator(_Stream.SERVICE).lognormal(-(JITTER**2) / 2, JITTER, len(arrivals))
    phases = int(END_MS / PHASE_MS) * 2 + 2
    share = SLOW_SHARE if slow else 0.0
    slowed = generator(_Stream.PHASES).random((phases, len(FLEET_MS))) < share
    return Scenario(
        fleet=FLEET_MS,
        arrivals=tuple(arrivals),
        jitter=tuple(jitter.tolist()),
        gateways=(0,) * len(arrivals),
        slow=tuple(map(tuple, np.where(slowed, SLOW_FACTOR, 1.0).tolist())),
    )


def fewest_away(scenario: Scenario, slo_ms: float = SLO_MS) -> int:
    """A number of requests that any rule, even one that knows the future, must send away so that
    all others are answered by the devices within the SLO.

    What arrives between two moments and stays must be computed between the first of them and the
    second one plus the SLO. All devices together are taken as one that works on anything at once,
    at the sum of their true speeds, slow phases included, and never waits for a network: no fleet
    can do more. What exceeds its work leaves, the largest requests first, so that the fewest do.
    The bound is that of the pair of moments, multiples of 150 ms, with the most excess: nobody can
    do better, and perhaps nobody as well.
    """
    arrivals, work = np.array(scenario.arrivals), np.array(scenario.jitter)
    speeds = np.array(
        [
            sum(1 / (ms * slow) for ms, slow in zip(scenario.fleet, phase, strict=True))
            for phase in scenario.slow
        ]
    )
    done = np.concatenate([[0.0], np.cumsum(speeds * PHASE_MS)])
    ends = np.arange(len(done)) * PHASE_MS
    moments = np.arange(0.0, arrivals[-1] + PHASE_MS, PHASE_MS)
    at = np.searchsorted(arrivals, moments)
    asked = np.concatenate([[0.0], np.cumsum(work)])[at]
    begun, due = np.interp(moments, ends, done), np.interp(moments + slo_ms, ends, done)
    excess = np.triu((asked - due)[None, :] - (asked - begun)[:, None])
    first, last = np.unravel_index(np.argmax(excess), excess.shape)
    most = excess[first, last] - _ROUNDING
    if most <= 0:
        return 0
    largest = np.sort(work[at[first] : at[last]])[::-1]
    return int(np.searchsorted(np.cumsum(largest), most)) + 1
