"""`/api/v1/plans`: what a plan would be, and the plans that run."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from shoal_controlplane.api.paging import Page, Paging, page
from shoal_controlplane.errors import NotFoundError
from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.plans.active import ActivePlans, Planning
from shoal_controlplane.plans.views import ActiveView, PlanView, active_view, plan_view

PREFIX = "/api/v1/plans"
MAX_SHARDS = 32

Name = Annotated[str, Field(min_length=1, max_length=64)]
Label = Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f]*$")]
Tensor = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]*$")]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Shape = Annotated[list[Size], Field(max_length=8)]

Shards = Literal["auto"] | Annotated[int, Field(ge=1, le=MAX_SHARDS)]
"""How many stages: the planner's choice, or so many."""
Shapes = Annotated[dict[Tensor, Shape], Field(max_length=64)]
"""Sizes of inputs that a model leaves open, by the input's name."""


class PlanRequest(BaseModel):
    """What to plan. Without `version`, the newest; `select` restricts devices by their labels."""

    model_config = ConfigDict(extra="forbid")

    model: Name
    version: Name | None = None
    select: Annotated[dict[Label, Label], Field(max_length=16)] = {}
    objective: Objective = Objective.THROUGHPUT
    shards: Shards = "auto"
    shapes: Shapes = {}


def plan_routes(planning: Planning, plans: ActivePlans) -> APIRouter:
    """Routes over the planner and the plans that run."""
    router = APIRouter(prefix=PREFIX, tags=["plans"])

    @router.post("")
    async def draft_plan(asked: PlanRequest) -> PlanView:
        """Plan a model for the fleet as it is now; changes nothing."""
        draft = await planning.draft(
            asked.model,
            asked.version,
            select=asked.select,
            objective=asked.objective,
            stages=None if asked.shards == "auto" else asked.shards,
            shapes=shape_hints(asked.shapes) or None,
        )
        return plan_view(draft)

    @router.get("")
    async def list_plans(paging: Annotated[Paging, Depends()]) -> Page[ActiveView]:
        """Plans of sharded deployments, by name."""
        found = sorted(plans.active(), key=lambda plan: plan.name)
        after = [plan for plan in found if paging.after is None or plan.name > paging.after]
        views = [active_view(plan) for plan in after[: paging.limit + 1]]
        return page(views, lambda view: view.name, paging)

    @router.get("/{name}")
    async def show_plan(name: str) -> ActiveView:
        """The plan of one sharded deployment."""
        plan = plans.find(name)
        if plan is None:
            raise NotFoundError(
                f"There is no plan {name[:80]!r}: plans belong to deployments that were created "
                "with shards."
            )
        return active_view(plan)

    return router


def shape_hints(shapes: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes as the planner takes them."""
    return {name: tuple(shape) for name, shape in shapes.items()}
