"""One sharded deployment on its way: what it runs as, what comes next, and why."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from shoal_controlplane.deployments.deployment import AUTO, Deployment
from shoal_controlplane.planner.partition.problem import Partition
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.draft import Draft
from shoal_controlplane.plans.plan import Plan, Wiring
from shoal_shared.messages import ModelGoal


@dataclass(slots=True, eq=False)
class Entry:
    """The state of a deployment's plan.

    `plan` is what serves or is to serve first, `candidate` what takes over once it is ready,
    `draining` what still answers until `drained_at`. `jobs` are models that devices load only to
    measure them. `again` asks for a new draft, at `retry_at` the earliest; `gain_since` is when a
    better plan was first seen. `abandoned` are epochs that must not be used any more, `avoid`
    devices that failed the plan, each until a reading of the clock. `epoch` is the highest that
    was given out, `since` Unix seconds. `loading_since` tells when the candidate was made,
    `unready_since` since when nothing of a plan serves though no device is gone.

    `degraded` says what was lost while a fallback serves, `unmet` why what serves is not what is
    asked for. `up` tells whether the last event was one of service, `told` what else was told
    since: nothing is told twice.
    """

    deployment: Deployment
    plan: Plan | None = None
    candidate: Plan | None = None
    draining: Plan | None = None
    drained_at: float = 0.0
    jobs: dict[str, tuple[ModelGoal, ...]] = field(default_factory=dict)
    state: PlanState = PlanState.PENDING
    reason: str = ""
    since: float = 0.0
    draft: Draft | None = None
    partition: Partition | None = None
    abandoned: set[int] = field(default_factory=set)
    avoid: dict[str, float] = field(default_factory=dict)
    measured: set[str] = field(default_factory=set)
    again: bool = True
    retry_at: float = 0.0
    gain_since: float | None = None
    degraded: str = ""
    unmet: str = ""
    up: bool = False
    told: set[str] = field(default_factory=set)
    loading_since: float = 0.0
    unready_since: float | None = None
    epoch: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def stages(self) -> int | None:
        """The number of stages asked for, None where the planner chooses."""
        shards = self.deployment.shards
        return None if shards in (None, AUTO) else shards

    @property
    def plans(self) -> tuple[Plan, ...]:
        """All that devices hold something of, what serves first."""
        found = (self.plan, self.candidate, self.draining)
        return tuple(plan for plan in found if plan is not None)

    @property
    def is_current(self) -> bool:
        """Whether the plan is what is asked for now."""
        return self.plan is not None and self.plan.asked == asked(self.deployment)

    @property
    def is_decided(self) -> bool:
        """Whether devices were chosen, or it is clear why there are none."""
        hopeless = self.state in (PlanState.PENDING, PlanState.FAILED) and bool(self.reason)
        return bool(self.plans) or hopeless

    def usable(self, plan: Plan) -> tuple[Wiring, ...]:
        """Epochs of a plan that were not abandoned."""
        return tuple(w for w in plan.wirings if w.epoch not in self.abandoned)

    def turn(self, state: PlanState, at: float, reason: str = "") -> None:
        """Go into another state, or on in the same one; `at` is in Unix seconds."""
        if state is not self.state:
            self.since = at
        self.state, self.reason = state, reason

    def avoided(self, now: float) -> set[str]:
        """Devices that must not be part of the next plan."""
        self.avoid = {device: until for device, until in self.avoid.items() if until > now}
        return set(self.avoid)


def asked(deployment: Deployment) -> str:
    """All that a plan depends on of what a deployment asks for, as text."""
    wanted = (
        deployment.key,
        deployment.shards,
        deployment.objective,
        dict(deployment.shapes),
        dict(deployment.select),
        deployment.require_accelerator,
    )
    return msgspec.json.encode(wanted, order="sorted").decode()
