"""`/api/v1/deployments`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from shoal_controlplane.api.conditional import IfMatch, etag
from shoal_controlplane.api.idempotency import Idempotency, IdempotencyKey
from shoal_controlplane.api.paging import Page, Paging, page
from shoal_controlplane.deployments.deployment import AUTO
from shoal_controlplane.deployments.goals import MAX_BATCH
from shoal_controlplane.deployments.service import (
    DeploymentChange,
    DeploymentService,
    NewDeployment,
)
from shoal_controlplane.deployments.views import DeploymentView, MeasuredView
from shoal_controlplane.devices.routes import LabelFilter, parse_labels
from shoal_controlplane.errors import InvalidError
from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.plans.routes import Shapes, Shards, shape_hints
from shoal_shared.status import DeploymentState

PREFIX = "/api/v1/deployments"

Name = Annotated[str, Field(min_length=1, max_length=64)]
Replicas = Annotated[int, Field(ge=1, le=100_000)]
Label = Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f]*$")]
Offload = Annotated[list[Name], Field(max_length=16)]
Select = Annotated[dict[Label, Label], Field(max_length=16)]


class DeploymentRequest(BaseModel):
    """What to deploy. Without `version`, the newest; `replicas` (1 by default), `all` or `shards`.

    With `require_accelerator` a replica fails rather than runs on the CPU; `options` go to the
    runtime. `shards` cuts the model into so many stages over several devices, "auto" lets the
    planner choose how many; then `objective` is what the plan is to be best in (throughput by
    default), and `shapes` are sizes of inputs that the model leaves open. `offload` names targets
    that take what devices cannot answer within `slo_ms`.
    """

    model_config = ConfigDict(extra="forbid")

    model: Name
    version: Name | None = None
    name: Name | None = None
    replicas: Replicas | None = None
    all: bool = False
    select: Select = {}
    slo_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    max_batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] | None = None
    options: dict[str, Any] = {}
    require_accelerator: bool = False
    shards: Shards | None = None
    objective: Objective | None = None
    shapes: Shapes | None = None
    offload: Offload = []


class DeploymentPatch(BaseModel):
    """What to change; `select` and `offload` replace the present ones."""

    model_config = ConfigDict(extra="forbid")

    replicas: Replicas | None = None
    all: bool | None = None
    version: Name | None = None
    select: Select | None = None
    require_accelerator: bool | None = None
    offload: Offload | None = None


def deployment_routes(service: DeploymentService, idempotency: Idempotency) -> APIRouter:
    """Routes over a service."""
    router = APIRouter(prefix=PREFIX, tags=["deployments"])

    @router.post("", status_code=201, response_model=DeploymentView)
    async def create_deployment(
        request: Request, new: DeploymentRequest, key: IdempotencyKey = None
    ) -> Response:
        """Deploy a model: the planner chooses devices that fit."""
        if new.all and new.replicas is not None:
            raise InvalidError("Give either replicas or all, not both.")
        if new.shards is not None and (new.all or new.replicas is not None):
            raise InvalidError("Give either shards or replicas or all: shards have one pipeline.")
        if new.shards is None and (new.objective is not None or new.shapes is not None):
            raise InvalidError("objective and shapes are for plans: give shards as well.")

        async def make() -> Response:
            view = await service.create(
                NewDeployment(
                    model=new.model,
                    version=new.version,
                    name=new.name,
                    replicas=None if new.all else (new.replicas or 1),
                    select=new.select,
                    slo_ms=new.slo_ms,
                    max_batch=new.max_batch,
                    options=new.options,
                    require_accelerator=new.require_accelerator,
                    shards=AUTO if new.shards == "auto" else new.shards,
                    objective=new.objective or Objective.THROUGHPUT,
                    shapes=shape_hints(new.shapes or {}),
                    offload=tuple(new.offload),
                )
            )
            headers = {"Location": f"{PREFIX}/{view.name}", "ETag": etag(view.revision)}
            return JSONResponse(view.model_dump(mode="json"), 201, headers)

        return await idempotency.once(key, request, make)

    @router.get("")
    async def list_deployments(
        paging: Annotated[Paging, Depends()],
        model: Annotated[str | None, Query(max_length=64)] = None,
        state: DeploymentState | None = None,
        label: LabelFilter = [],  # noqa: B006  FastAPI copies defaults
    ) -> Page[DeploymentView]:
        """Deployments by name; `label` filters by what they select."""
        found = service.find(model, state, parse_labels(label), paging.after, paging.limit + 1)
        return page(found, lambda deployment: deployment.name, paging)

    @router.get("/{name}")
    async def show_deployment(name: str, response: Response) -> DeploymentView:
        """One deployment with its replicas."""
        view = service.view(name)
        response.headers["ETag"] = etag(view.revision)
        return view

    @router.patch("/{name}")
    async def change_deployment(
        name: str, change: DeploymentPatch, response: Response, if_match: IfMatch = None
    ) -> DeploymentView:
        """Change replicas, version, selector, targets, or whether an accelerator is required."""
        view = await service.edit(
            name,
            DeploymentChange(
                change.replicas,
                change.all,
                change.version,
                change.select,
                change.require_accelerator,
                None if change.offload is None else tuple(change.offload),
            ),
            if_match,
        )
        response.headers["ETag"] = etag(view.revision)
        return view

    @router.delete("/{name}", status_code=204)
    async def delete_deployment(name: str) -> None:
        """Delete a deployment: its devices unload the model."""
        await service.delete(name)

    both = APIRouter()
    both.include_router(router)
    both.include_router(_profile_routes(service))
    return both


def _profile_routes(service: DeploymentService) -> APIRouter:
    router = APIRouter(prefix="/api/v1/models", tags=["models"])

    @router.get("/{name}/versions/{version}/profiles")
    async def list_profiles(
        name: str, version: str, paging: Annotated[Paging, Depends()]
    ) -> Page[MeasuredView]:
        """How fast a version was and what memory it took, by board, runtime and variant."""
        found = await service.profiles(name, version, paging.after, paging.limit + 1)
        return page(found, lambda view: view.key, paging)

    return router
