"""`/api/v1/models`: push, list, show and delete models."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from shoal_controlplane.api.conditional import IfMatch, check_if_match, etag
from shoal_controlplane.api.idempotency import Idempotency, IdempotencyKey
from shoal_controlplane.api.paging import Page, Paging, page
from shoal_controlplane.models.card import card_to_dict
from shoal_controlplane.models.goldenfile import NewGolden
from shoal_controlplane.models.push import Push
from shoal_controlplane.models.service import ModelService
from shoal_controlplane.models.variants import MAX_NOTE, MAX_VARIANTS, NewVariant
from shoal_controlplane.models.version import ModelVersion
from shoal_shared.names import NAME_RULE
from shoal_shared.signature import TensorSpec

Digest = Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]


class TensorView(BaseModel):
    """An input or output. `datatype` is an Open Inference Protocol name, -1 any size."""

    name: str
    datatype: str
    shape: list[int]


class SignatureView(BaseModel):
    """Inputs and outputs in their order."""

    inputs: list[TensorView]
    outputs: list[TensorView]


class VariantView(BaseModel):
    """A file that devices may serve in place of the version's own; `target` is the chip that it
    was compiled for, empty for any."""

    name: str
    digest: str
    size_bytes: int
    format: str
    target: str
    note: str
    created_at: datetime


class GoldenView(BaseModel):
    """Golden inputs and outputs. An output may be off by `absolute` + `relative` times its
    largest magnitude."""

    digest: str
    size_bytes: int
    cases: int
    absolute: float
    relative: float


class VersionView(BaseModel):
    """A version of a model. `max_batch` is 0 where it has no batch dimension; `opset` is that of
    ONNX; `revision` is its ETag."""

    name: str
    version: str
    digest: str
    size_bytes: int
    format: str
    platform: str
    signature: SignatureView
    max_batch: int
    opset: int | None
    parameters: int
    card: dict[str, Any] | None
    golden: GoldenView | None
    variants: list[VariantView]
    created_at: datetime
    revision: int


class VersionSummary(BaseModel):
    """A version within its model."""

    version: str
    digest: str
    size_bytes: int
    format: str
    created_at: datetime


class ModelSummary(BaseModel):
    """A model in the list, versions oldest first."""

    name: str
    latest: str
    versions: list[str]


class ModelView(BaseModel):
    """A model, versions oldest first."""

    name: str
    latest: str
    versions: list[VersionSummary]


class VariantPush(BaseModel):
    """A variant to be made of an uploaded artifact."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=64, description=NAME_RULE)
    digest: Digest
    format: Literal["onnx", "tflite"] | None = Field(default=None, description="Else found out")
    filename: str = Field(default="", max_length=255, description="Helps to find out the format")
    target: str = Field(default="", max_length=64, description="Chip that it was compiled for")
    note: str = Field(default="", max_length=MAX_NOTE, description="For people")


class GoldenPush(BaseModel):
    """Golden inputs and outputs in an uploaded artifact; the card gives a tolerance not given."""

    model_config = ConfigDict(extra="forbid")

    digest: Digest
    absolute: float | None = Field(default=None, ge=0)
    relative: float | None = Field(default=None, ge=0)


