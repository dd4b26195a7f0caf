"""What changed about a device, in sentences for the event log."""

from __future__ import annotations

from typing import Any

import msgspec

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
    if before is None or before.reported is not after.reported:
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
    old = {(r.model, r.version): r.state for r in before.replicas} if before is not None else {}
    found: list[Change] = []
    for report in after.replicas:
        if report.state is old.get((report.model, report.version)):
            continue
        data = {
            "device": after.id,
            "deployment": report.deployment,
            "model": report.model,
            "version": report.version,
        }
        name = f"{report.model}:{report.version}"
        if report.state is ReplicaState.READY:
            found.append(("replica.ready", f"{name} is ready on {after.id}.", data))
        elif report.state is ReplicaState.FAILED:
            reason = report.reason or "the device gave no reason"
            data["reason"] = reason
            found.append(("replica.failed", f"{name} failed on {after.id}: {reason}", data))
    return found
