"""How the API shows a device."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import BaseModel

from shoal_controlplane.devices.fallback import fell_back
from shoal_controlplane.devices.live import Device
from shoal_controlplane.events.log import timestamp
from shoal_shared.messages import ReplicaReport
from shoal_shared.placement import Proof
from shoal_shared.status import DeviceCondition, ReplicaState


class BoardView(BaseModel):
    """What the device is; `simulated` is true for a virtual board."""

    family: str
    model: str
    soc: str
    simulated: bool


class AcceleratorView(BaseModel):
    """`memory_bytes` is 0 where the accelerator shares the system's memory; `precisions` are what
    it computes in, `transfer_bytes_per_s` what it copies from the host's pinned memory."""

    kind: str
    name: str
    memory_bytes: int
    precisions: list[str]
    compute_capability: str
    transfer_bytes_per_s: float | None


class RuntimeView(BaseModel):
    name: str
    version: str
    formats: list[str]
    providers: list[str]


class TelemetryView(BaseModel):
    """The last telemetry: loads in fractions of one, memory in bytes, temperature in °C.

    `models` maps "model:version" to [answered, failed, queue depth].
    """

    seq: int
    uptime_s: float
    cpu_load: float
    memory_used_bytes: int
    disk_free_bytes: int
    temperature_c: float | None
    throttled: bool
    power_w: float | None
    accelerator_load: float | None
    accelerator_memory_used_bytes: int | None
    models: dict[str, tuple[int, int, int]]


class ProfileView(BaseModel):
    """Measured service time t(b) = intercept + slope * b; samples are (batch size, ms)."""

    samples: list[tuple[int, float]]
    intercept_ms: float
    slope_ms: float
    knee: int


class NodesView(BaseModel):
    """Where a model runs: the share of it on accelerators, how that was found out ("graph",
    "timing", or "listed" for not proven), and nodes by provider where the runtime tells."""

    accelerated: float
    proof: Proof
    nodes: dict[str, int]


class ReplicaView(BaseModel):
    """One model on the device, as it reported last.

    `variant` is the file that serves, `compiled` tells where the board's own code for it comes
    from, `golden_error` is the largest difference to the golden outputs. `fallback` says that it
    serves on the CPU although the device has an accelerator, and `notes` why.
    """

    deployment: str
    model: str
    version: str
    state: ReplicaState
    reason: str
    providers: list[str]
    memory_bytes: int
    profile: ProfileView | None
    variant: str
    runtime: str
    placement: NodesView | None
    golden_error: float | None
    compiled: str
    load_s: float
    notes: list[str]
    fallback: bool


class DeviceView(BaseModel):
    """One device. `goal` is the number of its goal state, `goal_seen` the one it acts on;
    fields that only the device knows are null or empty until it has spoken."""

    id: str
    condition: DeviceCondition
    board: BoardView | None
    cores: int | None
    memory_bytes: int | None
    disk_free_bytes: int | None
    accelerators: list[AcceleratorView]
    runtimes: list[RuntimeView]
    toolkits: dict[str, str]
    power_mode: str
    labels: dict[str, str]
    notes: list[str]
    agent_version: str | None
    cordoned: bool
    first_seen: str
    last_seen: str
    goal: int | None
    goal_seen: int | None
    telemetry: TelemetryView | None
    replicas: list[ReplicaView]
    revision: int


def device_view(device: Device, goal: int | None) -> DeviceView:
    """A device as the API shows it."""
    able = device.capabilities
    telemetry = device.telemetry
    facts: dict[str, Any] = {} if able is None else msgspec.to_builtins(able)
    disk = telemetry.disk_free_bytes if telemetry is not None else facts.get("disk_free_bytes")
    return DeviceView(
        id=device.id,
        condition=device.condition,
        board=facts.get("board"),
        cores=facts.get("cores"),
        memory_bytes=facts.get("memory_bytes"),
        disk_free_bytes=disk,
        accelerators=facts.get("accelerators", []),
        runtimes=facts.get("runtimes", []),
        toolkits=facts.get("toolkits", {}),
        power_mode=facts.get("power_mode", ""),
        labels=dict(device.labels),
        notes=facts.get("notes", []),
        agent_version=facts.get("agent_version"),
        cordoned=device.cordoned,
        first_seen=timestamp(device.first_seen),
        last_seen=timestamp(device.last_seen),
        goal=goal,
        goal_seen=device.reported.goal if device.reported is not None else None,
        telemetry=(
            TelemetryView.model_validate(msgspec.to_builtins(telemetry)) if telemetry else None
        ),
        replicas=[replica_view(device, report) for report in device.replicas],
        revision=device.revision,
    )


def replica_view(device: Device, report: ReplicaReport) -> ReplicaView:
    """A replica report as the API shows it."""
    facts = msgspec.to_builtins(report)
    return ReplicaView.model_validate(facts | {"fallback": fell_back(device, report)})
