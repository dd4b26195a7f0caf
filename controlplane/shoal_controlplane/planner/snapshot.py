"""What placement decides on: a frozen picture of devices and deployments, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

ModelKey: TypeAlias = tuple[str, str]
"""Model and version."""

SITE = "site"
"""Label over whose values replicas are spread."""

BASE_MEMORY_BYTES = 32 * 1024 * 1024
MEMORY_PER_FILE_BYTE = 2


def memory_estimate(file_bytes: int) -> int:
    """Memory that a model is thought to need until a device has measured it, in bytes."""
    return MEMORY_PER_FILE_BYTE * file_bytes + BASE_MEMORY_BYTES


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device.

    `offline_s` is 0 where the device is online. `memory_bytes` is what all models of the fleet
    may use together, `disk_bytes` what is free for models that the device does not hold yet;
    `held` gives the models that it reports as loaded and the memory that each takes (0 where it
    was not measured). `failed` gives the age in seconds of the last failure per model.
    `accelerated` says that one of its runtimes lists a provider other than the CPU. `goal_bytes`
    of its goal document are taken by plans.
    """

    id: str
    memory_bytes: int
    disk_bytes: int
    formats: frozenset[str]
    accelerated: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    board: str = ""
    offline_s: float = 0.0
    cordoned: bool = False
    held: Mapping[ModelKey, int] = field(default_factory=dict)
    failed: Mapping[ModelKey, float] = field(default_factory=dict)
    goal_bytes: int = 0

    @property
    def online(self) -> bool:
        return self.offline_s <= 0

    @property
    def site(self) -> str:
        return self.labels.get(SITE, "")


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One deployment. `replicas` None means every device that fits.

    `formats` are those of its files, any of which will do; `file_bytes` is the size of the
    reference, `disk_bytes` that of all files, `goal_bytes` what the model takes in a device's goal
    document. `speed_ms` and `memory_bytes` give ms per item and memory by board, as far as they
    were measured.
    """

    name: str
    key: ModelKey
    formats: frozenset[str]
    file_bytes: int
    disk_bytes: int
    goal_bytes: int
    replicas: int | None = 1
    select: Mapping[str, str] = field(default_factory=dict)
    require_accelerator: bool = False
    speed_ms: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """`grace_s`: a device may be away for this long before others take its replicas.
    `failure_memory_s`: how long a device where a model failed is avoided. `goal_bytes`: room
    for models in a device's goal document."""

    grace_s: float = 5.0
    failure_memory_s: float = 600.0
    goal_bytes: int = 8000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment. Deployments are placed in their order, oldest first."""

    devices: Mapping[str, DeviceView]
    deployments: tuple[DeploymentView, ...]
    assignment: Mapping[str, frozenset[str]]
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Placed:
    """Devices of one deployment. `wanted` is the number of replicas asked for; `reason` says
    why fewer can serve now, empty where enough can."""

    devices: frozenset[str]
    wanted: int
    reason: str = ""
