"""MQTT topics as typed values: `shoal/v1/{fleet}/…` is written and parsed only here."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from shoal_shared.names import checked_name, is_name

PREFIX = "shoal/v1"


class DeviceTopic(str, enum.Enum):
    """The last level of `…/devices/{device}/…`."""

    STATUS = "status"
    """Retained, also the last will: `Status`."""
    CAPABILITIES = "capabilities"
    """Retained: `Capabilities`."""
    DESIRED = "desired"
    """Retained, QoS 1, written by the control plane only: `Desired`."""
    REPORTED = "reported"
    """Retained, QoS 1: `Reported`."""
    TELEMETRY = "telemetry"
    """QoS 0: `Telemetry`."""
    INFER = "infer"
    """QoS 0 requests: an Open Inference Protocol request with binary tensors."""


@dataclass(frozen=True)
class Topics:
    """All topics of one fleet."""

    fleet: str

    def __post_init__(self) -> None:
        checked_name(self.fleet, "fleet")

    @property
    def root(self) -> str:
        return f"{PREFIX}/{self.fleet}"

    def device(self, device: str, topic: DeviceTopic) -> str:
        """Topic of one device; `device` must be a valid name."""
        return f"{self.root}/devices/{checked_name(device, 'device')}/{topic.value}"

    def every_device(self, topic: DeviceTopic) -> str:
        """Filter that matches `topic` of every device."""
        return f"{self.root}/devices/+/{topic.value}"

    def replies(self, gateway: str) -> str:
        """Topic on which devices answer one gateway."""
        return f"{self.root}/gateways/{checked_name(gateway, 'gateway')}/replies"

    def stage(self, plan: str, epoch: int, stage: int, replica: int = 0) -> str:
        """Topic of the requests and activations that a stage of a plan computes on."""
        last = f"{stage}.{replica}" if replica else str(stage)
        return f"{self.root}/plans/{checked_name(plan, 'plan')}/{epoch}/{last}"

    def parse_device(self, topic: str) -> tuple[str, DeviceTopic] | None:
        """The device and kind of a device topic of this fleet, else None."""
        head, sep, rest = topic.partition(f"{self.root}/devices/")
        if head or not sep:
            return None
        device, _, kind = rest.partition("/")
        try:
            known = DeviceTopic(kind)
        except ValueError:
            return None
        return (device, known) if is_name(device) else None

    def is_reply_topic(self, topic: str) -> bool:
        """Whether a device may answer on `topic`: a reply topic of a gateway of this fleet."""
        head, sep, rest = topic.partition(f"{self.root}/gateways/")
        gateway, _, last = rest.partition("/")
        return not head and bool(sep) and last == "replies" and is_name(gateway)
