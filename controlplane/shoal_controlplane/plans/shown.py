"""A plan at work as people see it. Pure."""

from __future__ import annotations

from dataclasses import replace

from shoal_controlplane.planner.partition.problem import Problem
from shoal_controlplane.plans.active import ActivePlan, Fallback
from shoal_controlplane.plans.entry import Entry
from shoal_controlplane.plans.plan import Plan, Wiring
from shoal_controlplane.plans.shaping import repriced
from shoal_controlplane.plans.wiring import Find, stage_report
from shoal_shared.messages import ReplicaReport
from shoal_shared.status import ReplicaState


def shown(entry: Entry, find: Find) -> ActivePlan:
    """What an entry runs as, or is about to."""
    plan = entry.plan or entry.candidate
    deployment = entry.deployment
    if plan is None:
        return ActivePlan(
            name=deployment.name,
            model=deployment.model,
            version=deployment.version,
            objective=deployment.objective,
            state=entry.state,
            since=entry.since,
            reason=entry.reason,
            draft=entry.draft,
        )
    draft = entry.draft
    if draft is not None and draft.model.digest != plan.digest:
        draft = None  # It is that of the next version.
    partition = None
    if draft is not None:
        draft = replace(draft, problem=_as_measured(plan, draft.problem, find))
        partition = repriced(plan, draft.problem)
    return ActivePlan(
        name=deployment.name,
        model=plan.model,
        version=plan.version,
        objective=deployment.objective,
        state=entry.state,
        since=entry.since,
        reason=entry.reason,
        plan=plan,
        epoch=plan.current.epoch,
        draft=draft,
        partition=partition,
        states={
            (stage, name): state_of(plan, stage, name, find)[0].value
            for stage, devices in enumerate(plan.current.devices)
            for name in devices
        },
        spares=_spares(plan, plan.current),
        fallbacks=tuple(
            Fallback(lost, wiring.epoch, wiring.devices, 1e3 / wiring.bottleneck_ms)
            for lost, wiring in sorted(plan.fallbacks.items())
            if wiring.epoch not in entry.abandoned
        ),
        credits=plan.credits,
        compression=plan.compression,
    )


def state_of(
    plan: Plan, stage: int, name: str, find: Find
) -> tuple[ReplicaState, str, ReplicaReport | None]:
    """The state of a stage on a device, with a reason where it does not serve."""
    device = find(name)
    if device is None or not device.online:
        return ReplicaState.QUEUED, "the device is offline", None
    report = stage_report(plan, stage, device)
    if report is None:
        return ReplicaState.QUEUED, "the device has not answered yet", None
    return report.state, report.reason, report


def _as_measured(plan: Plan, problem: Problem, find: Find) -> Problem:
    """The problem with the times that devices have measured of the plan's own stages."""
    kinds = {device: i for i, kind in enumerate(problem.types) for device in kind.devices}
    known = dict(problem.known_ms)
    for stage, (part, devices) in enumerate(zip(plan.parts, plan.current.devices, strict=True)):
        for name in devices:
            _, _, report = state_of(plan, stage, name, find)
            if name in kinds and report is not None and report.profile is not None:
                known[part.first, part.last, kinds[name]] = report.profile.milliseconds(1)
    return replace(problem, known_ms=known)


def _spares(plan: Plan, current: Wiring) -> dict[str, tuple[int, ...]]:
    """Stages that devices hold for the case that another one is lost."""
    devices = frozenset().union(*(wiring.members for wiring in plan.wirings))
    found: dict[str, tuple[int, ...]] = {}
    for device in sorted(devices):
        own = {s for s, names in enumerate(current.devices) if device in names}
        spare = tuple(stage for stage in plan.stages_on(device) if stage not in own)
        if spare:
            found[device] = spare
    return found
