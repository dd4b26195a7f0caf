"""`/artifacts/sha256/{hex}`: upload once, download by Range, cache for ever."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from shoal_controlplane.api.problem import problem
from shoal_controlplane.errors import InvalidError, TooLargeError
from shoal_controlplane.models.artifacts import ArtifactStore

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")
_BINARY = "application/octet-stream"

Hex = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the bytes")]


class Artifact(BaseModel):
    """A stored artifact."""

    digest: str
    size_bytes: int


def artifact_routes(store: ArtifactStore) -> APIRouter:
    """Routes of the artifacts; they know nothing of models."""
    router = APIRouter(prefix="/artifacts/sha256", tags=["artifacts"])
    upload = {"requestBody": {"required": True, "content": {_BINARY: {"schema": {}}}}}

    @router.put(
        "/{hex}",
        status_code=HTTPStatus.CREATED,
        responses={200: {"model": Artifact, "description": "It was there already"}},
        openapi_extra=upload,
    )
    async def put_artifact(hex: Hex, request: Request, response: Response) -> Artifact:  # noqa: A002
        """Upload the bytes with this digest, as they are."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > store.limit:
            raise TooLargeError(f"The artifact is larger than {store.limit} bytes.")
        digest = f"sha256:{hex}"
        try:
            created = await store.put(digest, request.stream())
        except ClientDisconnect:
            raise InvalidError("The upload ended before its last byte.") from None
        if not created:
            response.status_code = HTTPStatus.OK
        return Artifact(digest=digest, size_bytes=store.path(digest).stat().st_size)

    @router.head("/{hex}", response_class=FileResponse)
    @router.get(
        "/{hex}",
        response_class=FileResponse,
        responses={200: {"content": {_BINARY: {}}}, 206: {"content": {_BINARY: {}}}},
    )
    async def get_artifact(hex: Hex, request: Request) -> Response:  # noqa: A002
        """Download an artifact, whole or one `Range` of it; it never changes."""
        path = store.path(f"sha256:{hex}")
        tag, stat = f'"sha256:{hex}"', path.stat()
        if request.headers.get("if-range", tag) == tag:
            wanted = request.headers.get("range")
            if wanted is not None and not _satisfiable(wanted, stat.st_size):
                return problem(
                    request,
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                    f"The artifact has {stat.st_size} bytes; nothing of it is in that range.",
                    {"content-range": f"bytes */{stat.st_size}"},
                )
        headers = {"etag": tag, "cache-control": "public, max-age=31536000, immutable"}
        return FileResponse(path, headers=headers, media_type=_BINARY, stat_result=stat)

    return router


def _satisfiable(wanted: str, size: int) -> bool:
    """Whether a Range lies within `size` bytes. Raises `InvalidError` for all but one range."""
    match = _RANGE.fullmatch(wanted.strip())
    if match is None or (match[1] and match[2] and int(match[1]) > int(match[2])):
        raise InvalidError("Range must be one range of bytes, such as bytes=0-1023.")
    return int(match[1]) < size if match[1] else int(match[3]) > 0 and size > 0
