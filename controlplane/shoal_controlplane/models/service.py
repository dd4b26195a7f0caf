"""Models: versions that never change, each a checked file in the artifact store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from shoal_controlplane.database import Database
from shoal_controlplane.errors import ConflictError, InvalidError, NotFoundError
from shoal_controlplane.gateway.table import version_key
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.findings import Findings
from shoal_controlplane.models.inspect import format_of, inspect
from shoal_controlplane.models.tables import ModelVersionRow
from shoal_controlplane.models.triton import TritonConfig, check_config, parse_config
from shoal_controlplane.models.version import (
    ModelVersion,
    checked_card,
    checked_labels,
    from_row,
    to_row,
)
from shoal_shared.names import checked_name, is_name
from shoal_shared.signature import ModelSignature

DEFAULT_MAX_BATCH = 64
"""Largest batch of a model with a batch dimension whose config gives none."""

Index = dict[str, dict[str, ModelVersion]]
InUse = Callable[[str, str], Awaitable[str | None]]
"""Name of a deployment that uses a model's version, or None."""
Inspector = Callable[[Path, str], Awaitable[Findings]]
"""Checks a model file of a format, as `inspect` does."""


@dataclass(frozen=True, slots=True)
class Push:
    """A version to be made of an artifact that was uploaded before.

    Without `version` it gets the next number. `format` and `filename` help to tell the format;
    `config` is the text of a `config.pbtxt`, `card` a card as `card_to_dict` writes it, `labels`
    class names per output.
    """

    name: str
    digest: str
    version: str | None = None
    format: str | None = None
    filename: str = ""
    card: dict[str, Any] | None = None
    config: str | None = None
    labels: dict[str, list[str]] | None = None


