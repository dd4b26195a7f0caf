"""Errors as RFC 9457 problem documents: domain errors, bad requests, unknown routes, defects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from shoal_controlplane.errors import (
    ConflictError,
    DomainError,
    InvalidError,
    NotFoundError,
    PreconditionError,
    TooLargeError,
    UnavailableError,
)

MEDIA_TYPE = "application/problem+json"
_STATUS: dict[type[DomainError], HTTPStatus] = {
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    PreconditionError: HTTPStatus.PRECONDITION_FAILED,
    TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    InvalidError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
_MAX_REASONS = 5


class Problem(BaseModel):
    """A problem document. `detail` is one sentence for people; `instance` the path asked for."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document and say so in its OpenAPI document.

    Starlette raises an unexpected exception again after the answer, so that the server logs it
    with its traceback; the answer itself never carries one.
    """
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
    _document(app)


def problem(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A problem document as an answer to `request`."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    body = Problem(title=title, status=status, detail=detail, instance=request.url.path)
    return Response(body.model_dump_json(), status, headers, MEDIA_TYPE)


async def _domain_error(request: Request, error: Exception) -> Response:
    kinds = (_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    status = next(kinds, HTTPStatus.INTERNAL_SERVER_ERROR)
    return problem(request, status, str(error))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
    return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, _reasons(error.errors()))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    status, detail = error.status_code, str(error.detail)
    if status < 400 or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return Response(status_code=status, headers=error.headers)
    if status == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"There is nothing at {request.url.path}: see /docs for what there is."
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible at {request.url.path}."
        return problem(request, status, detail, {"Allow": _allowed(request)})
    return problem(request, status, detail, error.headers)


async def _defect(request: Request, _error: Exception) -> Response:
    return problem(
        request,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "The server failed at this request; its log says why.",
    )


def _allowed(request: Request) -> str:
    """Every method of a path; Starlette names those of the first route with that path only."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    methods = {
        method.upper()
        for template, operations in request.app.openapi()["paths"].items()
        if compile_path(template)[0].match(path)
        for method in operations
    }
    return ", ".join(sorted(methods or {"GET", "HEAD"}))


def _reasons(errors: Sequence[Any]) -> str:
    """What is wrong in one sentence: `body.replicas: Input should be …; query.limit: …`."""
    reasons = []
    for error in errors[:_MAX_REASONS]:
        where = ".".join(str(step)[:64] for step in error["loc"])
        reasons.append(f"{where}: {error['msg']}"[:300])
    more = len(errors) - _MAX_REASONS
    return "; ".join(reasons) + (f"; and {more} more" if more > 0 else "")


def _document(app: FastAPI) -> None:
    generate = app.openapi
    error = {
        "description": "An error, as a problem document (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            schemas["Problem"] = Problem.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for path in schema.get("paths", {}).values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
                    operation["responses"]["default"] = error
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
