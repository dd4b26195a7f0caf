"""Compiled code by its key: the first device of a kind shares it, its siblings download it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from shoal_controlplane.compiled.tables import CompiledRow
from shoal_controlplane.database import Database
from shoal_controlplane.errors import ConflictError, InvalidError, NotFoundError
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.version import ModelVersion
from shoal_shared.compiled import CompileKey

log = structlog.get_logger("shoal.compiled")

MAX_PER_MODEL = 256
"""Entries for one model file; beyond that the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Code that `device` compiled for `key`: an artifact by `digest`, `size` in bytes.
    `created_at` is in Unix seconds."""

    key: CompileKey
    digest: str
    size: int
    device: str
    created_at: float


class Models(Protocol):
    """What this room asks of the models room."""

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of the models."""

    async def all(self) -> Sequence[ModelVersion]:
        """Every version of every model."""


class CompiledService:
    """All compiled code, in the database; its bundles are in the artifact store.

    `start` begins to drop the code of model files that no version has any more.
    """

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        models: Models,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._store = store
        self._models = models
        self._clock = clock
        self._changing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        store.add_room(self._refers_to)
        models.subscribe(self._changed.set)

    async def start(self) -> None:
        self._changed.set()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def get(self, hex_key: str) -> Compiled:
        """Raises `NotFoundError`."""

        def read(session: Session) -> Compiled | None:
            row = session.get(CompiledRow, hex_key)
            return None if row is None else _from_row(row)

        found = await self._database.run(read)
        if found is None:
            raise NotFoundError(f"No device has shared compiled code for the key {hex_key}.")
        return found

    async def page(self, model_digest: str, after: str | None, limit: int) -> list[Compiled]:
        """Up to `limit` entries for a model file, in the order of their keys after `after`."""

        def read(session: Session) -> list[Compiled]:
            rows = (
                select(CompiledRow)
                .where(col(CompiledRow.model_digest) == model_digest)
                .where(col(CompiledRow.hex) > (after or ""))
                .order_by(col(CompiledRow.hex))
                .limit(limit)
            )
            return [_from_row(row) for row in session.exec(rows)]

        return await self._database.run(read)

    async def put(
        self, hex_key: str, key: CompileKey, digest: str, size: int, device: str, *, replace: bool
    ) -> Compiled:
        """Share an uploaded artifact under a key; returns what is shared now.

        What another device shared first stays, and the newcomer's artifact goes, unless
        `replace` says that it is bad. Raises `InvalidError` if `hex_key` is not that of `key` or
        `size` not that of the artifact, `ConflictError` if that or the model file is not here.
        """
        if key.hex != hex_key:
            raise InvalidError(f"The key in the body is {key.hex}, not {hex_key}.")
        new = Compiled(key, digest, size, device, self._clock())

        def write(session: Session) -> tuple[Compiled, list[str]]:
            row = session.get(CompiledRow, hex_key)
            if row is not None and (row.digest == digest or not replace):
                return _from_row(row), [digest]
            dropped = [] if row is None else [row.digest]
            session.merge(_to_row(new))
            rows = (
                select(CompiledRow)
                .where(col(CompiledRow.model_digest) == key.digest)
                .order_by(col(CompiledRow.created_at).desc(), col(CompiledRow.hex))
                .offset(MAX_PER_MODEL)
            )
            for oldest in session.exec(rows).all():
                dropped.append(oldest.digest)
                session.delete(oldest)
            return new, dropped

        async with self._changing:
            if digest not in self._store:
                raise ConflictError(
                    f"The artifact {digest} is not here: PUT it to /artifacts/sha256/ first."
                )
            stored = self._store.path(digest).stat().st_size
            if stored != size:
                raise InvalidError(f"The artifact has {stored} bytes, not {size}.")
            if not await self._is_model(key.digest):
                await self._store.remove(digest)
                raise ConflictError(f"No version of a model has the file {key.digest}.")
            shared, dropped = await self._database.run(write)
            await self._remove_artifacts(dropped)
        return shared

    async def delete(self, hex_key: str) -> None:
        """Raises `NotFoundError`."""
        await self.get(hex_key)
        await self._drop(select(CompiledRow).where(col(CompiledRow.hex) == hex_key))

    async def forget(self, model_digest: str) -> None:
        """Drop all that was compiled of a model file."""
        await self._drop(select(CompiledRow).where(col(CompiledRow.model_digest) == model_digest))

    async def sweep(self) -> None:
        """Drop what was compiled of model files that no version has any more."""

        def read(session: Session) -> list[str]:
            return list(session.exec(select(col(CompiledRow.model_digest)).distinct()))

        for digest in await self._database.run(read):
            if not await self._is_model(digest):
                await self.forget(digest)

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self.sweep()
            except (SQLAlchemyError, OSError) as error:
                # The next change of the models, or the next start, finds it again.
                log.error("compiled code could not be removed", error=str(error))

    async def _drop(self, rows: SelectOfScalar[CompiledRow]) -> None:
        def delete(session: Session) -> list[str]:
            doomed = session.exec(rows).all()
            for row in doomed:
                session.delete(row)
            return [row.digest for row in doomed]

        async with self._changing:
            await self._remove_artifacts(await self._database.run(delete))

    async def _remove_artifacts(self, digests: Sequence[str]) -> None:
        for digest in set(digests):
            await self._store.remove(digest)  # which asks all rooms, this one included

    async def _refers_to(self, digest: str) -> bool:
        def read(session: Session) -> bool:
            rows = select(col(CompiledRow.hex)).where(col(CompiledRow.digest) == digest)
            return session.exec(rows.limit(1)).first() is not None

        return await self._database.run(read)

    async def _is_model(self, digest: str) -> bool:
        return any(digest in version.artifacts for version in await self._models.all())


def _to_row(compiled: Compiled) -> CompiledRow:
    return CompiledRow(
        hex=compiled.key.hex,
        document=msgspec.json.encode(compiled.key).decode(),
        model_digest=compiled.key.digest,
        digest=compiled.digest,
        size=compiled.size,
        device=compiled.device,
        created_at=compiled.created_at,
    )


def _from_row(row: CompiledRow) -> Compiled:
    key = msgspec.json.decode(row.document, type=CompileKey)
    return Compiled(key, row.digest, row.size, row.device, row.created_at)
