"""What changed about a device, in sentences for the event log."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal_controlplane.devices.fallback import fell_back, reason
from shoal_controlplane.devices.live import Device, LiveFleet
from shoal_controlplane.events.log import EventLog
from shoal_shared.messages import Capabilities
from shoal_shared.status import ReplicaState

Change = tuple[str, str, dict[str, Any]]
"""Kind, sentence, data of an event."""


def announce(fleet: LiveFleet, events: EventLog) -> None:
    """Append an event for every change of the fleet that users care about."""

    def listener(before: Device | None, after: Device | None) -> None:
        device = after or before
        if device is not None:
            for kind, message, data in changes(before, after):
                events.append(kind, device.id, message, data)

    fleet.listen(listener)


def changes(before: Device | None, after: Device | None) -> list[Change]:
    """Events that lead from one picture of a device to the next; telemetry is none."""
    if after is None:
        name = before.id if before is not None else ""
        return [("device.changed", f"{name} was removed.", {"change": "removed"})]
    found: list[Change] = []
    was_online = before is not None and before.online
    if after.online and not was_online:
        found.append(("device.online", f"{after.id} is online.", {"boot_id": after.boot_id}))
    if was_online and not after.online:
        found.append(("device.offline", f"{after.id} is offline.", {"boot_id": after.boot_id}))
    found += _device_changes(before, after)
    if (
        before is None
        or before.reported is not after.reported
        or before.capabilities is not after.capabilities
    ):
        found += _replica_changes(before, after)
    return found


def _device_changes(before: Device | None, after: Device) -> list[Change]:
    found: list[Change] = []
    old = before.capabilities if before is not None else None
    if (
        after.capabilities is not None
        and after.capabilities is not old
        and _without_disk(after.capabilities) != (_without_disk(old) if old else None)
    ):
        board = after.capabilities.board
        found.append(
            (
                "device.changed",
                f"{after.id} reports what it can do: {board.family} {board.model}.",
                {"change": "capabilities"},
            )
        )
    if before is None:
        return found
    if before.cordoned != after.cordoned:
        verb = "cordoned" if after.cordoned else "uncordoned"
        found.append(("device.changed", f"{after.id} was {verb}.", {"change": verb}))
    if before.operator_labels != after.operator_labels:
        found.append(
            ("device.changed", f"{after.id} got other labels.", {"change": "labels"}),
        )
    return found


def _without_disk(capabilities: Capabilities) -> Capabilities:
    return msgspec.structs.replace(capabilities, disk_free_bytes=0)


def _replica_changes(before: Device | None, after: Device) -> list[Change]:
    old = {(r.model, r.version): r for r in before.replicas} if before is not None else {}
    found: list[Change] = []
    for report in after.replicas:
        earlier = old.get((report.model, report.version))
        data = {
            "device": after.id,
            "deployment": report.deployment,
            "model": report.model,
            "version": report.version,
        }
        name = f"{report.model}:{report.version}"
        if earlier is None or report.state is not earlier.state:
            if report.state is ReplicaState.READY:
                found.append(("replica.ready", f"{name} is ready on {after.id}.", data))
            elif report.state is ReplicaState.FAILED:
                why = report.reason or "the device gave no reason"
                message = f"{name} failed on {after.id}: {why}"
                found.append(("replica.failed", message, data | {"reason": why}))
        was = before is not None and earlier is not None and fell_back(before, earlier)
        if fell_back(after, report) and not was:
            why = reason(after, report)
            message = f"{after.id} serves {name} on the CPU: {why}"
            found.append(("device.fallback", message, data | {"reason": why}))
    return found
