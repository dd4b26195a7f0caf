"""Models: versions of checked files in the artifact store; only their variants ever change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from typing import TypeVar

from sqlmodel import Session, select

from shoal_controlplane.database import Database
from shoal_controlplane.errors import ConflictError, InvalidError, NotFoundError
from shoal_controlplane.gateway.table import version_key
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.inspect import inspect
from shoal_controlplane.models.push import Inspector, Push, PushChecker, is_same
from shoal_controlplane.models.tables import ModelVariantRow, ModelVersionRow
from shoal_controlplane.models.variants import NewVariant, Variant, check_names
from shoal_controlplane.models.version import (
    ModelVersion,
    by_name,
    from_row,
    to_row,
    variant_rows,
)
from shoal_shared.names import is_name

T = TypeVar("T")

Index = dict[str, dict[str, ModelVersion]]
InUse = Callable[[str, str], Awaitable[str | None]]
"""Name of a deployment that uses a model's version, or None."""


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
        self._checker = PushChecker(store, inspector, clock)
        self._index: Index | None = None
        self._changing = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []
        store.add_room(self._refers_to)

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
        file is no model or what came with it does not fit, `ConflictError` if an artifact was
        not uploaded or the version exists with other content.
        """
        self._checker.check_names(push)
        existing = await self._find(push)
        if existing is not None:
            return self._checker.same(existing, push), False
        made = await self._checked(push.artifacts, self._checker.version(push))
        async with self._changing:
            existing = await self._find(push)
            if existing is not None:  # made by another request while this one was checked
                return self._checker.same(existing, push), False
            for digest in push.artifacts:
                self._checker.require(digest)
            index = await self._loaded()
            version = push.version or _next_number(index.get(push.name, {}))
            made = replace(made, version=version)

            def store(session: Session) -> None:
                session.add(to_row(made))
                session.flush()  # variants refer to the row of their version
                session.add_all(variant_rows(made))

            await self._database.run(store)
            index.setdefault(made.name, {})[made.version] = made
        self._notify()
        return made, True

    async def add_variant(
        self, name: str, version: str, new: NewVariant
    ) -> tuple[ModelVersion, bool]:
        """Add a file to a version; the version, and whether the file is new to it.

        Raises `NotFoundError`, `InvalidError` if the file is no model or does not fit the
        version, `ConflictError` if it was not uploaded or the name is taken.
        """
        check_names([new])
        reference = await self.get(name, version)
        if _has(reference, new):
            return reference, False
        checking = self._checker.variant(new, reference.signature)
        variant = await self._checked({new.digest}, checking)
        async with self._changing:
            current = await self.get(name, version)
            if current.digest != reference.digest:
                raise ConflictError(f"{name}:{version} was made anew meanwhile: try again.")
            if _has(current, new):
                return current, False
            check_names([new], [known.name for known in current.variants])
            self._checker.require(new.digest)
            changed = await self._change_variants(current, (*current.variants, variant))
        self._notify()
        return changed, True

    async def remove_variant(self, name: str, version: str, variant: str) -> ModelVersion:
        """Remove a file from a version, and its artifact if nothing else refers to it; devices
        that serve it change to another. Raises `NotFoundError`."""
        async with self._changing:
            current = await self.get(name, version)
            doomed = next((known for known in current.variants if known.name == variant), None)
            if doomed is None:
                names = ", ".join(known.name for known in current.variants) or "none"
                raise NotFoundError(
                    f"{name}:{version} has no variant '{variant[:64]}', only {names}."
                )
            kept = tuple(known for known in current.variants if known is not doomed)
            changed = await self._change_variants(current, kept)
            await self._store.remove(doomed.digest)
        self._notify()
        return changed

    async def delete(self, name: str, version: str) -> None:
        """Delete a version, and its artifacts if nothing else refers to them.

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
            for digest in doomed.artifacts:
                await self._store.remove(digest)
        self._notify()

    async def _checked(self, artifacts: Collection[str], checking: Awaitable[T]) -> T:
        """What a check gives; if it fails, artifacts that nothing refers to are dropped."""
        try:
            return await checking
        except InvalidError:
            async with self._changing:
                for digest in artifacts:
                    await self._store.remove(digest)
            raise

    async def _change_variants(
        self, version: ModelVersion, variants: Iterable[Variant]
    ) -> ModelVersion:
        """Store other variants of a version; the version as it is now."""
        changed = replace(version, variants=by_name(variants), revision=version.revision + 1)
        key = (version.name, version.version)

        def store(session: Session) -> None:
            session.merge(to_row(changed))
            rows = {row.variant: row for row in variant_rows(changed)}
            for variant in {known.name for known in version.variants} - rows.keys():
                session.delete(session.get_one(ModelVariantRow, (*key, variant)))
            for row in rows.values():
                session.merge(row)

        await self._database.run(store)
        (await self._loaded())[version.name][version.version] = changed
        return changed

    async def _find(self, push: Push) -> ModelVersion | None:
        if push.version is None:
            return None
        return (await self._loaded()).get(push.name, {}).get(push.version)

    async def _refers_to(self, digest: str) -> bool:
        return any(digest in version.artifacts for version in await self.all())

    async def _loaded(self) -> Index:
        if self._index is None:

            def load(session: Session) -> Index:
                index: Index = {}
                variants: dict[tuple[str, str], list[ModelVariantRow]] = {}
                for variant in session.exec(select(ModelVariantRow)):
                    variants.setdefault((variant.name, variant.version), []).append(variant)
                for row in session.exec(select(ModelVersionRow)):
                    own = variants.get((row.name, row.version), [])
                    index.setdefault(row.name, {})[row.version] = from_row(row, own)
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


def _has(version: ModelVersion, new: NewVariant) -> bool:
    """Whether a version has that variant. Raises `ConflictError` if another one has its name."""
    known = {variant.name: variant for variant in version.variants}
    if new.name in known and not is_same(known, new):
        raise ConflictError(
            f"{version.name}:{version.version} has another variant '{new.name}': remove it first, "
            "or take another name."
        )
    return new.name in known
