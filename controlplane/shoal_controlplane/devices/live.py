"""The fleet as it is now, in memory. Messages of devices go in, listeners hear what changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from shoal_shared.clock import Clock
from shoal_shared.messages import (
    Capabilities,
    Document,
    ReplicaReport,
    Reported,
    Status,
    Telemetry,
)
from shoal_shared.status import DeviceCondition, Presence

SETTLE_S = 2.0
"""A last will may overtake telemetry that was sent before it, but not by this much."""
CONFIRM_S = 15.0
"""Time for devices to speak after the broker came back, before they count as offline."""

_NO_LABELS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `first_seen` and `last_seen` are seconds since the epoch.

    `since` is the clock reading of the last change of presence. `operator_labels`, `cordoned`
    and `revision` are the operator's, all else is what the device said. `slowed` holds while the
    board throttles and none of its models has been measured since it began to.
    """

    id: str
    first_seen: float
    last_seen: float
    since: float
    presence: Presence = Presence.OFFLINE
    boot_id: str = ""
    capabilities: Capabilities | None = None
    reported: Reported | None = None
    telemetry: Telemetry | None = None
    slowed: bool = False
    operator_labels: Mapping[str, str] = field(default_factory=dict)
    cordoned: bool = False
    revision: int = 1

    @property
    def online(self) -> bool:
        return self.presence is Presence.ONLINE

    @property
    def board(self) -> str:
        """Type of board as "family/model"; empty until the device has spoken."""
        able = self.capabilities
        return f"{able.board.family}/{able.board.model}" if able is not None else ""

    @property
    def throttled(self) -> bool:
        return self.telemetry is not None and self.telemetry.throttled

    @property
    def condition(self) -> DeviceCondition:
        if not self.online:
            return DeviceCondition.OFFLINE
        return DeviceCondition.CORDONED if self.cordoned else DeviceCondition.ONLINE

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels of device and operator; the operator's win."""
        own = self.capabilities.labels if self.capabilities is not None else _NO_LABELS
        return {**own, **self.operator_labels} if self.operator_labels else own

    @property
    def replicas(self) -> tuple[ReplicaReport, ...]:
        """What the device reported last, maybe before it went away."""
        return self.reported.models if self.reported is not None else ()

    @property
    def goal_seen(self) -> int:
        """Number of the goal that the device last reported on."""
        return self.reported.goal if self.reported is not None else 0

    @property
    def live_replicas(self) -> tuple[ReplicaReport, ...]:
        """What the device runs now: nothing while it is offline or has only just booted."""
        if not self.online or self.reported is None or self.reported.boot_id != self.boot_id:
            return ()
        return self.reported.models


Listener = Callable[[Device | None, Device | None], None]
"""Called with a device before and after a change; None where it did not or does not exist."""


def with_status(device: Device, status: Status, now: float) -> Device:
    """Presence as the device or its last will says it; a late will of an earlier boot is void."""
    if status.state is Presence.OFFLINE and device.boot_id not in ("", status.boot_id):
        return device
    return _present(device, status.state, status.boot_id, now)


def with_capabilities(device: Device, capabilities: Capabilities, now: float) -> Device:
    """What the device can do."""
    del now
    return (
        device
        if capabilities == device.capabilities
        else replace(device, capabilities=capabilities)
    )


def with_reported(device: Device, reported: Reported, now: float) -> Device:
    """What the device runs; a report on an older goal from the same boot is a replay."""
    del now
    known = device.reported
    if known is not None and (
        reported == known or (reported.boot_id == known.boot_id and reported.goal < known.goal)
    ):
        return device
    profiles = {(r.model, r.version): r.profile for r in device.replicas}
    measured = any(
        r.profile is not None and r.profile != profiles.get((r.model, r.version))
        for r in reported.models
    )
    return replace(device, reported=reported, slowed=device.slowed and not measured)


def with_telemetry(device: Device, telemetry: Telemetry, now: float) -> Device:
    """Load. Late and replayed telemetry is dropped; telemetry well after a goodbye is life.

    The latter matters after a restart of the control plane, and where the last will of an
    earlier session is what the broker retained.
    """
    same_boot = telemetry.boot_id == device.boot_id
    last = device.telemetry
    if same_boot and last is not None and telemetry.seq <= last.seq:
        return device
    if not device.online and now - device.since > SETTLE_S:
        device = _present(device, Presence.ONLINE, telemetry.boot_id, now)
    elif not same_boot:
        return device
    slowed = telemetry.throttled and (device.slowed or not device.throttled)
    return replace(device, telemetry=telemetry, slowed=slowed)


