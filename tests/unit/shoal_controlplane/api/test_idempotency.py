from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from sqlmodel import Session, SQLModel, select

from shoal_controlplane.api import problem
from shoal_controlplane.api.idempotency import (
    KEEP_S,
    REPLAYED,
    Idempotency,
    IdempotencyKey,
    IdempotentAnswer,
)
from shoal_controlplane.database import Database
from shoal_controlplane.errors import ConflictError


class Thing(BaseModel):
    name: str


class Made(BaseModel):
    number: int


class Setting:
    """A bare application with one creating route, and a clock that tests move."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 1_000_000.0
        self.made = 0
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.failure: Exception | None = None
        self.app = FastAPI()
        problem.install(self.app)
        idempotency = Idempotency(database, lambda: self.now)

        @self.app.post("/things", status_code=201)
        async def create(request: Request, thing: Thing, key: IdempotencyKey = None) -> Made:
            async def make() -> tuple[int, Made]:
                self.entered.set()
                await self.go_on.wait()
                if self.failure is not None:
                    raise self.failure
                self.made += 1
                return 201, Made(number=self.made)

            return await idempotency.once(key, request, make)  # type: ignore[return-value]

        @self.app.post("/others")
        async def other(request: Request, key: IdempotencyKey = None) -> Response:
            async def make() -> Response:
                self.made += 1
                status = 500 if self.made == 1 else 200
                return Response(b"\x00\xff", status, {"ETag": '"1"'}, "application/x-bytes")

            return await idempotency.once(key, request, make)


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    SQLModel.metadata.create_all(database.engine, [IdempotentAnswer.__table__])  # type: ignore[attr-defined]
    yield Setting(database)
    database.close()


@pytest.fixture
async def client(setting: Setting) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(setting.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def post(client: httpx.AsyncClient, key: str | None, name: str = "a") -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/things", json={"name": name}, headers=headers)


async def test_the_same_key_gives_the_same_answer(client: httpx.AsyncClient) -> None:
    first, again = await post(client, "k"), await post(client, "k")
    assert (first.status_code, first.json()) == (201, {"number": 1})
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert REPLAYED not in first.headers
    assert again.headers[REPLAYED] == "true"


async def test_without_a_key_or_with_another_one_it_runs_again(client: httpx.AsyncClient) -> None:
    numbers = [(await post(client, key)).json()["number"] for key in (None, None, "k", "l")]
    assert numbers == [1, 2, 3, 4]


async def test_another_body_is_a_conflict(client: httpx.AsyncClient, setting: Setting) -> None:
    await post(client, "k")
    answer = await post(client, "k", "b")
    assert answer.status_code == 409
    assert setting.made == 1


async def test_a_key_counts_per_target(client: httpx.AsyncClient, setting: Setting) -> None:
    await post(client, "k")
    await client.post("/things?x=1", json={"name": "a"}, headers={"Idempotency-Key": "k"})
    assert setting.made == 2


async def test_a_second_request_waits_for_the_first(
    client: httpx.AsyncClient, setting: Setting
) -> None:
    setting.go_on.clear()
    requests = [asyncio.create_task(post(client, "k")) for _ in range(5)]
    await setting.entered.wait()
    setting.go_on.set()
    answers = await asyncio.gather(*requests)
    assert setting.made == 1
    assert {answer.content for answer in answers} == {b'{"number":1}'}


async def test_a_failure_is_not_kept(client: httpx.AsyncClient, setting: Setting) -> None:
    for failure, status in ((ConflictError("Not yet."), 409), (RuntimeError("defect"), 500)):
        setting.failure = failure
        assert (await post(client, "k")).status_code == status
    setting.failure = None
    assert (await post(client, "k")).status_code == 201


async def test_an_answer_of_500_is_not_kept_and_bytes_are(client: httpx.AsyncClient) -> None:
    sent = [await client.post("/others", headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in sent] == [500, 200, 200]
    assert sent[2].content == b"\x00\xff"
    assert sent[2].headers["etag"] == '"1"'
    assert sent[2].headers["content-type"] == "application/x-bytes"


async def test_after_a_day_it_runs_again_and_old_rows_go(
    client: httpx.AsyncClient, setting: Setting
) -> None:
    await post(client, "k")
    await post(client, "old")
    setting.now += KEEP_S
    assert (await post(client, "k")).json() == {"number": 3}

    def count(session: Session) -> int:
        return len(session.exec(select(IdempotentAnswer)).all())

    assert await setting.database.run(count) == 1


async def test_a_bad_key_is_refused(client: httpx.AsyncClient, setting: Setting) -> None:
    for key in ("", "x" * 256):
        assert (await post(client, key)).status_code == 422
    assert setting.made == 0
    assert (await post(client, "x" * 255)).status_code == 201
