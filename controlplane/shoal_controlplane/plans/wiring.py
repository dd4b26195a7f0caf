"""From plans to what devices are told, and to what the gateway may use. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from shoal_controlplane.devices.live import Device
from shoal_controlplane.gateway.table import Pipeline, Replica
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.plans.plan import Part, Plan, Wiring, part_key
from shoal_shared.messages import ModelGoal, ReplicaReport, RoleGoal
from shoal_shared.profiles import Profile
from shoal_shared.status import DeviceCondition, ReplicaState

Find: TypeAlias = Callable[[str], Device | None]

RoleKey: TypeAlias = tuple[str, int]
"""Plan and epoch."""


@dataclass(slots=True)
class Load:
    """What plans ask of one device: models by key with the memory that each is thought to need,
    roles of epochs that serve or are to, and roles of those that are wired `ahead`."""

    models: dict[ModelKey, ModelGoal] = field(default_factory=dict)
    roles: list[RoleGoal] = field(default_factory=list)
    ahead: list[RoleGoal] = field(default_factory=list)
    memory: dict[ModelKey, int] = field(default_factory=dict)

    @property
    def goal_bytes(self) -> int:
        """What it takes in a goal document."""
        return len(msgspec.json.encode([list(self.models.values()), self.roles, self.ahead]))

    def add(self, goal: ModelGoal, memory_bytes: int) -> None:
        """Ask for a model."""
        key = (goal.model, goal.version)
        self.models.setdefault(key, goal)
        self.memory[key] = max(memory_bytes, self.memory.get(key, 0))


def part_goal(
    deployment: str,
    key: ModelKey,
    part: Part,
    options: Mapping[str, Any],
    *,
    require_accelerator: bool = False,
) -> ModelGoal:
    """What a device is told to load for a part of the model `key`."""
    model, version = part_key(*key, part.digest)
    shapes = {name: list(shape) for name, shape in part.shapes.items()}
    return ModelGoal(
        deployment=deployment,
        model=model,
        version=version,
        digest=part.digest,
        size=part.size,
        format="onnx",
        options={**options, "profile_shapes": shapes},
        require_accelerator=require_accelerator,
    )


def loads(
    plans: Iterable[Plan],
    options: Callable[[str], tuple[Mapping[str, Any], bool]],
) -> dict[str, Load]:
    """What every device of some plans is asked for. `options` gives those of a plan's deployment,
    and whether it requires an accelerator."""
    found: dict[str, Load] = {}
    for plan in plans:
        chosen, required = options(plan.name)
        goals = [
            part_goal(plan.name, plan.key, part, chosen, require_accelerator=required)
            for part in plan.parts
        ]
        for wiring in plan.wirings:
            for stage, devices in enumerate(wiring.devices):
                for replica, device in enumerate(devices):
                    load, goal = found.setdefault(device, Load()), goals[stage]
                    load.add(goal, plan.parts[stage].memory_bytes)
                    roles = load.roles if wiring is plan.current else load.ahead
                    roles.append(_role(plan, wiring, stage, replica, goal))
    return found


def pipeline(plan: Plan, wiring: Wiring) -> Pipeline:
    """An epoch as the gateway knows it."""
    first = wiring.devices[0]
    return Pipeline(
        plan=plan.name,
        epoch=wiring.epoch,
        stages=wiring.devices,
        shares=(1 / len(first),) * len(first),
        credits=plan.credits,
        stage_ms=wiring.stage_ms,
        links_ms=max(0.0, wiring.latency_ms - sum(wiring.stage_ms)),
    )


def replica(plan: Plan, wiring: Wiring) -> Replica:
    """An epoch as one more place for the router: a request takes the whole latency, and each
    further one in flight a bottleneck more."""
    profile = Profile(
        samples=(),
        intercept_ms=max(0.0, wiring.latency_ms - wiring.bottleneck_ms),
        slope_ms=wiring.bottleneck_ms,
        knee=2**20,
    )
    return Replica(f"{plan.name}@{wiring.epoch}", profile, pipeline=pipeline(plan, wiring))


def is_ready(
    plan: Plan, wiring: Wiring, find: Find, wired: Mapping[tuple[str, RoleKey], int]
) -> bool:
    """Whether requests may be sent through an epoch."""
    return not lacking(plan, wiring, find, wired)


def lacking(
    plan: Plan, wiring: Wiring, find: Find, wired: Mapping[tuple[str, RoleKey], int]
) -> list[str]:
    """Devices that are not ready for an epoch: they are offline or cordoned, have not loaded their
    stages, or not seen the goal that wired them (`wired` has its number by device and epoch)."""
    found = set()
    for stage, devices in enumerate(wiring.devices):
        for name in devices:
            device, goal = find(name), wired.get((name, (plan.name, wiring.epoch)))
            if (
                device is None
                or goal is None
                or device.condition is not DeviceCondition.ONLINE
                or device.goal_seen < goal
            ):
                found.add(name)
                continue
            report = stage_report(plan, stage, device)
            if report is None or report.state is not ReplicaState.READY:
                found.add(name)
    return sorted(found)


def stage_report(plan: Plan, stage: int, device: Device) -> ReplicaReport | None:
    """What a device says of a stage that it holds."""
    part = plan.parts[stage]
    key = part_key(*plan.key, part.digest)
    for report in device.live_replicas:
        if (report.model, report.version) == key and report.digest == part.digest:
            return report
    return None


def _role(plan: Plan, wiring: Wiring, stage: int, replica: int, goal: ModelGoal) -> RoleGoal:
    following = wiring.devices[stage + 1] if stage + 1 < len(wiring.devices) else ()
    return RoleGoal(
        plan=plan.name,
        epoch=wiring.epoch,
        stage=stage,
        replica=replica,
        model=goal.model,
        version=goal.version,
        next=(1 / len(following),) * len(following) if following else (),
        passes=plan.parts[stage].passes,
        credits=plan.credits,
        compression=plan.compression,
    )
