"""Pictures of the live fleet: one for the planner, one for the gateway. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.goals import files, goal_size, model_goal
from shoal_controlplane.deployments.measured import Measurements
from shoal_controlplane.devices.fallback import lists_accelerator
from shoal_controlplane.devices.live import Device
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.snapshot import (
    DeploymentView,
    DeviceView,
    Limits,
    ModelKey,
    Snapshot,
    memory_estimate,
)
from shoal_shared.profiles import Profile
from shoal_shared.status import DeviceCondition, ReplicaState

Failures = Mapping[tuple[str, ModelKey], float]
"""Clock reading of the last failure per device and model."""

UNMEASURED = Profile(samples=(), intercept_ms=0.0, slope_ms=10.0, knee=1)
"""For a replica that could not be measured: a guess that the router corrects with the first
answers."""

_NOTHING: Mapping[str, int] = {}
_NO_PIPELINES: Mapping[ModelKey, Sequence[Replica]] = {}
_RUNNING = (ReplicaState.LOADING, ReplicaState.PROFILING, ReplicaState.READY)
_COMING = (ReplicaState.QUEUED, ReplicaState.FETCHING)


def snapshot(
    devices: Iterable[Device],
    deployments: Iterable[Deployment],
    assignment: Mapping[str, frozenset[str]],
    models: Mapping[ModelKey, ModelVersion],
    failures: Failures,
    measured: Measurements,
    now: float,
    limits: Limits,
    reserved: Mapping[str, int] = _NOTHING,
    goal_bytes: Mapping[str, int] = _NOTHING,
) -> Snapshot:
    """What the planner decides on. Deployments whose model is gone are left out.

    Speed and memory on a board are what devices that serve report, else what was `measured`.
    Plans of sharded models take `reserved` bytes of memory of a device, and `goal_bytes` of its
    goal document.
    """
    fleet = list(devices)
    placeable = [d for d in deployments if d.key in models]
    failed: dict[str, dict[ModelKey, float]] = {}
    for (device, key), at in failures.items():
        failed.setdefault(device, {})[key] = now - at
    speeds, memory = _speeds(fleet), _memory(fleet)
    # Where deployments of one model version meet, any of them may give the goal.
    sizes: dict[ModelKey, int] = {}
    for d in placeable:
        size = goal_size(model_goal(d, models[d.key]))
        sizes[d.key] = max(size, sizes.get(d.key, 0))
    known = {key: measured.best(f.digest for f in files(models[key])) for key in sizes}
    return Snapshot(
        devices={
            d.id: _reserve(
                _device_view(d, models, failed.get(d.id, {}), now),
                reserved.get(d.id, 0),
                goal_bytes.get(d.id, 0),
            )
            for d in fleet
        },
        deployments=tuple(
            DeploymentView(
                name=d.name,
                key=d.key,
                formats=frozenset(f.format for f in files(models[d.key])),
                file_bytes=models[d.key].size,
                disk_bytes=_disk_bytes(models[d.key]),
                goal_bytes=sizes[d.key],
                replicas=d.replicas,
                select=d.select,
                require_accelerator=d.require_accelerator,
                speed_ms={b: m.item_ms for b, m in known[d.key].items()} | speeds.get(d.key, {}),
                memory_bytes={b: m.memory_bytes for b, m in known[d.key].items()}
                | memory.get(d.key, {}),
            )
            for d in placeable
        ),
        assignment=assignment,
        limits=limits,
    )


def assigned_bytes(
    devices: Iterable[Device],
    deployments: Mapping[str, Deployment],
    assignment: Mapping[str, frozenset[str]],
    models: Mapping[ModelKey, ModelVersion],
) -> dict[str, int]:
    """Memory that deployments which are not sharded take, by device: what a device reports, else
    what is thought."""
    wanted: dict[str, set[ModelKey]] = {}
    for name, chosen in assignment.items():
        deployment = deployments.get(name)
        if deployment is not None and deployment.key in models:
            for member in chosen:
                wanted.setdefault(member, set()).add(deployment.key)
    found: dict[str, int] = {}
    for device in devices:
        keys = wanted.get(device.id, set())
        known = {(r.model, r.version): r.memory_bytes for r in device.replicas}
        found[device.id] = sum(known.get(key) or memory_estimate(models[key].size) for key in keys)
    return found


def served_models(
    devices: Iterable[Device],
    deployments: Iterable[Deployment],
    models: Mapping[ModelKey, ModelVersion],
    asked: Mapping[tuple[str, ModelKey], int],
    pipelines: Mapping[ModelKey, Sequence[Replica]] = _NO_PIPELINES,
) -> list[ServedModel]:
    """What the gateway serves: models of deployments, and versions of them that were replaced
    but still run, with the devices that are online, open and ready with the right artifact.

    `asked` holds the number of the goal with which a device was last asked for a model: what it
    reported before that may be about to be unloaded. `pipelines` are those of sharded deployments
    that are ready, in the order in which they are to be used. Where several deployments have a
    model, its least `slo_ms` and all their targets count.
    """
    deployments = list(deployments)
    deployed = {d.key for d in deployments}
    slos, targets = _slos(deployments), _targets(deployments)
    sharded = {d.key for d in deployments if d.shards is not None}
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
                profile = report.profile or UNMEASURED
                replica = Replica(device.id, profile, slowed=device.slowed)
                replicas.setdefault(key, []).append(replica)
    return [
        ServedModel(
            name=model.name,
            version=model.version,
            platform=model.platform,
            signature=model.signature,
            max_batch=model.max_batch,
            replicas=(
                *sorted(replicas.get(key, ()), key=lambda r: r.device),
                *pipelines.get(key, ()),
            ),
            labels=model.labels,
            sharded=key in sharded,
            slo_ms=slos.get(key),
            offload=targets.get(key, ()),
        )
        for key, model in sorted(models.items())
        if key in deployed or key in replicas or key in pipelines
    ]


def _slos(deployments: Iterable[Deployment]) -> dict[ModelKey, float]:
    found: dict[ModelKey, float] = {}
    for deployment in deployments:
        if deployment.slo_ms is not None:
            found[deployment.key] = min(deployment.slo_ms, found.get(deployment.key, math.inf))
    return found


def _targets(deployments: Iterable[Deployment]) -> dict[ModelKey, tuple[str, ...]]:
    found: dict[ModelKey, dict[str, None]] = {}
    for deployment in deployments:
        found.setdefault(deployment.key, {}).update(dict.fromkeys(deployment.offload))
    return {key: tuple(names) for key, names in found.items()}


def _device_view(
    device: Device,
    models: Mapping[ModelKey, ModelVersion],
    failed: Mapping[ModelKey, float],
    now: float,
) -> DeviceView:
    able, load = device.capabilities, device.telemetry
    if able is None:
        # It has not said what it can do: no formats, so nothing is placed on it.
        return DeviceView(device.id, 0, 0, frozenset(), labels=device.labels)
    reports = {(r.model, r.version): r for r in device.replicas}
    own = sum(r.memory_bytes for r in reports.values() if r.state in _RUNNING)
    others = max(0, load.memory_used_bytes - own) if load is not None else 0
    disk = load.disk_free_bytes if load is not None else able.disk_free_bytes
    coming = sum(
        _disk_bytes(models[key])
        for key, report in reports.items()
        if report.state in _COMING and key in models
    )
    return DeviceView(
        id=device.id,
        memory_bytes=max(0, able.memory_bytes - others),
        disk_bytes=max(0, disk - coming),
        formats=frozenset(f for runtime in able.runtimes for f in runtime.formats),
        accelerated=lists_accelerator(able),
        labels=device.labels,
        board=device.board,
        offline_s=0.0 if device.online else max(now - device.since, 1e-9),
        cordoned=device.cordoned,
        held={
            key: report.memory_bytes
            for key, report in reports.items()
            if report.state is not ReplicaState.FAILED
        },
        failed=failed,
    )


def _reserve(device: DeviceView, memory_bytes: int, goal_bytes: int) -> DeviceView:
    if not memory_bytes and not goal_bytes:
        return device
    return replace(
        device,
        memory_bytes=max(0, device.memory_bytes - memory_bytes),
        goal_bytes=goal_bytes,
    )


def _speeds(devices: Iterable[Device]) -> dict[ModelKey, dict[str, float]]:
    """Milliseconds per item at the knee, by model and board, over all devices that measured."""
    found: dict[ModelKey, dict[str, list[float]]] = {}
    for device in devices:
        for report in device.replicas:
            if report.profile is not None:
                key = (report.model, report.version)
                boards = found.setdefault(key, {})
                boards.setdefault(device.board, []).append(_per_item(report.profile))
    return {
        key: {board: fmean(values) for board, values in boards.items()}
        for key, boards in found.items()
    }


def _memory(devices: Iterable[Device]) -> dict[ModelKey, dict[str, int]]:
    """Bytes of memory by model and board: the most that one of the devices measured."""
    found: dict[ModelKey, dict[str, int]] = {}
    for device in devices:
        for report in device.replicas:
            if report.memory_bytes:
                boards = found.setdefault((report.model, report.version), {})
                boards[device.board] = max(boards.get(device.board, 0), report.memory_bytes)
    return found


def _disk_bytes(model: ModelVersion) -> int:
    """All files that a device may fetch."""
    golden = model.golden.size if model.golden is not None else 0
    return golden + sum(file.size for file in files(model))


def _per_item(profile: Profile) -> float:
    return profile.milliseconds(profile.knee) / profile.knee