class ModelService:
    """All models, held in memory and written through to the database."""

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        in_use: InUse,
        clock: Callable[[], float] = time.time,
        inspector: Inspector = inspect,
    ) -> None:
        self._database = database
        self._store = store
        self._in_use = in_use
        self._clock = clock
        self._inspect = inspector
        self._index: Index | None = None
        self._changing = asyncio.Lock()
        self._checking = asyncio.Semaphore(2)
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the event loop after every change of the models."""
        self._listeners.append(listener)

    async def get(self, name: str, version: str | None = None) -> ModelVersion:
        """A version, the newest one by default. Raises `NotFoundError`."""
        versions = (await self._loaded()).get(name)
        if not versions:
            raise NotFoundError(f"There is no model '{name[:64]}': see `shoal model list`.")
        found = versions.get(version) if version else _newest(versions)
        if found is None:
            raise NotFoundError(
                f"The model '{name}' has no version '{str(version)[:64]}', only "
                f"{', '.join(sorted(versions, key=version_key))[:200]}."
            )
        return found

    async def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, oldest first. Raises `NotFoundError`."""
        await self.get(name)
        return _ordered((await self._loaded())[name])

    async def page(self, after: str | None, limit: int) -> list[list[ModelVersion]]:
        """Up to `limit` models whose name is greater than `after`, each with its versions."""
        index = await self._loaded()
        names = sorted(name for name in index if after is None or name > after)
        return [_ordered(index[name]) for name in names[:limit]]

    async def all(self) -> tuple[ModelVersion, ...]:
        """Every version of every model."""
        return tuple(v for versions in (await self._loaded()).values() for v in versions.values())

    async def push(self, push: Push) -> tuple[ModelVersion, bool]:
        """Make a version; whether it is new.

        An existing version with the same content is given back. Raises `InvalidError` if the
        file is no model or what came with it does not fit, `ConflictError` if the artifact was
        not uploaded or the version exists with other content.
        """
        try:
            checked_name(push.name, "model")
            checked_name("1" if push.version is None else push.version, "version")
        except ValueError as error:
            raise InvalidError(f"{error}.") from None
        config = parse_config(push.config) if push.config is not None else TritonConfig()
        existing = await self._find(push)
        if existing is not None:
            return self._same(existing, push, config), False
        made = await self._checked(push, config)
        async with self._changing:
            existing = await self._find(push)
            if existing is not None:  # made by another request while this one was checked
                return self._same(existing, push, config), False
            self._require_artifact(push.digest)
            index = await self._loaded()
            row = to_row(made)
            row.version = push.version or _next_number(index.get(push.name, {}))
            made = from_row(row)
            await self._database.run(lambda session: session.add(row))
            index.setdefault(made.name, {})[made.version] = made
        self._notify()
        return made, True

    async def delete(self, name: str, version: str) -> None:
        """Delete a version, and its artifact if nothing else refers to it.

        Raises `NotFoundError`, and `ConflictError` while a deployment uses it.
        """
        async with self._changing:
            doomed = await self.get(name, version)
            deployment = await self._in_use(name, version)
            if deployment is not None:
                raise ConflictError(
                    f"The deployment '{deployment}' uses {name}:{version}: delete that first."
                )

            def remove(session: Session) -> None:
                row = session.get(ModelVersionRow, (name, version))
                if row is not None:
                    session.delete(row)

            await self._database.run(remove)
            index = await self._loaded()
            del index[name][version]
            if not index[name]:
                del index[name]
            await self._drop_artifact(doomed.digest)
        self._notify()

    async def _checked(self, push: Push, config: TritonConfig) -> ModelVersion:
        """The version that `push` asks for, inspected, still without its number."""
        path = self._require_artifact(push.digest)
        size = path.stat().st_size
        try:
            format_name = push.format or format_of(path, push.filename)
            async with self._checking:
                findings = await self._inspect(path, format_name)
        except InvalidError:
            async with self._changing:
                await self._drop_artifact(push.digest)
            raise
        signature = findings.signature
        check_config(config, push.name, signature)
        return ModelVersion(
            name=push.name,
            version="",
            digest=push.digest,
            size=size,
            format=format_name,
            signature=signature,
            max_batch=_max_batch(config, signature),
            parameters=findings.parameters,
            opset=findings.opset,
            created_at=self._clock(),
            card=checked_card(push.card, signature) if push.card is not None else None,
            given_labels=checked_labels(push.labels or {}, signature),
        )

    async def _find(self, push: Push) -> ModelVersion | None:
        if push.version is None:
            return None
        return (await self._loaded()).get(push.name, {}).get(push.version)

    def _same(self, existing: ModelVersion, push: Push, config: TritonConfig) -> ModelVersion:
        """`existing`, if all that `push` gives is already what it says."""
        signature = existing.signature
        check_config(config, push.name, signature)
        differs = {
            "file": push.digest != existing.digest,
            "card": push.card is not None and checked_card(push.card, signature) != existing.card,
            "labels": push.labels is not None
            and checked_labels(push.labels, signature) != existing.given_labels,
            "config": push.config is not None
            and _max_batch(config, signature) != existing.max_batch,
        }
        for what, other in differs.items():
            if other:
                raise ConflictError(
                    f"{existing.name}:{existing.version} exists with another {what}, and versions "
                    "never change: push it as a new version."
                )
        return existing

    def _require_artifact(self, digest: str) -> Path:
        if digest not in self._store:
            raise ConflictError(
                f"The artifact {digest} is not here: PUT it to /artifacts/sha256/ first."
            )
        return self._store.path(digest)

    async def _drop_artifact(self, digest: str) -> None:
        if all(version.digest != digest for version in await self.all()):
            await self._store.remove(digest)

    async def _loaded(self) -> Index:
        if self._index is None:

            def load(session: Session) -> Index:
                index: Index = {}
                for row in session.exec(select(ModelVersionRow)):
                    index.setdefault(row.name, {})[row.version] = from_row(row)
                return index

            loaded = await self._database.run(load)
            if self._index is None:  # else another caller was first, and may have changed it
                self._index = loaded
        return self._index

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


def _ordered(versions: dict[str, ModelVersion]) -> list[ModelVersion]:
    return [versions[number] for number in sorted(versions, key=version_key)]


def _newest(versions: dict[str, ModelVersion]) -> ModelVersion:
    return versions[max(versions, key=version_key)]


def _next_number(versions: dict[str, ModelVersion]) -> str:
    number = str(1 + max((int(v) for v in versions if v.isdecimal()), default=0))
    if not is_name(number):
        raise ConflictError("No number comes after the newest version: give the version.")
    return number


def _max_batch(config: TritonConfig, signature: ModelSignature) -> int:
    if config.max_batch_size is not None:
        return config.max_batch_size
    return DEFAULT_MAX_BATCH if signature.batchable else 0
