"""The state of a deployment from what its devices report. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.devices.fallback import fell_back
from shoal_controlplane.devices.live import Device
from shoal_controlplane.planner.snapshot import Placed
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.entry import Entry
from shoal_controlplane.plans.shown import state_of
from shoal_shared.messages import ReplicaReport
from shoal_shared.status import DeploymentState, ReplicaState

_PLAN_STATES = {
    PlanState.PENDING: DeploymentState.PENDING,
    PlanState.MEASURING: DeploymentState.PROGRESSING,
    PlanState.CUTTING: DeploymentState.PROGRESSING,
    PlanState.LOADING: DeploymentState.PROGRESSING,
    PlanState.READY: DeploymentState.READY,
    PlanState.DEGRADED: DeploymentState.DEGRADED,
    PlanState.FAILED: DeploymentState.FAILED,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """One replica, with what its device says of it. Where the device is away, or is not heard
    about it, it counts as queued. `fallback` says that it runs on the CPU of a device that has an
    accelerator."""

    device: str
    state: ReplicaState
    reason: str = ""
    report: ReplicaReport | None = None
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """A deployment over its replicas. `reason` is empty where all is well."""

    state: DeploymentState
    reason: str
    wanted: int
    ready: int
    placements: tuple[Placement, ...]


def summarise(
    deployment: Deployment,
    digest: str | None,
    placed: Placed | None,
    assigned: frozenset[str],
    serving: frozenset[str],
    device: Callable[[str], Device | None],
) -> Summary:
    """State, counts and replicas of a deployment.

    `digest` is that of the model, None if the model is gone; `placed` the planner's last word,
    None if it has not spoken yet. Only `serving` devices, those that the gateway knows, count as
    ready: who reads "ready" may send a request.
    """
    placements = tuple(
        _placement(deployment, digest, device(name), name, name in serving)
        for name in sorted(assigned)
    )
    ready = sum(p.state is ReplicaState.READY for p in placements)
    if placed is not None:
        wanted = placed.wanted
    else:
        wanted = len(assigned) if deployment.replicas is None else deployment.replicas
    state = _state(deployment, wanted, ready, placements)
    if digest is None:
        missing = f"model {deployment.model}:{deployment.version} is gone: push it again"
        return Summary(DeploymentState.FAILED, missing, wanted, ready, placements)
    reason = ""
    if state is not DeploymentState.READY:
        reason = _reason(placed, placements)
    return Summary(state, reason, wanted, ready, placements)


def summarise_plan(
    deployment: Deployment,
    has_model: bool,
    entry: Entry | None,
    device: Callable[[str], Device | None],
) -> Summary:
    """A sharded deployment: its replicas are the stages of its plan on their devices."""
    if not has_model:
        missing = f"model {deployment.model}:{deployment.version} is gone: push it again"
        return Summary(DeploymentState.FAILED, missing, 0, 0, ())
    plan = entry.plan or entry.candidate if entry is not None else None
    if entry is None or plan is None:
        reason = entry.reason if entry is not None else ""
        state = _PLAN_STATES[entry.state] if entry is not None else DeploymentState.PENDING
        return Summary(state, reason or "it has not been planned yet", 0, 0, ())
    placements = []
    for stage, devices in enumerate(plan.current.devices):
        for name in devices:
            held, reason, report = state_of(plan, stage, name, device)
            found = device(name)
            fallback = found is not None and report is not None and fell_back(found, report)
            placements.append(Placement(name, held, reason, report, fallback))
    ready = sum(p.state is ReplicaState.READY for p in placements)
    state = _PLAN_STATES[entry.state]
    if state is DeploymentState.READY and not entry.is_current:
        state = DeploymentState.PROGRESSING
    return Summary(state, entry.reason, len(placements), ready, tuple(placements))


def _state(
    deployment: Deployment, wanted: int, ready: int, placements: tuple[Placement, ...]
) -> DeploymentState:
    if wanted and ready >= wanted:
        return DeploymentState.READY
    if ready:
        return DeploymentState.DEGRADED if deployment.completed else DeploymentState.PROGRESSING
    if any(p.state is ReplicaState.FAILED for p in placements):
        return DeploymentState.FAILED
    if any(p.report is not None for p in placements):
        return DeploymentState.PROGRESSING
    return DeploymentState.PENDING


def _reason(placed: Placed | None, placements: tuple[Placement, ...]) -> str:
    failed = [f"{p.device}: {p.reason}" for p in placements if p.state is ReplicaState.FAILED]
    if failed:
        return failed[0] if len(failed) == 1 else f"{failed[0]} (and {len(failed) - 1} more)"
    if placed is not None and placed.reason:
        return placed.reason
    waiting = [p for p in placements if p.state is not ReplicaState.READY]
    if not waiting:
        return "it has not been placed yet" if placed is None else ""
    first = waiting[0]
    return f"{first.device}: {first.reason or first.state.value}"


def _placement(
    deployment: Deployment, digest: str | None, device: Device | None, name: str, serving: bool
) -> Placement:
    if device is None or not device.online:
        return Placement(name, ReplicaState.QUEUED, "the device is offline")
    for report in device.live_replicas:
        if (report.model, report.version) == deployment.key and report.digest == digest:
            state, reason = report.state, report.reason
            if state is ReplicaState.FAILED:
                reason = reason or "the device gave no reason"
            elif state is ReplicaState.READY and device.cordoned:
                return Placement(name, ReplicaState.QUEUED, "the device is cordoned")
            elif state is ReplicaState.READY and not serving:
                state, reason = ReplicaState.PROFILING, "the gateway is about to use it"
            return Placement(name, state, reason, report, fell_back(device, report))
    return Placement(name, ReplicaState.QUEUED, "the device has not answered yet")
