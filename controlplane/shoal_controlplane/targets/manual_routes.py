"""`/api/v1/targets/{name}/models/…`: models on targets, by hand."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.targets.manual import ManualService
from shoal_controlplane.targets.views import TargetModelView
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, OipError
from shoal_shared.tensors import TensorError

PATH = "/{name}/models/{model}/{version}"
MAX_REPLICAS = 1000
_BINARY = "application/octet-stream"


class ScaleRequest(BaseModel):
    """How many replicas, 0 included; null lets their number follow the need."""

    model_config = ConfigDict(extra="forbid")

    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None


def manual_routes(service: ManualService) -> APIRouter:
    """Routes beneath those of targets."""
    router = APIRouter()

    @router.get(PATH)
    async def show_model(name: str, model: str, version: str) -> TargetModelView:
        """A model on a target."""
        return service.model(name, (model, version))

    @router.put(PATH)
    async def place_model(name: str, model: str, version: str) -> TargetModelView:
        """Have a model on a target whatever deployments say."""
        return await service.place(name, (model, version))

    @router.patch(PATH)
    async def scale_model(
        name: str, model: str, version: str, scale: ScaleRequest
    ) -> TargetModelView:
        """Fix the number of its replicas, or let it follow the need again."""
        return await service.scale(name, (model, version), scale.replicas)

    @router.delete(PATH, status_code=204)
    async def take_model_away(name: str, model: str, version: str) -> None:
        """Undo what was done by hand: the model goes, unless a deployment wants it there."""
        await service.take_away(name, (model, version))

    @router.post(
        f"{PATH}/infer",
        response_class=Response,
        responses={200: {"content": {"application/json": {}, _BINARY: {}}}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    _BINARY: {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
    )
    async def ask_model(
        name: str,
        model: str,
        version: str,
        request: Request,
        timeout_ms: Annotated[int, Query(ge=1, le=3_600_000)] = 30_000,
    ) -> Response:
        """Have the target answer a request of the Open Inference Protocol, JSON or binary, whatever
        the devices do. The reply's parameters are `target` and `latency_ms`."""
        asked = _decoded(await request.body(), request.headers.get(oip.HEADER_LENGTH))
        reply = await service.infer(name, (model, version), asked, timeout_ms / 1e3)
        return _encoded(asked, reply)

    return router


def _decoded(body: bytes, header_length: str | None) -> InferRequest:
    if header_length is not None and not (header_length.isdecimal() and len(header_length) < 12):
        raise InvalidError(f"{oip.HEADER_LENGTH} must be a number of bytes.")
    try:
        return oip.decode_request(body, int(header_length) if header_length else None)
    except OipError as error:
        raise InvalidError(f"The request cannot be read: {error}.") from None


def _encoded(asked: InferRequest, reply: InferReply) -> Response:
    default = bool(asked.parameters.get("binary_data_output", False))
    wanted = {output.name: output.binary for output in asked.outputs}
    binary = [
        default if wanted.get(tensor.name) is None else bool(wanted[tensor.name])
        for tensor in reply.outputs
    ]
    try:
        buffers, length = oip.encode_reply(reply, binary)
    except TensorError as error:
        raise InvalidError(f"The reply cannot be sent so: {error}.") from None
    body = b"".join(buffers)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={oip.HEADER_LENGTH: str(length)}, media_type=_BINARY)
