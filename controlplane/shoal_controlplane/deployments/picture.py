"""Pictures of the live fleet: one for the planner, one for the gateway. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from shoal_controlplane.deployments.goals import goal_size, model_goal
from shoal_controlplane.deployments.store import Deployment
from shoal_controlplane.devices.live import Device
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.snapshot import (
    DeploymentView,
    DeviceView,
    Limits,
    ModelKey,
    Snapshot,
)
from shoal_shared.profiles import Profile
from shoal_shared.status import DeviceCondition, ReplicaState

Failures = Mapping[tuple[str, ModelKey], float]
"""Clock reading of the last failure per device and model."""

UNMEASURED = Profile(samples=(), intercept_ms=0.0, slope_ms=10.0, knee=1)
"""For a replica that could not be measured: a guess that the router corrects with the first
answers."""

_RUNNING = (ReplicaState.LOADING, ReplicaState.PROFILING, ReplicaState.READY)
_COMING = (ReplicaState.QUEUED, ReplicaState.FETCHING)


def snapshot(
    devices: Iterable[Device],
    deployments: Iterable[Deployment],
    assignment: Mapping[str, frozenset[str]],
    models: Mapping[ModelKey, ModelVersion],
    failures: Failures,
    now: float,
    limits: Limits,
) -> Snapshot:
    """What the planner decides on. Deployments whose model is gone are left out."""
    fleet = list(devices)
    placeable = [d for d in deployments if d.key in models]
    failed: dict[str, dict[ModelKey, float]] = {}
    for (device, key), at in failures.items():
        failed.setdefault(device, {})[key] = now - at
    speeds = _speeds(fleet)
    # Where deployments of one model version meet, any of them may give the goal.
    sizes: dict[ModelKey, int] = {}
    for d in placeable:
        size = goal_size(model_goal(d, models[d.key]))
        sizes[d.key] = max(size, sizes.get(d.key, 0))
    return Snapshot(
        devices={d.id: _device_view(d, models, failed.get(d.id, {}), now) for d in fleet},
        deployments=tuple(
            DeploymentView(
                name=d.name,
                key=d.key,
                format=models[d.key].format,
                file_bytes=models[d.key].size,
                goal_bytes=sizes[d.key],
                replicas=d.replicas,
                select=d.select,
                speed_ms=speeds.get(d.key, {}),
            )
            for d in placeable
        ),
        assignment=assignment,
        limits=limits,
    )


def served_models(
    devices: Iterable[Device],
    deployments: Iterable[Deployment],
    models: Mapping[ModelKey, ModelVersion],
    asked: Mapping[tuple[str, ModelKey], int],
) -> list[ServedModel]:
    """What the gateway serves: models of deployments, and versions of them that were replaced
    but still run, with the devices that are online, open and ready with the right artifact.

    `asked` holds the number of the goal with which a device was last asked for a model: what it
    reported before that may be about to be unloaded.
    """
    deployed = {d.key for d in deployments}
    names = {model for model, _ in deployed}
    replicas: dict[ModelKey, list[Replica]] = {}
    for device in devices:
        if device.condition is not DeviceCondition.ONLINE:
            continue
        for report in device.live_replicas:
            key = (report.model, report.version)
            model = models.get(key)
            if (
                report.state is ReplicaState.READY
                and report.model in names
                and model is not None
                and report.digest == model.digest
                and device.goal_seen >= asked.get((device.id, key), 0)
            ):
                replica = Replica(device.id, report.profile or UNMEASURED)
                replicas.setdefault(key, []).append(replica)
    return [
        ServedModel(
            name=model.name,
            version=model.version,
            platform=model.platform,
            signature=model.signature,
            max_batch=model.max_batch,
            replicas=tuple(sorted(replicas.get(key, ()), key=lambda r: r.device)),
            labels=model.labels,
        )
        for key, model in sorted(models.items())
        if key in deployed or key in replicas
    ]


def _device_view(
    device: Device,
    models: Mapping[ModelKey, ModelVersion],
    failed: Mapping[ModelKey, float],
    now: float,
) -> DeviceView:
    able, load = device.capabilities, device.telemetry
    if able is None:
        # It has not said what it can do: no formats, so nothing is placed on it.
        return DeviceView(device.id, 0, 0, frozenset(), device.labels)
    reports = {(r.model, r.version): r for r in device.replicas}
    own = sum(r.memory_bytes for r in reports.values() if r.state in _RUNNING)
    others = max(0, load.memory_used_bytes - own) if load is not None else 0
    disk = load.disk_free_bytes if load is not None else able.disk_free_bytes
    coming = sum(
        models[key].size
        for key, report in reports.items()
        if report.state in _COMING and key in models
    )
    return DeviceView(
        id=device.id,
        memory_bytes=max(0, able.memory_bytes - others),
        disk_bytes=max(0, disk - coming),
        formats=frozenset(f for runtime in able.runtimes for f in runtime.formats),
        labels=device.labels,
        board=_board(device),
        offline_s=0.0 if device.online else max(now - device.since, 1e-9),
        cordoned=device.cordoned,
        held={
            key: report.memory_bytes
            for key, report in reports.items()
            if report.state is not ReplicaState.FAILED
        },
        failed=failed,
    )


def _speeds(devices: Iterable[Device]) -> dict[ModelKey, dict[str, float]]:
    """Milliseconds per item at the knee, by model and board, over all devices that measured."""
    found: dict[ModelKey, dict[str, list[float]]] = {}
    for device in devices:
        for report in device.replicas:
            if report.profile is not None:
                key = (report.model, report.version)
                boards = found.setdefault(key, {})
                boards.setdefault(_board(device), []).append(_per_item(report.profile))
    return {
        key: {board: fmean(values) for board, values in boards.items()}
        for key, boards in found.items()
    }


def _per_item(profile: Profile) -> float:
    return profile.milliseconds(profile.knee) / profile.knee


def _board(device: Device) -> str:
    able = device.capabilities
    return f"{able.board.family}/{able.board.model}" if able is not None else ""
