"""What takes over when a device of a plan goes: the same stages, computed ahead. Pure.

For each device of the plan another one takes its stages: a device that is in no stage yet if one
has the memory, else one that computes a stage already and then does both, one after the other.
The stages themselves stay, so that all that is needed is loaded beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Partition, Problem

MAX_FALLBACKS = 8
"""Of one plan: each of them adds a role to the goals of all its devices."""


@dataclass(frozen=True, slots=True)
class Detour:
    """The devices of each stage once one is lost, and the figures that are expected then."""

    devices: tuple[tuple[str, ...], ...]
    stage_ms: tuple[float, ...]
    bottleneck_ms: float
    latency_ms: float


def fallbacks(problem: Problem, partition: Partition) -> dict[str, Detour]:
    """By the device lost, what takes over; devices without a way are left out.

    Memory is counted over all detours: a device that stands in for several others holds all of
    their stages.
    """
    free = {
        device: MEMORY_SHARE * kind.memory_bytes
        for kind in problem.types
        for device in kind.devices
    }
    kinds = {device: i for i, kind in enumerate(problem.types) for device in kind.devices}
    held: dict[str, set[int]] = {device: set() for device in kinds}
    used = dict.fromkeys(kinds, 0)
    for index, stage in enumerate(partition.stages):
        for device in stage.devices:
            held[device].add(index)
            used[device] += stage.memory_bytes
    found: dict[str, Detour] = {}
    for index, stage in enumerate(partition.stages):
        for lost in stage.devices:
            if len(found) >= MAX_FALLBACKS:
                return found
            detour = _without(problem, partition, lost, index, kinds, free, held, used)
            if detour is not None:
                found[lost] = detour
    return found


def _without(
    problem: Problem,
    partition: Partition,
    lost: str,
    index: int,
    kinds: Mapping[str, int],
    free: Mapping[str, float],
    held: dict[str, set[int]],
    used: dict[str, int],
) -> Detour | None:
    stage = partition.stages[index]
    if len(stage.devices) > 1:
        left = tuple(device for device in stage.devices if device != lost)
        return _priced(problem, partition, {**_devices(partition), index: left}, kinds)
    best: tuple[float, float, str] | None = None
    chosen: Detour | None = None
    for device, kind in kinds.items():
        if device == lost:
            continue
        need = 0
        if index not in held[device]:
            need = problem.memory_bytes(stage.first, stage.last, kind)
        if used[device] + need > free[device]:
            continue
        devices = {**_devices(partition), index: (device,)}
        detour = _priced(problem, partition, devices, kinds)
        # Of equal ones the device that holds least.
        rank = (round(detour.bottleneck_ms, 6), float(used[device]), device)
        if best is None or rank < best:
            best, chosen = rank, detour
    if best is not None and chosen is not None and index not in held[best[2]]:
        held[best[2]].add(index)
        used[best[2]] += problem.memory_bytes(stage.first, stage.last, kinds[best[2]])
    return chosen


def _devices(partition: Partition) -> dict[int, tuple[str, ...]]:
    return {index: stage.devices for index, stage in enumerate(partition.stages)}


def _priced(
    problem: Problem,
    partition: Partition,
    devices: Mapping[int, Sequence[str]],
    kinds: Mapping[str, int],
) -> Detour:
    """Figures of an assignment in which a device may compute several stages."""
    busy: dict[str, float] = {}
    stage_ms: list[float] = []
    slowest = latency = 0.0
    before: Sequence[str] = ()
    for index, stage in enumerate(partition.stages):
        here = devices[index]
        times = [problem.compute_ms(stage.first, stage.last, kinds[d]) for d in here]
        stage_ms.append(max(times))
        for device, ms in zip(here, times, strict=True):
            busy[device] = busy.get(device, 0.0) + ms / len(here)
        size = problem.in_bytes(stage.first)
        links = (
            [problem.links[kinds[a]][kinds[b]] for a in before for b in here]
            if before
            else [problem.entries[kinds[d]] for d in here]
        )
        slowest = max([slowest, *(link.transfer_ms(size) / len(links) for link in links)])
        latency += max(times) + max(link.transfer_ms(size) + link.latency_ms for link in links)
        before = here
    exits = [problem.exits[kinds[d]] for d in before]
    size = problem.out_bytes(partition.stages[-1].last)
    slowest = max([slowest, *(link.transfer_ms(size) / len(exits) for link in exits)])
    latency += max(link.transfer_ms(size) + link.latency_ms for link in exits)
    return Detour(
        devices=tuple(tuple(devices[i]) for i in range(len(partition.stages))),
        stage_ms=tuple(stage_ms),
        bottleneck_ms=max([slowest, *busy.values()]),
        latency_ms=latency,
    )
