"""Compiled code, made once per kind of device: here, or downloaded from a sibling."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path

import msgspec

from shoal_agent.connectivity.backoff import Backoff
from shoal_agent.service.logs import fields
from shoal_agent.serving.compiled import CompiledCode
from shoal_agent.updates.bundle import BundleError, pack
from shoal_agent.updates.codefolders import HERE, CodeFolders, Manifest
from shoal_agent.updates.codeserver import CodeServer, SharedCode, ShareError, in_thread
from shoal_agent.updates.fetch import MARGIN_BYTES, FetchError, HttpArtifacts
from shoal_agent.updates.store import ArtifactStore, is_digest
from shoal_shared.compiled import MAX_FIELD, CompileKey

log = logging.getLogger("compiled")

DOWNLOAD_S = 600.0
"""After that long, compiling is the better idea."""

_MAX_BUNDLE = 2 * 1024**3
_UPLOADS = 5
_TRANSIT = "transit"


class SharedCompiledCode:
    """Code in folders below `folder`, shared through the control plane at `server`.

    Without a server, for a board whose chip is not known and for keys that no server takes, it
    stays on this device. What is compiled here is uploaded in the background; `close` ends that.
    """

    def __init__(
        self,
        folder: Path,
        server: str,
        device: str,
        *,
        rng: random.Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        margin_bytes: int = MARGIN_BYTES,
    ) -> None:
        self._folders = CodeFolders(folder)
        # A store of its own: where there is no room, no model's file makes way.
        self._transit = ArtifactStore(folder / _TRANSIT)
        self._artifacts = HttpArtifacts(server, self._transit, rng=rng, margin_bytes=margin_bytes)
        self._server = CodeServer(server, device) if server else None
        self._rng = rng
        self._sleep = sleep
        self._margin_bytes = margin_bytes
        self._changing = asyncio.Lock()
        self._used: set[CompileKey] = set()
        self._uploads: dict[CompileKey, asyncio.Task[None]] = {}

    async def obtain(self, key: CompileKey) -> tuple[Path | None, str]:
        """A folder whose content was just verified, and where that is from: "here", "shared"
        (downloaded now or before), or "" for an empty one; None if there is no place for it.

        A server that cannot be reached costs at most seconds.
        """
        self._used.add(key)
        async with self._changing:
            try:
                manifest = await in_thread(partial(self._folders.verified, key))
            except OSError as error:
                log.error("no place for compiled code", extra=fields(error=error))
                return None, ""
            if not manifest.origin and self._shares(key):
                manifest = await self._fetch(manifest)
        if manifest.origin == HERE and not manifest.offered:
            self._start_upload(key)
        return self._folders.path(key), manifest.origin

    async def offer(self, key: CompileKey) -> None:
        """Keep what was compiled into the folder of a key, and share it in the background."""
        await self._stop_upload(key)
        async with self._changing:
            try:
                await in_thread(partial(self._folders.take, key))
            except (OSError, BundleError) as error:
                log.warning("compiled code is not kept", extra=_of(key, error=error))
                return
        self._start_upload(key)

    async def reject(self, key: CompileKey, reason: str) -> None:
        """Empty the folder of a key, whose code turned out bad. If it is the shared code, it is
        not downloaded again, and the next offer replaces it."""
        await self._stop_upload(key)
        log.warning("compiled code was rejected", extra=_of(key, reason=reason))

        def empty() -> None:
            manifest = self._folders.read(key)
            self._folders.empty(manifest, rejected=manifest.bundle)

        async with self._changing:
            try:
                await in_thread(empty)
            except OSError as error:
                log.error("compiled code is not removed", extra=_of(key, error=error))

    async def collect(self, keep: Collection[str]) -> None:
        """Remove code of model files whose digests are not in `keep`, and of older versions."""
        for key in [k for k in self._uploads if k.digest not in keep]:
            await self._stop_upload(key)
        busy = {key.hex for key in self._uploads}
        collect = partial(self._folders.collect, keep, self._used, busy)
        async with self._changing:
            try:
                removed = await in_thread(collect)
            except OSError as error:
                log.error("compiled code is not removed", extra=fields(error=error))
                return
        if removed:
            log.info("compiled code removed", extra=fields(entries=len(removed)))

    async def close(self) -> None:
        """End uploads; what is not shared yet is offered again after the next start."""
        for key in list(self._uploads):
            await self._stop_upload(key)

    def _shares(self, key: CompileKey) -> bool:
        values: list[str] = list(msgspec.structs.astuple(key))
        fit = all(len(value) <= MAX_FIELD for value in values)
        return self._server is not None and bool(key.target) and fit

    async def _fetch(self, empty: Manifest) -> Manifest:
        """Download what a sibling compiled; `empty` again where that is not to be had."""
        key = empty.key
        try:
            shared = await self._lookup(key)
            if shared is None or shared.digest == empty.rejected:
                return empty
            try:
                return await self._download(empty, shared)
            except BundleError as error:
                log.error("shared code is bad: compiling anew", extra=_of(key, reason=error))
                bad = msgspec.structs.replace(empty, rejected=shared.digest)
                await in_thread(partial(self._folders.keep, bad))
                return bad
        except (ShareError, FetchError, OSError, asyncio.TimeoutError) as error:
            reason = str(error) or f"it took more than {DOWNLOAD_S:.0f} s"
            log.warning("no shared code: compiling here", extra=_of(key, reason=reason))
            return empty

    async def _lookup(self, key: CompileKey) -> SharedCode | None:
        if self._server is None:
            return None
        return await self._server.lookup(key)

    async def _download(self, empty: Manifest, shared: SharedCode) -> Manifest:
        """Raises `BundleError` for what is bad, and what means that it cannot be had now."""
        key = empty.key
        if shared.key != key:
            raise BundleError("it was compiled for another key")
        if not is_digest(shared.digest) or not 0 < shared.size <= _MAX_BUNDLE:
            raise BundleError("its digest or size is none")
        self._transit.prepare()
        if self._transit.room() < 2 * shared.size + self._margin_bytes:
            raise FetchError(f"there is not enough room on the disk for {shared.size} bytes")
        try:
            getting = self._artifacts.obtain(shared.digest, shared.size, ())
            bundle = await asyncio.wait_for(getting, DOWNLOAD_S)
            filled = await in_thread(partial(self._folders.fill, empty, bundle, shared.digest))
        except FetchError as error:
            if error.transient:
                raise
            raise BundleError(str(error)) from None
        finally:
            await self._artifacts.collect(())
        log.info("compiled code downloaded", extra=_of(key, bytes=shared.size))
        return filled

    def _start_upload(self, key: CompileKey) -> None:
        if key in self._uploads or not self._shares(key):
            return

        def ended(_: asyncio.Task[None]) -> None:
            self._uploads.pop(key, None)

        task = asyncio.create_task(self._upload(key))
        task.add_done_callback(ended)
        self._uploads[key] = task

    async def _stop_upload(self, key: CompileKey) -> None:
        task = self._uploads.get(key)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _upload(self, key: CompileKey) -> None:
        """Share the code of a key, trying a few times."""
        backoff = Backoff(self._rng, base_s=2.0, cap_s=60.0)
        path = self._folders.bundle_path(key)
        try:
            code = await self._pack(key, path)
            for attempt in range(1, _UPLOADS + 1):
                try:
                    await self._share(code, path)
                    break
                except ShareError as error:
                    if not error.transient or attempt == _UPLOADS:
                        raise
                await self._sleep(backoff.next())
            await self._mark(key, offered=True)
        except (ShareError, BundleError, OSError) as error:
            # Offered again when it is obtained the next time.
            log.warning("compiled code is not shared", extra=_of(key, reason=error))
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    async def _pack(self, key: CompileKey, path: Path) -> SharedCode:
        async with self._changing:
            digest, size = await in_thread(partial(pack, self._folders.path(key), path))
        await self._mark(key, bundle=digest)
        return SharedCode(key=key, digest=digest, size=size)

    async def _share(self, code: SharedCode, path: Path) -> None:
        """One attempt. What another device shared stays, unless it was bad here."""
        shared = await self._lookup(code.key)
        manifest = await in_thread(partial(self._folders.read, code.key))
        if shared is not None and shared.digest != manifest.rejected:
            return
        if self._server is not None:
            await self._server.upload(path, code.digest, code.size)
            await self._server.announce(code, replace=shared is not None)
            log.info("compiled code shared", extra=_of(code.key, bytes=code.size))

    async def _mark(self, key: CompileKey, **changes: object) -> None:
        async with self._changing:
            manifest = await in_thread(partial(self._folders.read, key))
            if manifest.origin == HERE:
                changed = msgspec.structs.replace(manifest, **changes)
                await in_thread(partial(self._folders.keep, changed))


def _of(key: CompileKey, **more: object) -> dict[str, object]:
    return dict(fields(digest=key.digest, target=key.target, provider_set=key.provider_set, **more))


_conforms: type[CompiledCode] = SharedCompiledCode
