"""Table of devices, and how a device is written to it and read from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
import structlog
from sqlalchemy import Column, Text
from sqlmodel import Field, Session, SQLModel, col, select

from shoal_controlplane.devices.live import Device
from shoal_shared.messages import Capabilities, Reported
from shoal_shared.status import Presence

log = structlog.get_logger("devices")

D = TypeVar("D", Capabilities, Reported)


class DeviceRow(SQLModel, table=True):
    """One device. Times are seconds since the epoch, documents and labels JSON."""

    __tablename__ = "device"

    id: str = Field(primary_key=True, max_length=64)
    first_seen: float
    last_seen: float
    presence: str = Field(max_length=16)
    boot_id: str = Field(max_length=64)
    capabilities: str | None = Field(default=None, sa_column=Column(Text))
    reported: str | None = Field(default=None, sa_column=Column(Text))
    labels: str = Field(default="{}", sa_column=Column(Text, nullable=False))
    cordoned: bool = False
    revision: int = 1


def load_devices(session: Session) -> list[Device]:
    """All devices. A document of an older release that no longer reads is left out."""
    return [_device(row) for row in session.exec(select(DeviceRow))]


def save_observed(session: Session, devices: Sequence[Device]) -> None:
    """Write what the devices said; what the operator set is left as it is."""
    ids = [device.id for device in devices]
    rows = {r.id: r for r in session.exec(select(DeviceRow).where(col(DeviceRow.id).in_(ids)))}
    for device in devices:
        row = rows.get(device.id) or _new_row(device)
        row.last_seen = device.last_seen
        row.presence = device.presence.value
        row.boot_id = device.boot_id
        row.capabilities = _encode(device.capabilities)
        row.reported = _encode(device.reported)
        session.add(row)


def save_edited(
    session: Session, device: Device, labels: Mapping[str, str], cordoned: bool, revision: int
) -> None:
    """Write what the operator set."""
    row = session.get(DeviceRow, device.id) or _new_row(device)
    row.labels = msgspec.json.encode(labels).decode()
    row.cordoned = cordoned
    row.revision = revision
    session.add(row)


def delete_device(session: Session, device_id: str) -> None:
    row = session.get(DeviceRow, device_id)
    if row is not None:
        session.delete(row)


def _new_row(device: Device) -> DeviceRow:
    return DeviceRow(
        id=device.id,
        first_seen=device.first_seen,
        last_seen=device.last_seen,
        presence=device.presence.value,
        boot_id=device.boot_id,
    )


def _encode(document: Capabilities | Reported | None) -> str | None:
    return None if document is None else msgspec.json.encode(document).decode()


def _device(row: DeviceRow) -> Device:
    return Device(
        id=row.id,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        since=0.0,
        presence=Presence(row.presence),
        boot_id=row.boot_id,
        capabilities=_decode(Capabilities, row.capabilities),
        reported=_decode(Reported, row.reported),
        operator_labels=msgspec.json.decode(row.labels, type=dict[str, str]),
        cordoned=row.cordoned,
        revision=row.revision,
    )


def _decode(kind: type[D], text: str | None) -> D | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        log.warning("stored document dropped", kind=kind.__name__, error=str(error))
        return None
