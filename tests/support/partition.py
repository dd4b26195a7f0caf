"""Models and fleets to plan for, drawn by Hypothesis or made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from shoal_controlplane.planner.partition.problem import (
    DeviceType,
    Link,
    Objective,
    Problem,
    Segment,
)

MB = 1_000_000
FAST = Link(1e12)


def segment(n: int, **changes: Any) -> Segment:
    facts: dict[str, Any] = {
        "name": f"node{n}",
        "weight_bytes": 10 * MB,
        "peak_bytes": MB,
        "out_bytes": 1000,
        "macs": 1e6,
        "moved_bytes": 0,
    }
    return Segment(**facts | changes)


def fleet_of(
    times: Sequence[Sequence[float]],
    counts: Sequence[int],
    *,
    memory: Sequence[int] | int = 1000 * MB,
    **changes: Any,
) -> Problem:
    """A model whose segments take `times[type]` ms, with links that cost next to nothing."""
    kinds, length = len(times), len(times[0])
    sizes = [memory] * kinds if isinstance(memory, int) else memory
    facts: dict[str, Any] = {
        "segments": tuple(segment(n) for n in range(length)),
        "types": tuple(
            DeviceType(f"t{v}", tuple(f"d{v}{n}" for n in range(counts[v])), sizes[v], tuple(row))
            for v, row in enumerate(times)
        ),
        "links": ((FAST,) * kinds,) * kinds,
        "entries": (FAST,) * kinds,
        "exits": (FAST,) * kinds,
        "input_bytes": 1000,
    }
    return Problem(**facts | changes)


_LINKS = st.builds(
    Link,
    bytes_per_s=st.sampled_from([1e6, 4e6, 2e7, 1e9]),
    latency_ms=st.sampled_from([0.0, 0.5, 3.0]),
)


@st.composite
def problems(
    draw: st.DrawFn, /, max_segments: int = 6, max_devices: int = 3, **fixed: Any
) -> Problem:
    """Small models on small fleets; memory is often short."""
    length = draw(st.integers(1, max_segments))
    devices = draw(st.integers(1, max_devices))
    kinds = draw(st.integers(1, devices))
    counts = [1] * kinds
    for _ in range(devices - kinds):
        counts[draw(st.integers(0, kinds - 1))] += 1
    segments = tuple(
        segment(
            n,
            weight_bytes=draw(st.integers(0, 40)) * MB,
            peak_bytes=draw(st.integers(0, 10)) * MB,
            out_bytes=draw(st.sampled_from([0, 1000, 50_000, 400_000])),
        )
        for n in range(length)
    )
    types = tuple(
        DeviceType(
            name=f"t{v}",
            devices=tuple(f"d{v}{n}" for n in range(counts[v])),
            memory_bytes=draw(st.integers(60, 500)) * MB,
            times_ms=tuple(draw(st.floats(0.1, 50)) for _ in range(length)),
            overhead_ms=draw(st.sampled_from([0.0, 0.3, 5.0])),
        )
        for v in range(kinds)
    )
    known_ms, known_bytes = {}, {}
    for _ in range(draw(st.integers(0, 2))):
        first = draw(st.integers(0, length - 1))
        stage = (first, draw(st.integers(first + 1, length)), draw(st.integers(0, kinds - 1)))
        known_ms[stage] = draw(st.floats(0.1, 60))
        known_bytes[stage] = draw(st.integers(1, 300)) * MB
    facts: dict[str, Any] = {
        "segments": segments,
        "types": types,
        "links": tuple(tuple(draw(_LINKS) for _ in types) for _ in types),
        "entries": tuple(draw(_LINKS) for _ in types),
        "exits": tuple(draw(_LINKS) for _ in types),
        "input_bytes": draw(st.sampled_from([0, 10_000, 300_000])),
        "objective": draw(st.sampled_from(Objective)),
        "replicate": draw(st.booleans()),
        "in_flight": draw(st.integers(1, 4)),
        "known_ms": known_ms,
        "known_bytes": known_bytes,
    }
    return Problem(**facts | fixed)
