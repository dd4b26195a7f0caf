"""What operators may do with devices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from shoal_controlplane.api.conditional import check_if_match
from shoal_controlplane.database import Database
from shoal_controlplane.devices.live import Device, LiveFleet
from shoal_controlplane.devices.tables import delete_device, save_edited
from shoal_controlplane.devices.views import DeviceView, device_view
from shoal_controlplane.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from shoal_shared.names import NAME_RULE, is_name
from shoal_shared.status import DeviceCondition

MAX_LABELS = 64
MAX_LABEL_VALUE = 128


class Retained(Protocol):
    """Clears what the broker retains about a device."""

    @property
    def connected(self) -> bool: ...

    def forget(self, device: str) -> None: ...


class DeviceService:
    """Reads from the live fleet; changes go to the database first, then to the fleet."""

    def __init__(
        self,
        fleet: LiveFleet,
        database: Database,
        retained: Retained,
        goal_of: Callable[[str], int | None],
    ) -> None:
        self._fleet = fleet
        self._database = database
        self._retained = retained
        self._goal_of = goal_of
        self._editing = asyncio.Lock()

    def view(self, device_id: str) -> DeviceView:
        """One device. Raises `NotFoundError`."""
        return self._shown(self._find(device_id))

    def find(
        self,
        labels: Mapping[str, str],
        state: DeviceCondition | None,
        after: str | None,
        limit: int,
    ) -> list[DeviceView]:
        """Up to `limit` devices that have all `labels` and are in `state`, ids after `after`."""
        found: list[DeviceView] = []
        later = (d for d in self._fleet if after is None or d.id > after)
        for device in sorted(later, key=lambda d: d.id):
            own = device.labels
            if (state is None or device.condition is state) and all(
                own.get(key) == value for key, value in labels.items()
            ):
                found.append(self._shown(device))
                if len(found) == limit:
                    break
        return found

    async def edit(
        self,
        device_id: str,
        labels: Mapping[str, str | None] | None,
        cordoned: bool | None,
        if_match: str | None,
    ) -> DeviceView:
        """Merge `labels` into the operator's (None deletes one) and set `cordoned`.

        Raises `NotFoundError`, `PreconditionError`, `InvalidError`.
        """
        async with self._editing:
            device = self._find(device_id)
            check_if_match(if_match, device.revision)
            merged = _merge(device.operator_labels, labels or {})
            cordon = device.cordoned if cordoned is None else cordoned
            revision = device.revision + 1
            await self._database.run(
                lambda session: save_edited(session, device, merged, cordon, revision)
            )
            self._fleet.edit(device_id, merged, cordon, revision)
            return self.view(device_id)

    async def remove(self, device_id: str) -> None:
        """Forget a device that is offline. Raises `ConflictError` if it is not."""
        device = self._find(device_id)
        if device.online:
            raise ConflictError(
                f"Device {device_id} is online: stop its agent first, then remove it."
            )
        if not self._retained.connected:
            raise UnavailableError(
                "The broker cannot be reached to clear what it keeps of the device: try again."
            )
        self._fleet.remove(device_id)
        self._retained.forget(device_id)
        await self._database.run(lambda session: delete_device(session, device_id))

    def _find(self, device_id: str) -> Device:
        device = self._fleet.get(device_id)
        if device is None:
            raise NotFoundError(f"There is no device {device_id[:80]!r}.")
        return device

    def _shown(self, device: Device) -> DeviceView:
        return device_view(device, self._goal_of(device.id))


def _merge(present: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = dict(present)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
            continue
        if not is_name(key):
            raise InvalidError(f"Label {key[:80]!r} is not valid: use {NAME_RULE}.")
        if len(value) > MAX_LABEL_VALUE or not value.isprintable():
            raise InvalidError(
                f"The value of label {key!r} must have up to {MAX_LABEL_VALUE} printable "
                "characters."
            )
        merged[key] = value
    if len(merged) > MAX_LABELS:
        raise InvalidError(f"A device can have up to {MAX_LABELS} labels: delete some first.")
    return merged
