"""Placement: which devices shall serve which deployment. Pure and deterministic.

Placements that still hold stay. Missing ones are filled one by one: sites with the fewest
replicas of the deployment first, then the device with the shortest expected service, taken as
its time per item times the models that share it, then the one with the most free memory.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

from shoal_controlplane.planner.reasons import Counts, Lack, Shortage, explain
from shoal_controlplane.planner.snapshot import (
    DeploymentView,
    DeviceView,
    ModelKey,
    Placed,
    Snapshot,
    memory_estimate,
)


def place(snapshot: Snapshot) -> dict[str, Placed]:
    """The new assignment of every deployment in the snapshot.

    All of them first keep what they may, then each is filled up, the oldest first: so a missing
    replica never takes the room of one that runs.
    """
    fleet = _Fleet(snapshot)
    kept = {d.name: fleet.present(d) for d in snapshot.deployments}
    for runs in (True, False):
        for d in snapshot.deployments:
            kept[d.name] = [
                device
                for device in kept[d.name]
                if (d.key in device.held) is not runs or fleet.take_if_room(device, d, runs=runs)
            ]
    return {d.name: fleet.fill(d, kept[d.name]) for d in snapshot.deployments}


_Cost: TypeAlias = tuple[bool, float, int, str]
"""Whether the model failed there lately, expected ms per item, minus the free memory, device."""


@dataclass(slots=True)
class _Load:
    """What is assigned to one device so far."""

    models: set[ModelKey]
    memory_bytes: int = 0
    disk_bytes: int = 0
    goal_bytes: int = 0


class _Fleet:
    """The devices of a snapshot with what has been put on them so far."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._devices = snapshot.devices
        self._assignment = snapshot.assignment
        self._limits = snapshot.limits
        self._loads = {
            name: _Load(set(), goal_bytes=device.goal_bytes)
            for name, device in snapshot.devices.items()
        }

    def present(self, deployment: DeploymentView) -> list[DeviceView]:
        """Assigned devices that may stay, no more than wanted."""
        names = self._assignment.get(deployment.name, frozenset())
        devices = [self._devices[name] for name in sorted(names) if name in self._devices]
        valid = [device for device in devices if _admits(device, deployment)]
        if deployment.replicas is None or len(valid) <= deployment.replicas:
            return valid
        speed = _speed_of(deployment)

        def worth(device: DeviceView) -> tuple[Any, ...]:
            return (not self._serves(device, deployment), not device.online, speed(device))

        chosen: list[DeviceView] = []
        sites: Counter[str] = Counter()
        while len(chosen) < deployment.replicas:
            best = min(valid, key=lambda d: (*worth(d)[:2], sites[d.site], *worth(d)[2:], d.id))
            valid.remove(best)
            chosen.append(best)
            sites[best.site] += 1
        return chosen

    def fill(self, deployment: DeploymentView, kept: list[DeviceView]) -> Placed:
        """Add devices until enough serve. Where all places are taken, a device that is away or
        failed loses its own to one that can serve."""
        chosen = {device.id: device for device in kept}
        serving = {d.id for d in kept if self._serves(d, deployment)}
        if deployment.replicas is not None and len(serving) >= deployment.replicas:
            return Placed(frozenset(chosen), deployment.replicas)

        matching = [d for d in self._devices.values() if _admits(d, deployment)]
        candidates = {
            d.id: d
            for d in matching
            if d.online and d.id not in chosen and self._lack(d, deployment) is None
        }
        if deployment.replicas is None:
            for device in candidates.values():
                self.take(device, deployment)
            chosen |= candidates
            serving |= {d.id for d in candidates.values() if self._serves(d, deployment)}
            wanted = len({d.id for d in matching if d.online} | serving)
        else:
            wanted = deployment.replicas
            self._fill_to(wanted, deployment, chosen, serving, candidates)
        reason = ""
        if len(serving) < wanted or not wanted:
            reason = self._explain(deployment, chosen, wanted)
        return Placed(frozenset(chosen), wanted, reason)

    def _fill_to(
        self,
        wanted: int,
        deployment: DeploymentView,
        chosen: dict[str, DeviceView],
        serving: set[str],
        candidates: dict[str, DeviceView],
    ) -> None:
        idle = sorted(
            (d for d in chosen.values() if d.id not in serving), key=lambda d: (d.online, d.id)
        )
        sites = Counter(chosen[name].site for name in serving)
        # Taking one device does not change the cost of the others, so they are ranked once.
        ranked: dict[str, list[_Cost]] = {}
        speed = _speed_of(deployment)
        for device in candidates.values():
            ranked.setdefault(device.site, []).append(self._cost(device, deployment, speed(device)))
        for costs in ranked.values():
            heapq.heapify(costs)
        while ranked and len(serving) < wanted:
            site = min(ranked, key=lambda s: (ranked[s][0][0], sites[s], ranked[s][0]))
            failed, *_, name = heapq.heappop(ranked[site])
            if not ranked[site]:
                del ranked[site]
            if len(chosen) >= wanted:
                if failed:
                    return
                # Its room stays taken for this round: what is away may still hold the model.
                del chosen[idle.pop(0).id]
            best = candidates[name]
            self.take(best, deployment)
            chosen[name] = best
            sites[site] += 1
            if failed:
                idle.append(best)
            else:
                serving.add(name)

    def _cost(self, device: DeviceView, deployment: DeploymentView, speed_ms: float) -> _Cost:
        load = self._loads[device.id]
        sharing = 1 + len(load.models - {deployment.key})
        return (
            self._failed(device, deployment),
            speed_ms * sharing,
            load.memory_bytes - device.memory_bytes,
            device.id,
        )

    def take(self, device: DeviceView, deployment: DeploymentView) -> None:
        """Charge a device with a model, once however many deployments share it there."""
        load = self._loads[device.id]
        if deployment.key not in load.models:
            load.models.add(deployment.key)
            load.memory_bytes += _memory(device, deployment)
            load.disk_bytes += _disk(device, deployment)
            load.goal_bytes += deployment.goal_bytes

    def take_if_room(
        self, device: DeviceView, deployment: DeploymentView, *, runs: bool = False
    ) -> bool:
        """Charge a device if the model fits; one that `runs` there evidently fits."""
        if self._lack(device, deployment, runs=runs) is not None:
            return False
        self.take(device, deployment)
        return True

    def _serves(self, device: DeviceView, deployment: DeploymentView) -> bool:
        """Whether a place counts: the device is there, or may be back soon, and did not fail."""
        return device.offline_s <= self._limits.grace_s and not self._failed(device, deployment)

    def _failed(self, device: DeviceView, deployment: DeploymentView) -> bool:
        age = device.failed.get(deployment.key)
        return age is not None and age < self._limits.failure_memory_s

    def _lack(
        self, device: DeviceView, deployment: DeploymentView, *, runs: bool = False
    ) -> Lack | None:
        """What the device has too little of to take the model; None if it may have it."""
        load = self._loads[device.id]
        if deployment.key in load.models:
            return None
        if not runs:
            if _memory(device, deployment) > device.memory_bytes - load.memory_bytes:
                return Lack.MEMORY
            if _disk(device, deployment) > device.disk_bytes - load.disk_bytes:
                return Lack.DISK
        if deployment.goal_bytes > self._limits.goal_bytes - load.goal_bytes:
            return Lack.GOAL
        return None

    def _explain(self, deployment: DeploymentView, chosen: Iterable[str], wanted: int) -> str:
        chosen = set(chosen)
        selected = [d for d in self._devices.values() if _selects(deployment, d)]
        loading = [d for d in selected if deployment.formats & d.formats]
        able = [d for d in loading if d.accelerated or not deployment.require_accelerator]
        uncordoned = [d for d in able if not d.cordoned]
        online = [d for d in uncordoned if d.online]
        short: dict[Lack, Shortage] = {}
        for device in online:
            lack = None if device.id in chosen else self._lack(device, deployment)
            if lack is not None:
                shortage = self._shortage(device, deployment, lack)
                short[lack] = max(short.get(lack, shortage), shortage, key=lambda s: s.free)
        return explain(
            deployment,
            wanted,
            counts=Counts(len(selected), len(loading), len(able), len(uncordoned), len(online)),
            lacking=short,
            failed=sum(self._failed(device, deployment) for device in online),
        )

    def _shortage(self, device: DeviceView, deployment: DeploymentView, lack: Lack) -> Shortage:
        load = self._loads[device.id]
        if lack is Lack.MEMORY:
            free = device.memory_bytes - load.memory_bytes
            return Shortage(_memory(device, deployment), max(free, 0))
        if lack is Lack.DISK:
            return Shortage(_disk(device, deployment), max(device.disk_bytes - load.disk_bytes, 0))
        return Shortage(deployment.goal_bytes, 0)


def _admits(device: DeviceView, deployment: DeploymentView) -> bool:
    return (
        not device.cordoned
        and bool(deployment.formats & device.formats)
        and (device.accelerated or not deployment.require_accelerator)
        and _selects(deployment, device)
    )


def _selects(deployment: DeploymentView, device: DeviceView) -> bool:
    return all(device.labels.get(key) == value for key, value in deployment.select.items())


def _memory(device: DeviceView, deployment: DeploymentView) -> int:
    return (
        device.held.get(deployment.key)
        or deployment.memory_bytes.get(device.board)
        or memory_estimate(deployment.file_bytes)
    )


def _disk(device: DeviceView, deployment: DeploymentView) -> int:
    return 0 if deployment.key in device.held else deployment.disk_bytes


def _speed_of(deployment: DeploymentView) -> Callable[[DeviceView], float]:
    """Milliseconds per item on a device's board; where unknown, what is usual for the model."""
    known = deployment.speed_ms
    usual = median(known.values()) if known else 1.0
    return lambda device: known.get(device.board, usual)
