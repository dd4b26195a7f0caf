"""`/api/v1/devices`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from shoal_controlplane.api.conditional import IfMatch, etag
from shoal_controlplane.api.paging import Page, Paging, page
from shoal_controlplane.devices.service import DeviceService
from shoal_controlplane.devices.views import DeviceView
from shoal_controlplane.errors import InvalidError
from shoal_shared.status import DeviceCondition

LabelFilter = Annotated[
    list[str],
    Query(description="key=value, repeatable: all must hold", max_length=16),
]


class DevicePatch(BaseModel):
    """What to change. `labels` are merged into the operator's, null deletes one."""

    model_config = ConfigDict(extra="forbid")

    labels: Annotated[dict[str, str | None] | None, Field(max_length=64)] = None
    cordoned: bool | None = None


def parse_labels(texts: list[str]) -> dict[str, str]:
    """`key=value` texts as a dictionary. Raises `InvalidError`."""
    labels: dict[str, str] = {}
    for text in texts:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise InvalidError(f"The label filter {text[:80]!r} is not of the form key=value.")
        labels[key] = value
    return labels


def device_routes(service: DeviceService) -> APIRouter:
    """Routes over a service."""
    router = APIRouter(prefix="/api/v1/devices", tags=["devices"])

    @router.get("")
    async def list_devices(
        paging: Annotated[Paging, Depends()],
        label: LabelFilter = [],  # noqa: B006  FastAPI copies defaults
        state: DeviceCondition | None = None,
    ) -> Page[DeviceView]:
        """Devices by id."""
        found = service.find(parse_labels(label), state, paging.after, paging.limit + 1)
        return page(found, lambda device: device.id, paging)

    @router.get("/{device_id}")
    async def show_device(device_id: str, response: Response) -> DeviceView:
        """One device, with its telemetry and replicas."""
        view = service.view(device_id)
        response.headers["ETag"] = etag(view.revision)
        return view

    @router.patch("/{device_id}")
    async def change_device(
        device_id: str, change: DevicePatch, response: Response, if_match: IfMatch = None
    ) -> DeviceView:
        """Label, cordon or uncordon a device."""
        view = await service.edit(device_id, change.labels, change.cordoned, if_match)
        response.headers["ETag"] = etag(view.revision)
        return view

    @router.delete("/{device_id}", status_code=204)
    async def remove_device(device_id: str) -> None:
        """Forget a device that is offline."""
        await service.remove(device_id)

    return router
