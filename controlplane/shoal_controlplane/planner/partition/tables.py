"""The costs of a problem as arrays, so that programmes can look up any stage at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Problem
from shoal_controlplane.planner.snapshot import memory_estimate

Floats: TypeAlias = NDArray[np.float64]
Choice: TypeAlias = tuple[int, int, int, int]
"""A stage to be: segments [first, last), type, and number of devices."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What `Problem` counts, for all stages.

    Shapes: `cost` (V, L+1, L+1) is the time in ms of segments [i, j) on type v, infinite where
    they do not fit or there are none; `memory` the same in bytes. `transfer` and `latency`
    (V, V, L+1) are how long the link u -> v is busy with what is alive at boundary b, and its
    latency; those in and out are `entry`, `exit`, `entry_latency`, `exit_latency` (V,). `caps` is
    the number of devices by type, `replicas` how many of them one stage may have.
    """

    cost: Floats
    memory: NDArray[np.int64]
    transfer: Floats
    latency: Floats
    entry: Floats
    exit: Floats
    entry_latency: Floats
    exit_latency: Floats
    caps: tuple[int, ...]
    replicas: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of segments, L."""
        return int(self.cost.shape[1]) - 1

    @property
    def kinds(self) -> int:
        """Number of types, V."""
        return len(self.caps)


def tabulate(problem: Problem) -> Tables:
    """The arrays of `problem`, which is checked."""
    length, kinds = len(problem.segments), len(problem.types)
    memory = memory_table(problem)
    cost = compute_table(problem)
    free = np.array([kind.memory_bytes for kind in problem.types], dtype=np.float64)
    cost[memory > MEMORY_SHARE * free[:, None, None]] = np.inf
    alive = np.array([problem.input_bytes, *(s.out_bytes for s in problem.segments)], np.float64)
    speed = np.array([[link.bytes_per_s for link in row] for row in problem.links])
    latency = np.array([[link.latency_ms for link in row] for row in problem.links])
    counts = tuple(len(kind.devices) for kind in problem.types)
    return Tables(
        cost=cost,
        memory=memory,
        transfer=1e3 * alive / speed.reshape(kinds, kinds, 1),
        latency=np.broadcast_to(latency.reshape(kinds, kinds, 1), (kinds, kinds, length + 1)),
        entry=np.array([link.transfer_ms(problem.input_bytes) for link in problem.entries]),
        exit=np.array([link.transfer_ms(problem.out_bytes(length)) for link in problem.exits]),
        entry_latency=np.array([link.latency_ms for link in problem.entries]),
        exit_latency=np.array([link.latency_ms for link in problem.exits]),
        caps=counts,
        replicas=counts if problem.replicate else (1,) * kinds,
    )


def compute_table(problem: Problem) -> Floats:
    """`Problem.compute_ms` of every stage; infinite where there is no segment."""
    length, kinds = len(problem.segments), len(problem.types)
    cost = np.full((kinds, length + 1, length + 1), np.inf)
    times = np.array([kind.times_ms for kind in problem.types], np.float64)
    overhead = np.array([[kind.overhead_ms] for kind in problem.types])
    for i in range(length):
        cost[:, i, i + 1 :] = overhead + np.cumsum(times[:, i:], axis=1)
    for (first, last, kind), ms in problem.known_ms.items():
        cost[kind, first, last] = ms
    return cost


def memory_table(problem: Problem) -> NDArray[np.int64]:
    """`Problem.memory_bytes` of every stage; 0 where there is no segment."""
    length, kinds = len(problem.segments), len(problem.types)
    alive = np.array([problem.input_bytes, *(s.out_bytes for s in problem.segments)], np.int64)
    weights = np.array([segment.weight_bytes for segment in problem.segments], np.int64)
    peaks = np.array([segment.peak_bytes for segment in problem.segments], np.int64)
    each = np.zeros((length + 1, length + 1), np.int64)
    # `memory_estimate` is a straight line, of which numpy needs slope and start.
    start = memory_estimate(0)
    slope = memory_estimate(1) - start
    for i in range(length):
        inside = start + slope * np.cumsum(weights[i:]) + np.maximum.accumulate(peaks[i:])
        each[i, i + 1 :] = inside + problem.in_flight * (alive[i] + alive[i + 1 :])
    memory = np.repeat(each[None], kinds, axis=0)
    for (first, last, kind), size in problem.known_bytes.items():
        waiting = problem.in_flight * int(alive[first] + alive[last])
        memory[kind, first, last] = size + waiting
    return memory
