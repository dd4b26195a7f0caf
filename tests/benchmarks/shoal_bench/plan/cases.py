"""Random models and fleets, and the best plan of small ones by trying all."""

from __future__ import annotations

import random

from shoal_controlplane.planner.partition.problem import (
    MEMORY_SHARE,
    DeviceType,
    Link,
    Problem,
    Segment,
)
from shoal_controlplane.planner.snapshot import memory_estimate

MB = 1_000_000
IN_FLIGHT = 4
_GFLOPS = (40.0, 15.0, 10.0, 4.0, 1.5)
"""Effective speed of the boards: a 27x spread."""
_OUT_MB = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_BANDWIDTH_MB = (12.5, 12.5, 117.0, 3.0)
"""Fast and gigabit Ethernet, and a poor radio, in MB/s."""
_MEMORY = (0.3, 0.5, 1.0, 2.0)
"""Of what the whole model takes."""


def draw(seed: int, length: int, devices: int, types: int | None = None) -> Problem:
    """A model of `length` segments, and `devices` devices, all different unless `types` says how
    many types there are."""
    rng = random.Random(seed)
    kinds = devices if types is None else types
    work = [rng.uniform(0.3, 3.0) for _ in range(length)]
    segments = tuple(
        Segment(
            name=f"node{n}",
            weight_bytes=int(rng.uniform(5, 80) * MB),
            peak_bytes=int(rng.uniform(1, 4) * MB),
            out_bytes=int(rng.choice(_OUT_MB) * MB),
            macs=gflop * 0.5e9,
            moved_bytes=0,
        )
        for n, gflop in enumerate(work)
    )
    whole = memory_estimate(sum(segment.weight_bytes for segment in segments))
    fleet: list[DeviceType] = []
    for v in range(kinds):
        speed = rng.choice(_GFLOPS)
        memory = int(rng.choice(_MEMORY) * whole / MEMORY_SHARE)
        names = tuple(f"device-{v}-{n}" for n in range(devices // kinds + (v < devices % kinds)))
        times = tuple(1e3 * gflop / speed for gflop in work)
        fleet.append(DeviceType(f"type-{v}", names, memory, times, overhead_ms=0.2))
    links = [[Link(1.0)] * kinds for _ in range(kinds)]
    for u in range(kinds):
        for v in range(u, kinds):
            links[u][v] = links[v][u] = _link(rng)
    ways = tuple(_link(rng) for _ in range(kinds))
    return Problem(
        segments=segments,
        types=tuple(fleet),
        links=tuple(map(tuple, links)),
        entries=ways,
        exits=ways,
        input_bytes=int(0.15 * MB),
        in_flight=IN_FLIGHT,
    )


def _link(rng: random.Random) -> Link:
    return Link(rng.choice(_BANDWIDTH_MB) * MB, latency_ms=rng.uniform(0.3, 3.0))


def brute_force(problem: Problem) -> float | None:
    """The least bottleneck in ms of all plans, replicas included; None where nothing fits.

    It counts costs by itself, and shares no code with the planner but `Problem`.
    """
    length, kinds = len(problem.segments), range(len(problem.types))
    fits = {
        (i, j, v): problem.compute_ms(i, j, v)
        for i in range(length)
        for j in range(i + 1, length + 1)
        for v in kinds
        if problem.fits(i, j, v)
    }
    best: float | None = None

    def grow(at: int, before: int, shared: int, worst: float, left: tuple[int, ...]) -> None:
        nonlocal best
        if best is not None and worst >= best:
            return
        if at == length:
            out = problem.exits[before].transfer_ms(problem.out_bytes(length)) / shared
            total = max(worst, out)
            best = total if best is None else min(best, total)
            return
        for v in kinds:
            for r in range(1, (left[v] if problem.replicate else min(1, left[v])) + 1):
                way = problem.links[before][v] if at else problem.entries[v]
                link = way.transfer_ms(problem.in_bytes(at)) / (min(shared, r) if at else r)
                rest = (*left[:v], left[v] - r, *left[v + 1 :])
                for last in range(at + 1, length + 1):
                    ms = fits.get((at, last, v))
                    if ms is not None:
                        grow(last, v, r, max(worst, link, ms / r), rest)

    grow(0, 0, 1, 0.0, tuple(len(kind.devices) for kind in problem.types))
    return best
