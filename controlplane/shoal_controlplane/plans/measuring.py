"""Profiling jobs: devices load parts of a model for a moment to measure them.

A job is a goal like any other: the device fetches the part, checks it, measures its profile and
reports it, whereupon the goal is taken back. What it found is kept by the part's digest and the
type of board.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import structlog

from shoal_controlplane.deployments.measured import Measured
from shoal_controlplane.devices.live import Device, LiveFleet
from shoal_controlplane.planner.cuts.analysis import StageFile
from shoal_controlplane.planner.partition.problem import MEMORY_SHARE
from shoal_controlplane.planner.snapshot import ModelKey, memory_estimate
from shoal_controlplane.plans.plan import Part
from shoal_controlplane.plans.wiring import part_goal
from shoal_shared.messages import ModelGoal, ReplicaReport
from shoal_shared.status import ReplicaState

log = structlog.get_logger("plans")

AT_ONCE = 4
"""Parts that a device holds at once for being measured."""
PATIENCE_S = 60.0
"""For one such group; a device that takes longer is left out."""

_SETTLED = (ReplicaState.READY, ReplicaState.FAILED)

Ask = Callable[[str, tuple[ModelGoal, ...]], None]
"""Gives a device its job; an empty one takes it back."""


class Pulse:
    """Wakes whoever waits for a change of the fleet."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        """Something changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def next(self) -> None:
        """Wait for the next change."""
        await self._event.wait()


async def measure(
    fleet: LiveFleet,
    device: str,
    deployment: str,
    key: ModelKey,
    files: Sequence[StageFile],
    free_bytes: int,
    options: Mapping[str, Any],
    ask: Ask,
    pulse: Pulse,
    patience_s: float = PATIENCE_S,
) -> bool:
    """Have a device measure parts of a model, a few at a time; whether it measured all of them.

    `pulse` beats at every change of the fleet.
    """
    done = True
    try:
        for group in groups(files, free_bytes):
            goals = tuple(part_goal(deployment, key, as_part(file), options) for file in group)
            ask(device, goals)
            try:
                async with asyncio.timeout(patience_s):
                    while not _settled(fleet.get(device), goals):
                        await pulse.next()
            except TimeoutError:
                log.warning("measuring took too long", device=device, parts=len(goals))
                return False
            done = done and _all_ready(fleet.get(device), goals)
    finally:
        ask(device, ())
    return done


def groups(files: Sequence[StageFile], free_bytes: int) -> Iterator[list[StageFile]]:
    """Parts that a device can hold at once; those that it cannot hold at all are left out."""
    group: list[StageFile] = []
    room, used = MEMORY_SHARE * free_bytes, 0
    for file in files:
        need = memory_estimate(file.size)
        if need > room:
            continue
        if group and (len(group) >= AT_ONCE or used + need > room):
            yield group
            group, used = [], 0
        group.append(file)
        used += need
    if group:
        yield group


def as_part(file: StageFile, memory_bytes: int = 0) -> Part:
    """A file as a part of a plan."""
    return Part(
        first=file.first,
        last=file.last,
        digest=file.digest,
        size=file.size,
        shapes={tensor.name: tensor.shape for tensor in file.inputs},
        passes=file.passes,
        memory_bytes=memory_bytes,
    )


def measured_parts(device: Device, digests: Iterable[str]) -> Iterator[Measured]:
    """What a device has measured of parts; nothing while it throttles."""
    if not device.board or device.throttled:
        return
    known = set(digests)
    for report in device.live_replicas:
        if (
            report.digest in known
            and report.profile is not None
            and report.state is ReplicaState.READY
        ):
            yield Measured(
                digest=report.digest,
                board=device.board,
                runtime=report.runtime,
                profile=report.profile,
                memory_bytes=report.memory_bytes,
                accelerated=report.placement.accelerated if report.placement else None,
                updated_at=device.last_seen,
            )


def _reports(device: Device | None, goals: Sequence[ModelGoal]) -> list[ReplicaReport]:
    if device is None:
        return []
    wanted = {(goal.model, goal.version): goal.digest for goal in goals}
    return [
        report
        for report in device.live_replicas
        if wanted.get((report.model, report.version)) == report.digest
    ]


def _settled(device: Device | None, goals: Sequence[ModelGoal]) -> bool:
    """Whether there is nothing to wait for: all was measured or failed, or the device is gone."""
    if device is None or not device.online:
        return True
    settled = [r for r in _reports(device, goals) if r.state in _SETTLED]
    return len(settled) == len(goals)


def _all_ready(device: Device | None, goals: Sequence[ModelGoal]) -> bool:
    ready = [r for r in _reports(device, goals) if r.state is ReplicaState.READY]
    return len(ready) == len(goals)
