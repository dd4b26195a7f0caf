"""From assignments to the goals of devices. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.plans.wiring import Load
from shoal_shared.messages import (
    MAX_DOCUMENT_BYTES,
    REFERENCE,
    Desired,
    ModelGoal,
    Reported,
    RoleGoal,
    VariantGoal,
)

_MOST_PLAUSIBLE_GOAL = 2**53

MAX_BATCH = 4096
"""Devices refuse goals with more."""


def files(model: ModelVersion) -> tuple[VariantGoal, ...]:
    """The file that a version was pushed with, then its variants."""
    reference = VariantGoal(
        name=REFERENCE, digest=model.digest, size=model.size, format=model.format
    )
    return (reference, *_variants(model))


def model_goal(deployment: Deployment, model: ModelVersion) -> ModelGoal:
    """What a device is told about one deployment."""
    return ModelGoal(
        deployment=deployment.name,
        model=deployment.model,
        version=deployment.version,
        digest=model.digest,
        size=model.size,
        format=model.format,
        max_batch=min(deployment.max_batch or max(1, model.max_batch), MAX_BATCH),
        options=dict(deployment.options),
        variants=_variants(model),
        golden=model.golden,
        require_accelerator=deployment.require_accelerator,
    )


def goal_size(goal: ModelGoal) -> int:
    """Bytes that a model takes in a goal document."""
    return len(msgspec.json.encode(goal)) + 1


def models_by_device(
    deployments: Iterable[Deployment],
    assignment: Mapping[str, frozenset[str]],
    models: Mapping[ModelKey, ModelVersion],
) -> dict[str, tuple[ModelGoal, ...]]:
    """What every device shall serve, by model and version.

    Deployments of one model version share it where they meet: the oldest gives its options, and
    an accelerator is required if any of them requires one.
    """
    found: dict[str, dict[ModelKey, ModelGoal]] = {}
    for deployment in deployments:
        model = models.get(deployment.key)
        if model is None:
            continue
        goal = model_goal(deployment, model)
        for device in assignment.get(deployment.name, ()):
            shared = found.setdefault(device, {}).setdefault(deployment.key, goal)
            if goal.require_accelerator and not shared.require_accelerator:
                found[device][deployment.key] = replace(shared, require_accelerator=True)
    return {
        device: tuple(goal for _, goal in sorted(goals.items())) for device, goals in found.items()
    }


def next_goal(
    current: Desired | None,
    models: tuple[ModelGoal, ...],
    reported: Reported | None,
    roles: tuple[RoleGoal, ...] = (),
) -> Desired | None:
    """The goal to publish next, None if the device has the right one already.

    Its number grows only with its content, or to get past a number that the device saw from an
    earlier database. A device that never had a goal gets one only if there is something to say.
    """
    number = current.goal if current is not None else 0
    seen = reported.goal if reported is not None else 0
    if seen > _MOST_PLAUSIBLE_GOAL:
        seen = 0
    if current is None:
        needed = bool(models) or (reported is not None and bool(reported.models))
    else:
        needed = (current.models, current.roles) != (models, roles) or seen > number
    if not needed:
        return None
    return Desired(goal=max(number, seen) + 1, models=models, roles=roles)


def with_plans(
    models: tuple[ModelGoal, ...], load: Load | None
) -> tuple[tuple[ModelGoal, ...], tuple[RoleGoal, ...]]:
    """Models and roles of a device, those of plans among them, as many as a goal can name.

    Where it is too much, epochs that were wired ahead are left out, the last ones first, then
    models that are only to be measured, then other epochs from the end: so what serves is kept
    longest. With an epoch go the models that it alone needs.
    """
    if load is None:
        return models, ()
    epochs = [*_epochs(load.roles), *sorted(_epochs(load.ahead), key=lambda e: e[1])]
    serving = len(_epochs(load.roles))
    every = (*load.roles, *load.ahead)
    jobs = load.models.keys() - {(role.model, role.version) for role in every}
    while True:
        chosen = [role for role in every if (role.plan, role.epoch) in epochs]
        roles = tuple(sorted(chosen, key=lambda role: (role.plan, role.epoch, role.stage)))
        named = {(role.model, role.version) for role in roles} | jobs
        planned = tuple(goal for key, goal in sorted(load.models.items()) if key in named)
        if _fits((*models, *planned), roles) or not named:
            return (*models, *planned), roles
        if jobs and len(epochs) <= serving:
            jobs = set()
        else:
            epochs.pop()


def _epochs(roles: Iterable[RoleGoal]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((role.plan, role.epoch) for role in roles))


def _fits(models: tuple[ModelGoal, ...], roles: tuple[RoleGoal, ...]) -> bool:
    goal = Desired(goal=_MOST_PLAUSIBLE_GOAL, models=models, roles=roles)
    return len(msgspec.json.encode(goal)) <= MAX_DOCUMENT_BYTES


def _variants(model: ModelVersion) -> tuple[VariantGoal, ...]:
    return tuple(
        VariantGoal(name=v.name, digest=v.digest, size=v.size, format=v.format, target=v.target)
        for v in model.variants
    )
