"""What devices say, from MQTT into the live fleet. Devices are not trusted."""

from __future__ import annotations

import math
from collections import Counter
from typing import Protocol

import structlog

from shoal_controlplane.devices.live import LiveFleet
from shoal_shared.clock import Clock
from shoal_shared.messages import (
    Accelerator,
    Capabilities,
    Document,
    MessageError,
    ReplicaReport,
    Reported,
    Status,
    Telemetry,
    decode_document,
)
from shoal_shared.names import is_name
from shoal_shared.profiles import Profile
from shoal_shared.publish import Handler, Message
from shoal_shared.topics import DeviceTopic, Topics

log = structlog.get_logger("mqtt")

LOG_INTERVAL_S = 5.0
MAX_BOOT_ID = 64
MAX_TEXT = 128
MAX_NOTES = 64
MAX_NOTE = 2000
_MAX_INTEGER = 2**63 - 1

_KINDS: dict[DeviceTopic, type[Document]] = {
    DeviceTopic.STATUS: Status,
    DeviceTopic.CAPABILITIES: Capabilities,
    DeviceTopic.REPORTED: Reported,
    DeviceTopic.TELEMETRY: Telemetry,
}


class Subscriber(Protocol):
    """What ingress asks of the link."""

    def subscribe(self, topic_filter: str, qos: int, handler: Handler) -> None: ...


class Ingress:
    """Decodes and checks messages of all devices and hands them to the fleet.

    What cannot be used is counted in `rejected` by its kind of topic; one line at most every
    `LOG_INTERVAL_S` is logged, with the number of those that were not.
    """

    def __init__(self, link: Subscriber, topics: Topics, fleet: LiveFleet, clock: Clock) -> None:
        self._link = link
        self._topics = topics
        self._fleet = fleet
        self._clock = clock
        self._quiet_until = 0.0
        self._silenced = 0
        self.rejected: Counter[str] = Counter()

    def start(self) -> None:
        """Subscribe; the link remembers it over reconnects."""
        for topic in _KINDS:
            qos = 0 if topic is DeviceTopic.TELEMETRY else 1
            self._link.subscribe(self._topics.every_device(topic), qos, self.handle)

    def handle(self, message: Message) -> None:
        """Take in one message; nothing that it may hold raises."""
        parsed = self._topics.parse_device(message.topic)
        kind = _KINDS.get(parsed[1]) if parsed is not None else None
        if parsed is None or kind is None:
            self._reject("unknown", message.topic, "no device speaks on this topic")
            return
        device, topic = parsed
        if not message.payload:
            return  # A retained message was cleared.
        try:
            document = decode_document(kind, bytes(message.payload))
            check(document)
        except MessageError as error:
            self._reject(topic.value, message.topic, str(error))
            return
        if not self._fleet.observe(device, document, retained=message.retain):
            limit = self._fleet.max_devices
            self._reject(topic.value, message.topic, f"the fleet is full with {limit} devices")

    def _reject(self, kind: str, topic: str, reason: str) -> None:
        self.rejected[kind] += 1
        now = self._clock()
        if now < self._quiet_until:
            self._silenced += 1
            return
        log.warning(
            "message dropped", topic=topic[:200], reason=reason[:300], silenced=self._silenced
        )
        self._quiet_until = now + LOG_INTERVAL_S
        self._silenced = 0


def check(document: Document) -> None:
    """Refuse with `MessageError` what is well-formed but cannot be true."""
    match document:
        case Status():
            _check_boot(document.boot_id)
        case Capabilities():
            for what in (document.cores, document.memory_bytes, document.disk_free_bytes):
                _check_count(what)
            for text in (document.board.family, document.board.model):
                _check_text(text, "board")
            _check_text(document.power_mode, "power mode")
            for accelerator in document.accelerators:
                _check_accelerator(accelerator)
        case Reported():
            _check_boot(document.boot_id)
            _check_count(document.goal)
            for replica in document.models:
                for name in (replica.deployment, replica.model, replica.version):
                    if not is_name(name):
                        raise MessageError(f"a replica is named {name[:80]!r}")
                _check_replica(replica)
        case Telemetry():
            _check_boot(document.boot_id)
            for what in (document.seq, document.memory_used_bytes, document.disk_free_bytes):
                _check_count(what)
            if document.accelerator_memory_used_bytes is not None:
                _check_count(document.accelerator_memory_used_bytes)
            for counts in document.models.values():
                for what in counts:
                    _check_count(what)
        case _:
            raise MessageError(f"{type(document).__name__} is not what a device says")


def _check_boot(boot_id: str) -> None:
    if not 1 <= len(boot_id) <= MAX_BOOT_ID or not boot_id.isprintable():
        raise MessageError(f"boot_id must have 1 to {MAX_BOOT_ID} printable characters")


def _check_count(value: int) -> None:
    if not 0 <= value <= _MAX_INTEGER:
        raise MessageError("a count or size is negative or beyond 63 bits")


def _check_figure(value: float | None) -> None:
    if value is not None and not 0 <= value < math.inf:
        raise MessageError("a figure is negative or not a finite number")


def _check_text(text: str, what: str) -> None:
    if len(text) > MAX_TEXT or not text.isprintable():
        raise MessageError(f"the text of a {what} must have up to {MAX_TEXT} printable characters")


def _check_accelerator(accelerator: Accelerator) -> None:
    _check_count(accelerator.memory_bytes)
    _check_figure(accelerator.transfer_bytes_per_s)
    for text in (accelerator.kind, accelerator.compute_capability, *accelerator.precisions):
        _check_text(text, "accelerator")


def _check_replica(replica: ReplicaReport) -> None:
    _check_count(replica.memory_bytes)
    _check_figure(replica.golden_error)
    _check_figure(replica.load_s)
    for text in (replica.variant, replica.runtime, replica.compiled):
        _check_text(text, "replica")
    if len(replica.notes) > MAX_NOTES or any(len(note) > MAX_NOTE for note in replica.notes):
        raise MessageError(f"a replica has more than {MAX_NOTES} notes of {MAX_NOTE} characters")
    if replica.placement is not None:
        for count in replica.placement.nodes.values():
            _check_count(count)
    if replica.profile is not None:
        _check_profile(replica.profile)


def _check_profile(profile: Profile) -> None:
    fine = (
        1 <= profile.knee <= _MAX_INTEGER
        and profile.intercept_ms >= 0
        and profile.slope_ms >= 0
        and all(1 <= batch <= _MAX_INTEGER and ms >= 0 for batch, ms in profile.samples)
    )
    if not fine:
        raise MessageError("a profile needs positive batch sizes and times of 0 or more")
