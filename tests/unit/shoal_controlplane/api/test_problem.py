from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field

from shoal_controlplane import errors
from shoal_controlplane.api import problem


class SpecialConflictError(errors.ConflictError):
    """A room's own kind."""


class Body(BaseModel):
    replicas: int = Field(ge=1)


RAISED: dict[str, tuple[Exception, int]] = {
    "missing": (errors.NotFoundError("No such model."), 404),
    "conflict": (errors.ConflictError("It is in use."), 409),
    "special": (SpecialConflictError("It is in use there."), 409),
    "changed": (errors.PreconditionError("It was changed."), 412),
    "large": (errors.TooLargeError("Too large."), 413),
    "invalid": (errors.InvalidError("It is no model."), 422),
    "later": (errors.UnavailableError("Not now."), 503),
}


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    problem.install(app)

    @app.get("/raise/{what}")
    async def fail(what: str) -> None:
        raise RAISED[what][0]

    @app.post("/body")
    async def post(body: Body) -> Body:
        return body

    router = APIRouter(prefix="/things")

    @router.post("")
    async def create() -> None: ...

    @router.get("")
    async def show() -> None: ...

    app.include_router(router)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("what", RAISED)
async def test_domain_errors_become_problems(client: httpx.AsyncClient, what: str) -> None:
    error, status = RAISED[what]
    answer = await client.get(f"/raise/{what}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": answer.json()["title"],
        "status": status,
        "detail": str(error),
        "instance": f"/raise/{what}",
    }
    assert answer.json()["title"]


async def test_an_unexpected_exception_shows_nothing_of_itself(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    answer = await client.get("/raise/unheard-of")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "KeyError" not in answer.text
    assert "Traceback" not in answer.text
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as raising:
        with pytest.raises(KeyError):  # what the server sees, and logs
            await raising.get("/raise/unheard-of")


@pytest.mark.parametrize("body", [b"{", b"", b'{"replicas": 0}', b"[]", b'{"replicas": "\xff"}'])
async def test_a_bad_body_names_what_is_wrong(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/body", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


async def test_a_bad_value_names_its_place(client: httpx.AsyncClient) -> None:
    answer = await client.post("/body", json={"replicas": 0})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("body.replicas: ")


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    missing = await client.get("/nowhere")
    assert (missing.status_code, missing.json()["status"]) == (404, 404)
    assert "/nowhere" in missing.json()["detail"]
    wrong = await client.delete("/body")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.headers["content-type"] == "application/problem+json"
    assert (await client.put("/things")).headers["allow"] == "GET, POST"
    assert (await client.put("/openapi.json")).headers["allow"] == "GET, HEAD"


async def test_openapi_documents_problems_only(client: httpx.AsyncClient) -> None:
    first = (await client.get("/openapi.json")).json()
    again = (await client.get("/openapi.json")).json()
    assert first == again
    responses = first["paths"]["/body"]["post"]["responses"]
    assert set(responses) == {"200", "default"}
    assert set(responses["default"]["content"]) == {"application/problem+json"}
    assert "HTTPValidationError" not in first["components"]["schemas"]
    assert "Problem" in first["components"]["schemas"]
