"""`/artifacts/compiled/{key}`: share compiled code, and find what a sibling shared."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from shoal_controlplane.api.paging import Page, Paging, page
from shoal_controlplane.compiled.service import Compiled, CompiledService
from shoal_controlplane.errors import InvalidError
from shoal_shared.compiled import MAX_FIELD, CompileKey
from shoal_shared.names import NAME_RULE, checked_name

_DIGEST = "^sha256:[0-9a-f]{64}$"
_MAX_SIZE = 2**63 - 1

Key = Annotated[
    str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the key as canonical JSON")
]
Text = Annotated[str, Field(max_length=MAX_FIELD)]


class KeyView(BaseModel):
    """What compiled code depends on."""

    model_config = ConfigDict(extra="forbid")

    digest: str = Field(pattern=_DIGEST, description="Of the model file")
    target: str = Field(min_length=1, max_length=MAX_FIELD, description="Chip")
    provider_set: Text
    runtime: Text
    driver: Text
    settings: Text = Field(description="Digest over options and shapes")


class CompiledPut(BaseModel):
    """Code to share; the artifact was uploaded before."""

    model_config = ConfigDict(extra="forbid")

    key: KeyView
    digest: str = Field(pattern=_DIGEST, description="Of the artifact")
    size: int = Field(ge=1, le=_MAX_SIZE, description="Bytes of the artifact")
    device: str = Field(max_length=64, description=NAME_RULE)


class CompiledView(BaseModel):
    """Shared code; the artifact is at `/artifacts/sha256/…`."""

    key: KeyView
    hex: str
    digest: str
    size: int
    device: str
    created_at: datetime


def compiled_routes(service: CompiledService) -> APIRouter:
    """Routes of the compiled room."""
    router = APIRouter(prefix="/artifacts/compiled", tags=["compiled"])

    @router.get("")
    async def list_compiled(
        digest: Annotated[str, Query(pattern=_DIGEST, description="Of the model file")],
        paging: Annotated[Paging, Depends()],
    ) -> Page[CompiledView]:
        """What was compiled of a model file, in the order of the keys."""
        found = await service.page(digest, paging.after, paging.limit + 1)
        return page([_view(compiled) for compiled in found], lambda c: c.hex, paging)

    @router.get("/{key}")
    async def show_compiled(key: Key) -> CompiledView:
        """What was shared for a key."""
        return _view(await service.get(key))

    @router.put("/{key}")
    async def put_compiled(
        key: Key,
        body: CompiledPut,
        replace: Annotated[bool, Query(description="What is shared is bad")] = False,
    ) -> CompiledView:
        """Share code for a key, unless a device did so before; says what is shared now."""
        try:
            checked_name(body.device, "device")
        except ValueError as error:
            raise InvalidError(f"{error}.") from None
        document = msgspec.convert(body.key.model_dump(), CompileKey)
        shared = await service.put(
            key, document, body.digest, body.size, body.device, replace=replace
        )
        return _view(shared)

    @router.delete("/{key}", status_code=HTTPStatus.NO_CONTENT)
    async def delete_compiled(key: Key) -> None:
        """Drop what was shared for a key; the next device compiles it anew."""
        await service.delete(key)

    return router


def _view(compiled: Compiled) -> CompiledView:
    return CompiledView(
        key=KeyView(**msgspec.to_builtins(compiled.key)),
        hex=compiled.key.hex,
        digest=compiled.digest,
        size=compiled.size,
        device=compiled.device,
        created_at=datetime.fromtimestamp(compiled.created_at, UTC),
    )
