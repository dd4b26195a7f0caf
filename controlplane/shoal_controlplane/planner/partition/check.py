"""Whether a problem makes sense, before anything is computed from it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from shoal_controlplane.planner.partition.problem import Link, Problem

_MOST_BYTES = 1 << 48
_MOST_IN_FLIGHT = 1 << 12
"""With both, sums of all sizes still are 64-bit integers."""


def check(problem: Problem) -> None:
    """Raises `ValueError` with one sentence on the first thing that makes no sense."""
    _segments(problem)
    _types(problem)
    kinds = len(problem.types)
    if [len(row) for row in problem.links] != [kinds] * kinds:
        raise ValueError("a link is needed from every type of device to every type")
    if len(problem.entries) != kinds or len(problem.exits) != kinds:
        raise ValueError("a link is needed between the gateway and every type of device, both ways")
    _links((link for row in problem.links for link in row), "between devices")
    _links((*problem.entries, *problem.exits), "to or from the gateway")
    if not 0 <= problem.input_bytes <= _MOST_BYTES:
        raise ValueError("the size of a request cannot be")
    if not 1 <= problem.in_flight <= _MOST_IN_FLIGHT:
        raise ValueError(f"1 to {_MOST_IN_FLIGHT} requests have to be in flight")
    if problem.stages is not None and problem.stages < 1:
        raise ValueError("a plan has at least one stage")
    _known(problem)


def _segments(problem: Problem) -> None:
    if not problem.segments:
        raise ValueError("the model has no segments")
    for segment in problem.segments:
        sizes = (segment.weight_bytes, segment.peak_bytes, segment.out_bytes, segment.moved_bytes)
        if min(sizes) < 0 or max(sizes) > _MOST_BYTES or not _is_amount(segment.macs):
            raise ValueError(f"segment {segment.name!r} has a size that cannot be")


def _types(problem: Problem) -> None:
    seen: set[str] = set()
    for kind in problem.types:
        if not kind.devices:
            raise ValueError(f"there is no device of type {kind.name!r}")
        for device in kind.devices:
            if device in seen:
                raise ValueError(f"device {device!r} is given twice")
            seen.add(device)
        if len(kind.times_ms) != len(problem.segments):
            raise ValueError(f"type {kind.name!r} needs a time for each segment")
        if not all(map(_is_amount, (*kind.times_ms, kind.overhead_ms))):
            raise ValueError(f"type {kind.name!r} has a time that is negative or no number")
        if kind.overhead_ms + sum(kind.times_ms) <= 0:
            raise ValueError(f"type {kind.name!r} would compute the whole model in no time")
        if kind.memory_bytes < 0:
            raise ValueError(f"type {kind.name!r} has negative memory")


def _links(links: Iterable[Link], where: str) -> None:
    for link in links:
        # Infinite bandwidth is a link that costs nothing.
        if not link.bytes_per_s > 0 or not _is_amount(link.latency_ms):
            raise ValueError(f"a link {where} has a bandwidth or latency that cannot be")


def _known(problem: Problem) -> None:
    for first, last, kind in (*problem.known_ms, *problem.known_bytes):
        inside = 0 <= first < last <= len(problem.segments) and 0 <= kind < len(problem.types)
        if not inside:
            raise ValueError(f"measured stage ({first}, {last}, {kind}) does not exist")
    if not all(ms > 0 and math.isfinite(ms) for ms in problem.known_ms.values()):
        raise ValueError("a measured time is not positive")
    if not all(0 <= size <= _MOST_BYTES for size in problem.known_bytes.values()):
        raise ValueError("a measured size cannot be")


def _is_amount(value: float) -> bool:
    return math.isfinite(value) and value >= 0
