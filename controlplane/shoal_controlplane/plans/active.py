"""Plans that run: what the room of plans tells of a sharded deployment, and what it is asked."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shoal_controlplane.planner.partition.problem import Objective, Partition
from shoal_controlplane.plans.draft import Draft
from shoal_controlplane.plans.plan import Plan


class PlanState(str, enum.Enum):
    """How far a plan is."""

    PENDING = "pending"
    """Nothing fits at the moment: `reason` says why. It is tried again when the fleet changes."""
    MEASURING = "measuring"
    """Parts of the model are measured on the types of board that could take part."""
    CUTTING = "cutting"
    """The stages are cut out of the model's file."""
    LOADING = "loading"
    """Devices fetch, load and check their stages."""
    READY = "ready"
    """Requests flow."""
    DEGRADED = "degraded"
    """A device is gone: a fallback serves, or nothing does until the next plan is ready."""
    FAILED = "failed"
    """It cannot work as it was asked for."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """What takes over when the device `lost` goes: an epoch that is wired already, its devices by
    stage, and the requests a second that it is good for."""

    lost: str
    epoch: int
    devices: tuple[tuple[str, ...], ...]
    rate: float


@dataclass(frozen=True, slots=True)
class ActivePlan:
    """The plan of the deployment `name`, which has been in `state` since `since` (Unix seconds).

    `plan` is what runs, in `epoch`; None until there is one. `partition` is the same as the planner
    counts it, made of `draft`; both are None where it has not looked at the fleet since a restart,
    and `partition` where it would no longer choose such a plan. `states` gives the state of a stage
    on a device, by index of the stage and device. `spares` names the stages that a device holds for
    others beside its own.
    """

    name: str
    model: str
    version: str
    objective: Objective
    state: PlanState
    since: float
    reason: str = ""
    epoch: int = 0
    plan: Plan | None = None
    draft: Draft | None = None
    partition: Partition | None = None
    states: Mapping[tuple[int, str], str] = field(default_factory=dict)
    spares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fallbacks: tuple[Fallback, ...] = ()
    credits: int = 0
    compression: str = ""


class Planning(Protocol):
    """Computes plans without changing anything."""

    async def draft(
        self,
        model: str,
        version: str | None,
        *,
        select: Mapping[str, str],
        objective: Objective,
        stages: int | None,
        shapes: Mapping[str, tuple[int, ...]] | None,
    ) -> Draft:
        """The plan for a model (the newest version without `version`) on devices with the labels
        `select`; `stages` None lets the planner choose. `shapes` gives sizes of inputs that the
        model leaves open. Raises a `DomainError`."""
        ...


class ActivePlans(Protocol):
    """Knows the plans of all sharded deployments."""

    def active(self) -> Sequence[ActivePlan]:
        """All of them, in any order."""
        ...

    def find(self, name: str) -> ActivePlan | None:
        """That of the deployment `name`, None where there is none."""
        ...
