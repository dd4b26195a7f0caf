"""What takes over when a device of a plan goes: the same stages, computed ahead. Pure.

For each device of the plan another one takes its stage: a device that is in no stage yet if that
serves as well, else one that computes a stage already and then does both, one after the other.
All other devices keep theirs, so that little is to be loaded beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Partition, Problem
from shoal_controlplane.planner.partition.solve import evaluate

MAX_FALLBACKS = 8
"""Of one plan: each of them adds a role to the goals of all its devices."""


@dataclass(slots=True)
class _Held:
    """Stages that devices hold, in the plan or for others, and what they take of its memory."""

    stages: dict[str, set[int]] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)

    def add(self, device: str, stage: int, memory_bytes: int) -> None:
        held = self.stages.setdefault(device, set())
        if stage not in held:
            held.add(stage)
            self.used[device] = self.used.get(device, 0) + memory_bytes

    def has(self, device: str, stage: int) -> bool:
        return stage in self.stages.get(device, ())


def fallbacks(problem: Problem, partition: Partition) -> dict[str, Partition]:
    """By the device lost, what takes over; devices without a way are left out.

    Memory is counted over all of them: a device that stands in for several others holds the
    stages of each.
    """
    held = _Held()
    for index, stage in enumerate(partition.stages):
        for device in stage.devices:
            held.add(device, index, stage.memory_bytes)
    found: dict[str, Partition] = {}
    for lost in list(held.stages):
        if len(found) == MAX_FALLBACKS:
            break
        way: Partition | None = partition
        for index, stage in enumerate(partition.stages):
            if way is not None and lost in stage.devices:
                way = _without(problem, way, lost, index, held)
        if way is not None:
            found[lost] = way
    return found


def _without(
    problem: Problem, partition: Partition, lost: str, index: int, held: _Held
) -> Partition | None:
    """The plan without a device of the stage `index`; what it needs is added to `held`."""
    stage = partition.stages[index]
    left = tuple(device for device in stage.devices if device != lost)
    if left:
        return _instead(problem, partition, index, stage.kind, left)
    ways = [
        (way.bottleneck_ms, held.used.get(device, 0), device, kind, way)
        for device, kind in _able(problem, lost, index, stage.first, stage.last, held)
        for way in [_instead(problem, partition, index, kind, (device,))]
    ]
    if not ways:
        return None
    # Of equal ones the device that holds least.
    _, _, device, kind, way = min(ways, key=lambda w: (round(w[0], 6), w[1], w[2]))
    held.add(device, index, problem.memory_bytes(stage.first, stage.last, kind))
    return way


def _able(
    problem: Problem, lost: str, index: int, first: int, last: int, held: _Held
) -> Iterator[tuple[str, int]]:
    """Devices that hold a stage, or have the memory for it, with their types."""
    for kind, alike in enumerate(problem.types):
        need = problem.memory_bytes(first, last, kind)
        for device in alike.devices:
            room = MEMORY_SHARE * alike.memory_bytes - held.used.get(device, 0)
            if device != lost and (held.has(device, index) or need <= room):
                yield device, kind


def _instead(
    problem: Problem, partition: Partition, index: int, kind: int, devices: tuple[str, ...]
) -> Partition:
    stages = [(s.first, s.last, s.kind, s.devices) for s in partition.stages]
    first, last, _, _ = stages[index]
    stages[index] = (first, last, kind, devices)
    return evaluate(problem, stages)