def _present(device: Device, presence: Presence, boot_id: str, now: float) -> Device:
    if presence is device.presence and boot_id == device.boot_id:
        return device
    return replace(
        device,
        presence=presence,
        boot_id=boot_id,
        since=now if presence is not device.presence else device.since,
        telemetry=device.telemetry if boot_id == device.boot_id else None,
        slowed=device.slowed and boot_id == device.boot_id,
    )


class LiveFleet:
    """All devices by id, owned by the event loop.

    Whoever speaks over MQTT becomes a device, up to `max_devices`.
    """

    def __init__(
        self, clock: Clock, wall: Callable[[], float], *, max_devices: int = 20_000
    ) -> None:
        self._clock = clock
        self._wall = wall
        self.max_devices = max_devices
        self._devices: dict[str, Device] = {}
        self._listeners: list[Listener] = []
        self._unsaved: set[str] = set()
        self._unheard: set[str] = set()
        self._heard_by = 0.0

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(self._devices.values())

    def get(self, device_id: str) -> Device | None:
        return self._devices.get(device_id)

    def conditions(self) -> dict[str, int]:
        """Number of devices by condition."""
        counts = {condition.value: 0 for condition in DeviceCondition}
        for device in self:
            counts[device.condition.value] += 1
        return counts

    def listen(self, listener: Listener) -> None:
        """Call `listener` after every change, in order of registration."""
        self._listeners.append(listener)

    def load(self, devices: Iterable[Device]) -> None:
        """Start with what the database holds; all are offline until they are heard."""
        now = self._clock()
        for device in devices:
            self._devices[device.id] = replace(device, presence=Presence.OFFLINE, since=now)

    def observe(self, device_id: str, document: Document, *, retained: bool = False) -> bool:
        """Take in a message of a device; False if the fleet is full and the device unknown.

        A `retained` message is not a sign of life, as the broker may have kept it for days; a
        retained `online` is one, for the broker would have put the last will in its place.
        """
        now, wall = self._clock(), self._wall()
        before = self._devices.get(device_id)
        if before is None:
            if len(self._devices) >= self.max_devices:
                return False
            device = Device(device_id, first_seen=wall, last_seen=wall, since=now)
        else:
            device = before
        match document:
            case Status():
                device = with_status(device, document, now)
            case Capabilities():
                device = with_capabilities(device, document, now)
            case Reported():
                device = with_reported(device, document, now)
            case Telemetry():
                device = with_telemetry(device, document, now)
            case _:
                raise TypeError(f"{type(document).__name__} is not a message of a device")
        if not retained:
            device = replace(device, last_seen=wall)
        says_online = isinstance(document, Status) and document.state is Presence.ONLINE
        if says_online or not retained:
            self._unheard.discard(device_id)
        self._put(before, device)
        return True

    def edit(
        self, device_id: str, labels: Mapping[str, str], cordoned: bool, revision: int
    ) -> None:
        """Apply what the operator changed, unless the device is gone meanwhile."""
        before = self._devices.get(device_id)
        if before is not None:
            self._put(
                before,
                replace(before, operator_labels=labels, cordoned=cordoned, revision=revision),
            )

    def remove(self, device_id: str) -> None:
        before = self._devices.pop(device_id, None)
        self._unsaved.discard(device_id)
        self._unheard.discard(device_id)
        if before is not None:
            self._tell(before, None)

    def expect_all(self) -> None:
        """The broker came back: devices that went meanwhile left no last will."""
        self._unheard = {device.id for device in self if device.online}
        self._heard_by = self._clock() + CONFIRM_S

    def sweep(self) -> None:
        """Count those as offline that stayed silent since `expect_all`. Call once a second."""
        now = self._clock()
        if not self._unheard or now < self._heard_by:
            return
        for device_id in sorted(self._unheard):
            device = self._devices[device_id]
            self._put(device, _present(device, Presence.OFFLINE, device.boot_id, now))
        self._unheard.clear()

    def take_unsaved(self, limit: int) -> list[Device]:
        """Up to `limit` devices that changed in more than telemetry since they were taken."""
        taken = sorted(self._unsaved)[:limit]
        self._unsaved.difference_update(taken)
        return [self._devices[device_id] for device_id in taken]

    def put_back(self, devices: Iterable[Device]) -> None:
        """Saving failed: they are unsaved again."""
        self._unsaved.update(device.id for device in devices if device.id in self._devices)

    def _put(self, before: Device | None, after: Device) -> None:
        if after is before:
            return
        self._devices[after.id] = after
        if before is None or _stored(before) != _stored(after):
            self._unsaved.add(after.id)
        self._tell(before, after)

    def _tell(self, before: Device | None, after: Device | None) -> None:
        for listener in self._listeners:
            listener(before, after)


def _stored(device: Device) -> tuple[object, ...]:
    """By identity: what is worth a write. Telemetry and `last_seen` ride along."""
    return (device.presence, device.boot_id, id(device.capabilities), id(device.reported))
