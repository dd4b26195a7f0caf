"""A plan at work as people see it. Pure."""

from __future__ import annotations

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
    partition = entry.partition
    if entry.candidate not in (None, plan):
        partition = None  # The draft is that of the candidate.
    draft = entry.draft
    if draft is not None and draft.model.digest != plan.digest:
        draft = partition = None  # It is that of the next version.
    if draft is not None and partition is None:
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
