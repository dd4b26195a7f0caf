"""`/api/v1/targets`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from shoal_controlplane.api.conditional import IfMatch, etag
from shoal_controlplane.api.idempotency import Idempotency, IdempotencyKey
from shoal_controlplane.api.paging import Page, Paging, page
from shoal_controlplane.targets.manual import ManualService
from shoal_controlplane.targets.manual_routes import MAX_REPLICAS, manual_routes
from shoal_controlplane.targets.service import NewTarget, TargetChange, TargetService
from shoal_controlplane.targets.views import CheckView, TargetCondition, TargetView

PREFIX = "/api/v1/targets"

Name = Annotated[str, Field(min_length=1, max_length=64)]
Kind = Annotated[str, Field(min_length=1, max_length=16)]
Options = Annotated[dict[str, Any], Field(max_length=64)]
Credential = Annotated[str, Field(max_length=4200)]
Money = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Replicas = Annotated[int, Field(ge=1, le=MAX_REPLICAS)]


class TargetRequest(BaseModel):
    """What to add. `options` are the kind's; `credential` is a reference, env:NAME, file:/path or
    identity, never a secret; prices and `cap_per_hour` (null without a cap) in any currency that
    is the same for all targets; `max_replicas` bounds each model."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    kind: Kind
    options: Options = {}
    credential: Credential = ""
    price_per_replica_hour: Money = 0.0
    price_per_request: Money = 0.0
    cap_per_hour: Money | None = None
    max_replicas: Replicas = 1


class TargetPatch(BaseModel):
    """What to change. `options` are merged into the present ones, null takes one back to its
    default; `cap_per_hour` null takes the cap away."""

    model_config = ConfigDict(extra="forbid")

    options: Options | None = None
    credential: Credential | None = None
    price_per_replica_hour: Money | None = None
    price_per_request: Money | None = None
    cap_per_hour: Money | None = None
    max_replicas: Replicas | None = None


def target_routes(
    service: TargetService, manual: ManualService, idempotency: Idempotency
) -> APIRouter:
    """Routes over the services."""
    router = APIRouter(prefix=PREFIX, tags=["targets"])

    @router.post("", status_code=201, response_model=TargetView)
    async def add_target(
        request: Request, new: TargetRequest, key: IdempotencyKey = None
    ) -> Response:
        """Add a place that takes what the devices cannot. Nothing is reached yet."""

        async def make() -> Response:
            view = await service.add(NewTarget(**dict(new)))
            headers = {"Location": f"{PREFIX}/{view.name}", "ETag": etag(view.revision)}
            return JSONResponse(view.model_dump(mode="json"), 201, headers)

        return await idempotency.once(key, request, make)

    @router.get("")
    async def list_targets(
        paging: Annotated[Paging, Depends()],
        kind: Annotated[str | None, Query(max_length=16)] = None,
        state: TargetCondition | None = None,
    ) -> Page[TargetView]:
        """Targets by name."""
        found = service.find(kind, state, paging.after, paging.limit + 1)
        return page(found, lambda target: target.name, paging)

    @router.get("/{name}")
    async def show_target(name: str, response: Response) -> TargetView:
        """One target with the models on it."""
        view = service.view(name)
        response.headers["ETag"] = etag(view.revision)
        return view

    @router.patch("/{name}")
    async def change_target(
        name: str, change: TargetPatch, response: Response, if_match: IfMatch = None
    ) -> TargetView:
        """Change options, credential, prices, cap or limit."""
        given = dict(change)
        uncapped = "cap_per_hour" in change.model_fields_set and change.cap_per_hour is None
        view = await service.edit(name, TargetChange(**given, uncapped=uncapped), if_match)
        response.headers["ETag"] = etag(view.revision)
        return view

    @router.delete("/{name}", status_code=204)
    async def remove_target(name: str) -> None:
        """Remove a target: what Shoal put there is taken away."""
        await service.remove(name)

    @router.post("/{name}/test")
    async def test_target(name: str) -> CheckView:
        """Reach a target with its credentials, for up to 10 seconds, and say what it is or what
        is wrong."""
        return await manual.test(name)

    router.include_router(manual_routes(manual))
    return router