class ModelPush(BaseModel):
    """A version to be made of an uploaded artifact; without `version` it gets the next number."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=64, description=NAME_RULE)
    digest: Digest
    version: str | None = Field(default=None, max_length=64, description=NAME_RULE)
    format: Literal["onnx", "tflite"] | None = Field(default=None, description="Else found out")
    filename: str = Field(default="", max_length=255, description="Helps to find out the format")
    card: dict[str, Any] | None = Field(default=None, description="The model card, labels inline")
    config: str | None = Field(default=None, description="Text of Triton's config.pbtxt")
    labels: dict[str, list[str]] | None = Field(default=None, description="Class names by output")
    golden: GoldenPush | None = Field(default=None, description="Golden inputs and outputs")
    variants: list[VariantPush] = Field(default=[], max_length=MAX_VARIANTS)


def routes(service: ModelService, idempotency: Idempotency) -> APIRouter:
    """Routes of the models room."""
    router = APIRouter(prefix="/api/v1/models", tags=["models"])

    @router.post(
        "",
        status_code=HTTPStatus.CREATED,
        response_model=VersionView,
        responses={200: {"model": VersionView, "description": "It was there already"}},
    )
    async def push_model(
        push: ModelPush, request: Request, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Make a version of an artifact that was uploaded to `/artifacts/sha256/…` before."""

        async def make() -> Response:
            version, created = await service.push(_push(push))
            location = f"/api/v1/models/{version.name}/versions/{version.version}"
            return Response(
                _view(version).model_dump_json(),
                HTTPStatus.CREATED if created else HTTPStatus.OK,
                {"Location": location, "ETag": etag(version.revision)},
                "application/json",
            )

        return await idempotency.once(idempotency_key, request, make)

    @router.get("")
    async def list_models(paging: Annotated[Paging, Depends()]) -> Page[ModelSummary]:
        """Models by name."""
        models = await service.page(paging.after, paging.limit + 1)
        return page([_summary(versions) for versions in models], lambda m: m.name, paging)

    @router.get("/{name}")
    async def show_model(name: str) -> ModelView:
        """A model with its versions."""
        versions = await service.versions(name)
        return ModelView(
            name=name,
            latest=versions[-1].version,
            versions=[
                VersionSummary(
                    version=version.version,
                    digest=version.digest,
                    size_bytes=version.size,
                    format=version.format,
                    created_at=_time(version.created_at),
                )
                for version in versions
            ],
        )

    @router.get("/{name}/versions/{version}")
    async def show_version(name: str, version: str, response: Response) -> VersionView:
        """A version with its signature and card."""
        found = await service.get(name, version)
        response.headers["ETag"] = etag(found.revision)
        return _view(found)

    @router.delete("/{name}/versions/{version}", status_code=HTTPStatus.NO_CONTENT)
    async def delete_version(name: str, version: str, if_match: IfMatch = None) -> None:
        """Delete a version that no deployment uses."""
        check_if_match(if_match, (await service.get(name, version)).revision)
        await service.delete(name, version)

    @router.post(
        "/{name}/versions/{version}/variants",
        status_code=HTTPStatus.CREATED,
        response_model=VersionView,
        responses={200: {"model": VersionView, "description": "It was there already"}},
    )
    async def add_variant(
        name: str,
        version: str,
        variant: VariantPush,
        request: Request,
        idempotency_key: IdempotencyKey = None,
        if_match: IfMatch = None,
    ) -> Response:
        """Add a file to a version, made of an artifact that was uploaded before."""

        async def make() -> Response:
            check_if_match(if_match, (await service.get(name, version)).revision)
            new = NewVariant(**variant.model_dump())
            changed, created = await service.add_variant(name, version, new)
            return Response(
                _view(changed).model_dump_json(),
                HTTPStatus.CREATED if created else HTTPStatus.OK,
                {"ETag": etag(changed.revision)},
                "application/json",
            )

        return await idempotency.once(idempotency_key, request, make)

    @router.delete(
        "/{name}/versions/{version}/variants/{variant}", status_code=HTTPStatus.NO_CONTENT
    )
    async def remove_variant(
        name: str, version: str, variant: str, if_match: IfMatch = None
    ) -> None:
        """Remove a file from a version; devices that serve it change to another."""
        check_if_match(if_match, (await service.get(name, version)).revision)
        await service.remove_variant(name, version, variant)

    return router


def _push(push: ModelPush) -> Push:
    fields = push.model_dump(exclude={"golden", "variants"})
    return Push(
        **fields,
        golden=NewGolden(**push.golden.model_dump()) if push.golden is not None else None,
        variants=tuple(NewVariant(**variant.model_dump()) for variant in push.variants),
    )


def _summary(versions: list[ModelVersion]) -> ModelSummary:
    return ModelSummary(
        name=versions[0].name,
        latest=versions[-1].version,
        versions=[version.version for version in versions],
    )


def _view(version: ModelVersion) -> VersionView:
    return VersionView(
        name=version.name,
        version=version.version,
        digest=version.digest,
        size_bytes=version.size,
        format=version.format,
        platform=version.platform,
        signature=SignatureView(
            inputs=_tensors(version.signature.inputs), outputs=_tensors(version.signature.outputs)
        ),
        max_batch=version.max_batch,
        opset=version.opset,
        parameters=version.parameters,
        card=card_to_dict(version.card) if version.card else None,
        golden=_golden(version),
        variants=[
            VariantView(
                name=variant.name,
                digest=variant.digest,
                size_bytes=variant.size,
                format=variant.format,
                target=variant.target,
                note=variant.note,
                created_at=_time(variant.created_at),
            )
            for variant in version.variants
        ],
        created_at=_time(version.created_at),
        revision=version.revision,
    )


def _golden(version: ModelVersion) -> GoldenView | None:
    golden = version.golden
    if golden is None:
        return None
    return GoldenView(
        digest=golden.digest,
        size_bytes=golden.size,
        cases=version.golden_cases,
        absolute=golden.absolute,
        relative=golden.relative,
    )


def _tensors(specs: tuple[TensorSpec, ...]) -> list[TensorView]:
    return [
        TensorView(name=spec.name, datatype=spec.datatype, shape=list(spec.shape)) for spec in specs
    ]


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
