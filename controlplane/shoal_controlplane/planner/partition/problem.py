"""What partitioning decides on, and what every way of deciding counts alike.

Units: milliseconds, bytes, bytes per second; all of one request. A stage is the segments
[first, last) of a model on one type of device. Receiving, computing and sending overlap, so the
rate of a pipeline is that of its slowest stage or link.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal_controlplane.planner.snapshot import memory_estimate

MEMORY_SHARE = 0.85
"""Of what a device has free; the rest is left to it."""


class Objective(str, enum.Enum):
    """What a plan is to be best in."""

    THROUGHPUT = "throughput"
    """Requests a second, many in flight: the slowest stage or link counts."""
    LATENCY = "latency"
    """Time of one request alone: everything on its way counts."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive nodes of a graph that are never split.

    `weight_bytes` are constants that it reads, `peak_bytes` the most activations alive at once
    while it runs, `out_bytes` all unique tensors that are alive at its end, whoever reads them
    later; `macs` multiply-accumulates, `moved_bytes` what it reads and writes. `name` is that of
    its last node.
    """

    name: str
    weight_bytes: int
    peak_bytes: int
    out_bytes: int
    macs: float
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class Link:
    """From one device to another through the broker."""

    bytes_per_s: float
    latency_ms: float = 0.0

    def transfer_ms(self, size: int) -> float:
        """How long the link is busy with `size` bytes."""
        return 1e3 * size / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class DeviceType:
    """Devices that are alike in all that a plan depends on.

    `memory_bytes` is free on each of `devices`; `times_ms` of the segments in their order, of
    which a stage is the sum plus `overhead_ms`, what any run costs besides.
    """

    name: str
    devices: tuple[str, ...]
    memory_bytes: int
    times_ms: tuple[float, ...]
    overhead_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Problem:
    """A model and a fleet.

    `links[u][v]` leads from a device of type u to one of type v (another one where u is v),
    `entries[u]` from the gateway to type u, `exits[u]` back. `known_ms` and `known_bytes` are
    measured stages by (first, last, type), which count instead of the sums. `in_flight` requests
    may be at one stage at once. `stages` None lets the planner choose, else it is the exact
    number wanted. `replicate` allows several devices to share a stage.
    """

    segments: tuple[Segment, ...]
    types: tuple[DeviceType, ...]
    links: tuple[tuple[Link, ...], ...]
    entries: tuple[Link, ...]
    exits: tuple[Link, ...]
    input_bytes: int
    objective: Objective = Objective.THROUGHPUT
    stages: int | None = None
    in_flight: int = 4
    replicate: bool = True
    known_ms: Mapping[tuple[int, int, int], float] = field(default_factory=dict)
    known_bytes: Mapping[tuple[int, int, int], int] = field(default_factory=dict)

    def in_bytes(self, first: int) -> int:
        """Bytes that a stage from segment `first` on receives with a request."""
        return self.segments[first - 1].out_bytes if first else self.input_bytes

    def out_bytes(self, last: int) -> int:
        """Bytes that a stage up to segment `last` sends."""
        return self.segments[last - 1].out_bytes

    def compute_ms(self, first: int, last: int, kind: int) -> float:
        """Time of a stage on one device of type `kind`."""
        known = self.known_ms.get((first, last, kind))
        if known is not None:
            return known
        device = self.types[kind]
        return device.overhead_ms + sum(device.times_ms[first:last])

    def memory_bytes(self, first: int, last: int, kind: int) -> int:
        """Memory that a stage takes: weights, live activations, and requests in flight."""
        inside = self.segments[first:last]
        waiting = self.in_flight * (self.in_bytes(first) + self.out_bytes(last))
        known = self.known_bytes.get((first, last, kind))
        if known is not None:
            return known + waiting
        weights = sum(segment.weight_bytes for segment in inside)
        peak = max(segment.peak_bytes for segment in inside)
        return memory_estimate(weights) + peak + waiting

    def fits(self, first: int, last: int, kind: int) -> bool:
        """Whether a device of type `kind` has the memory for a stage."""
        free = MEMORY_SHARE * self.types[kind].memory_bytes
        return self.memory_bytes(first, last, kind) <= free


@dataclass(frozen=True, slots=True)
class Stage:
    """Segments [first, last) on `devices`, all of type `kind`, which share its requests.

    `compute_ms` is that of one device, `receive_ms` and `send_ms` how long one device's links are
    busy with a request.
    """

    first: int
    last: int
    kind: int
    devices: tuple[str, ...]
    compute_ms: float
    receive_ms: float
    send_ms: float
    memory_bytes: int
    in_bytes: int
    out_bytes: int


@dataclass(frozen=True, slots=True)
class Partition:
    """A plan: its stages in order, the time between two answers under load (`bottleneck_ms`), and
    the time of one request alone (`latency_ms`).

    `bound_ms` is a lower bound of the objective over all plans; equal to it where the plan is
    proven best. `method` says how it was found: "exact" or "search".
    """

    stages: tuple[Stage, ...]
    bottleneck_ms: float
    latency_ms: float
    bound_ms: float
    method: str

    @property
    def rate(self) -> float:
        """Requests a second."""
        return 1e3 / self.bottleneck_ms if self.bottleneck_ms else math.inf


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the planner found. `best` is None where nothing fits: then `reason` says why in one
    sentence, and `missing_bytes` how much memory is missing. `single` is the best plan of one
    device, `others` runners-up, best first, for people who ask why."""

    best: Partition | None
    single: Partition | None = None
    others: tuple[Partition, ...] = ()
    reason: str = ""
    missing_bytes: int = 0
