"""Creations that may be sent twice: the header `Idempotency-Key` gives the first answer again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Header, Request, Response
from pydantic import BaseModel
from sqlmodel import Field, Session, SQLModel, col, delete

from shoal_controlplane.database import Database
from shoal_controlplane.errors import ConflictError, InvalidError

KEEP_S = 24 * 3600
MAX_KEY = 255
REPLAYED = "Idempotent-Replayed"
"""Header of an answer that was stored, not made."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=MAX_KEY,
        description="Any unique text: the same key and body within 24 h get the same answer",
    ),
]
Made = Response | tuple[int, BaseModel]


class IdempotentAnswer(SQLModel, table=True):
    """An answer under the digest of its key, method and target; `headers` is a JSON object."""

    __tablename__ = "idempotency"

    id: str = Field(primary_key=True, max_length=64)
    body_digest: str = Field(max_length=64)
    status: int
    headers: str
    body: bytes
    created_at: float = Field(index=True)


class Idempotency:
    """Runs a creation once per key, method and target.

    Only answers that were given are kept: after an exception or a status of 500 and above the
    same key runs again. `clock` gives Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._running: dict[str, tuple[asyncio.Lock, int]] = {}

    async def once(
        self, key: str | None, request: Request, make: Callable[[], Awaitable[Made]]
    ) -> Response:
        """Answer with what `make` returns, or with what it returned before for this key.

        Without a key, `make` always runs. A second request waits for a first one that is still
        running. Raises `ConflictError` if the key came with another body before, `InvalidError`
        for an empty or overlong key, and whatever `make` raises.
        """
        if key is None:
            return _response(await make())
        if not 1 <= len(key) <= MAX_KEY:
            raise InvalidError(f"Idempotency-Key must have 1 to {MAX_KEY} characters.")
        target = f"{request.method}\n{request.url.path}?{request.url.query}\n{key}"
        entry = hashlib.sha256(target.encode()).hexdigest()
        body_digest = hashlib.sha256(await request.body()).hexdigest()
        async with self._alone(entry):
            earlier = await self._database.run(lambda session: self._find(session, entry))
            if earlier is not None:
                if earlier.body_digest != body_digest:
                    raise ConflictError(
                        "This Idempotency-Key was used with another body: choose a new key."
                    )
                headers = json.loads(earlier.headers) | {REPLAYED: "true"}
                return Response(earlier.body, earlier.status, headers)
            response = _response(await make())
            if response.status_code < 500:
                answer = _answer(entry, body_digest, response, self._clock())
                await self._database.run(lambda session: self._store(session, answer))
            return response

    @asynccontextmanager
    async def _alone(self, entry: str) -> AsyncIterator[None]:
        lock, users = self._running.get(entry, (asyncio.Lock(), 0))
        self._running[entry] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._running[entry][1] - 1
            if users:
                self._running[entry] = (lock, users)
            else:
                del self._running[entry]

    def _find(self, session: Session, entry: str) -> IdempotentAnswer | None:
        found = session.get(IdempotentAnswer, entry)
        fresh = found is not None and found.created_at > self._clock() - KEEP_S
        return found if fresh else None

    def _store(self, session: Session, answer: IdempotentAnswer) -> None:
        old = col(IdempotentAnswer.created_at) <= answer.created_at - KEEP_S
        session.exec(delete(IdempotentAnswer).where(old))
        session.merge(answer)


def _response(made: Made) -> Response:
    if isinstance(made, Response):
        return made
    status, model = made
    return Response(model.model_dump_json(), status, media_type="application/json")


def _answer(entry: str, body_digest: str, response: Response, now: float) -> IdempotentAnswer:
    headers = {k: v for k, v in response.headers.items() if k != "content-length"}
    return IdempotentAnswer(
        id=entry,
        body_digest=body_digest,
        status=response.status_code,
        headers=json.dumps(headers),
        body=bytes(response.body),
        created_at=now,
    )
