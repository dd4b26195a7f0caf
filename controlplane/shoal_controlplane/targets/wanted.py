"""What should be on which target: deployments that offload, and what was placed by hand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from shoal_controlplane.gateway.table import ServedModel
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.offload.manager import TargetPlan, WantedModel
from shoal_controlplane.offload.target import CloudModel
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.targets.target import Manual, Place, Target

LARGEST_BATCH = 32
"""Of those that are worth compiling: beyond, compiling costs more than a batch saves."""


def target_plan(target: Target) -> TargetPlan:
    """A target as those who drive it want it."""
    return TargetPlan(target.settings, target.cap_per_hour)


def targets_by_model(
    served: Iterable[ServedModel], manual: Mapping[Place, Manual]
) -> dict[ModelKey, tuple[str, ...]]:
    """Names of the targets of each model that has any: those that its deployments name, in their
    order, then those on which an operator wants it."""
    found = {(m.name, m.version): dict.fromkeys(m.offload) for m in served if m.offload}
    for target, key in sorted(manual):
        found.setdefault(key, {})[target] = None
    return {key: tuple(names) for key, names in found.items()}


def pins(manual: Mapping[Place, Manual]) -> dict[Place, int]:
    """Numbers of replicas that were fixed by hand."""
    return {place: what.replicas for place, what in manual.items() if what.replicas is not None}


def wanted_model(
    model: ModelVersion,
    targets: tuple[str, ...],
    path: Callable[[str], Path],
    url: Callable[[str], str],
) -> WantedModel:
    """A model for its targets. `path` and `url` tell where the bytes of a digest lie, here and for
    machines elsewhere."""
    return WantedModel(
        CloudModel(
            name=model.name,
            version=model.version,
            format=model.format,
            artifact=path(model.digest),
            digest=model.digest,
            url=url(model.digest),
            signature=model.signature,
            max_batch=model.max_batch,
            batches=batches(model.max_batch),
        ),
        targets,
    )


def batches(max_batch: int) -> tuple[int, ...]:
    """Batch sizes worth compiling: powers of two up to the most that the model takes."""
    most = min(max(1, max_batch), LARGEST_BATCH)
    return tuple(2**exponent for exponent in range(most.bit_length()))
