"""Downloads by digest over HTTP: resumed, bounded, verified, and cancelled when told so."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import http.client
import logging
import os
import random
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, Protocol

from shoal_agent.connectivity.backoff import Backoff
from shoal_agent.service.logs import fields
from shoal_agent.updates.connection import Breakable
from shoal_agent.updates.store import CHUNK_BYTES, ArtifactStore

log = logging.getLogger("fetch")

MARGIN_BYTES = 64 * 1024 * 1024
"""What stays free on the disk, for the agent's own files and everyone else's."""

_ATTEMPTS = 6
# A power cut costs at most what was written since the last sync.
_SYNC_BYTES = 4 * 1024 * 1024


class FetchError(Exception):
    """An artifact cannot be had; the text is one plain sentence.

    `transient` tells that the same attempt may succeed in a moment.
    """

    def __init__(self, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


class Artifacts(Protocol):
    """Where the reconciler gets its artifacts from."""

    def has(self, digest: str, size: int) -> bool:
        """Whether it is on this device already."""

    async def obtain(self, digest: str, size: int, keep: Collection[str]) -> Path:
        """A verified file with the artifact.

        Where there is no room, artifacts whose digests are not in `keep` are removed. Raises
        `FetchError`; may be cancelled.
        """

    async def collect(self, keep: Collection[str]) -> None:
        """Remove artifacts whose digests are not in `keep`."""


class HttpArtifacts:
    """Artifacts of a control plane, kept in a store."""

    def __init__(
        self,
        server: str,
        store: ArtifactStore,
        *,
        rng: random.Random,
        margin_bytes: int = MARGIN_BYTES,
    ) -> None:
        self._server = server
        self._store = store
        self._rng = rng
        self._margin_bytes = margin_bytes

    def has(self, digest: str, size: int) -> bool:
        return self._store.has(digest, size)

    async def collect(self, keep: Collection[str]) -> None:
        try:
            removed = await asyncio.to_thread(self._store.collect, keep)
        except OSError as error:
            log.error("artifacts not removed", extra=fields(error=error.strerror))
            return
        for digest in removed:
            log.info("artifact removed", extra=fields(digest=digest))

    async def obtain(self, digest: str, size: int, keep: Collection[str]) -> Path:
        if await asyncio.to_thread(self._verify, digest, size):
            return self._store.path(digest)
        backoff = Backoff(self._rng, base_s=0.5, cap_s=8.0)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._download(digest, size, keep)
            except FetchError as error:
                if not error.transient or attempt == _ATTEMPTS:
                    raise
                log.warning("download interrupted", extra=fields(digest=digest, error=error))
            await asyncio.sleep(backoff.next())
        raise AssertionError("unreachable")

    def _verify(self, digest: str, size: int) -> bool:
        try:
            return self._store.verify(digest, size)
        except OSError as error:
            raise FetchError(f"the artifact store cannot be read: {error.strerror}") from None

    async def _download(self, digest: str, size: int, keep: Collection[str]) -> Path:
        download = Download(self._server, self._store, digest, size, keep, self._margin_bytes)
        running = asyncio.get_running_loop().run_in_executor(None, download.run)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            download.cancel()
            await asyncio.wait({running})
            # Cancelled: whether the thread succeeded in time or complains does not matter.
            running.exception()
            raise


class Download(Breakable):
    """One attempt at one artifact; `run` blocks, `cancel` may be called from another thread."""

    def __init__(
        self,
        server: str,
        store: ArtifactStore,
        digest: str,
        size: int,
        keep: Collection[str] = (),
        margin_bytes: int = MARGIN_BYTES,
    ) -> None:
        super().__init__(server)
        self._store = store
        self._digest = digest
        self._size = size
        self._keep = {digest, *keep}
        self._margin_bytes = margin_bytes
        self._part = store.part_path(digest)

    def run(self) -> Path:
        """Download, verify and store. Raises `FetchError`, after which a part may remain."""
        try:
            with self._part.open("ab+") as file:
                return self._collect(file)
        except http.client.HTTPException as error:
            raise self._transient(type(error).__name__) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._part.unlink(missing_ok=True)
                raise FetchError(f"the disk is full: {self._needs()}") from None
            if error.filename is not None:
                raise FetchError(
                    f"the artifact store cannot be written: {error.strerror}"
                ) from None
            raise self._transient(str(error)) from None

    def _collect(self, file: BinaryIO) -> Path:
        have = os.fstat(file.fileno()).st_size
        if have > self._size:
            file.truncate(0)
            have = 0
        self._check_room(self._size - have)
        if have < self._size:
            self._receive(file, have)
        file.flush()
        os.fsync(file.fileno())
        # All of it is read again, the resumed part and what a power cut may have left of it.
        if self._hash(file) != self._digest:
            self._part.unlink()
            raise FetchError("the server's artifact does not have the announced digest")
        return self._store.commit(self._digest)

    def _receive(self, file: BinaryIO, have: int) -> None:
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with self.connected() as connection:
            if self.cancelled:
                raise FetchError("the download was cancelled")
            path = self.path(self._digest.replace(":", "/"))
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            have = self._start(file, response, have)
            self._copy(file, response, have)

    def _start(self, file: BinaryIO, response: http.client.HTTPResponse, have: int) -> int:
        """Check the answer and return the offset at which its body begins."""
        status = response.status
        if status == 206 and have:
            content_range = response.getheader("Content-Range", "")
            if not content_range.startswith(f"bytes {have}-"):
                raise FetchError("the server answered with another range than the one asked for")
        elif status == 200:
            file.truncate(0)
            have = 0
        elif status == 416:
            self._part.unlink()
            raise self._transient("it refused to resume")
        elif status == 404:
            raise FetchError("the server does not have the artifact")
        else:
            raise FetchError(
                f"the server answered the download with status {status}", transient=status >= 500
            )
        length = response.getheader("Content-Length")
        if length is not None and length != str(self._size - have):
            raise FetchError(
                f"the server's artifact has another size than the announced {self._size} bytes"
            )
        return have

    def _copy(self, file: BinaryIO, response: http.client.HTTPResponse, have: int) -> None:
        synced = have
        while not self.cancelled:
            chunk = response.read(min(CHUNK_BYTES, self._size - have + 1))
            if not chunk:
                break
            have += len(chunk)
            if have > self._size:
                self._part.unlink()
                raise FetchError(f"the server sent more than the announced {self._size} bytes")
            file.write(chunk)
            if have - synced >= _SYNC_BYTES:
                file.flush()
                os.fdatasync(file.fileno())
                synced = have
        if have < self._size:
            raise self._transient(f"it ended after {have} of {self._size} bytes")

    def _hash(self, file: BinaryIO) -> str:
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            if self.cancelled:
                raise FetchError("the download was cancelled")
            digest.update(chunk)
        return f"sha256:{digest.hexdigest()}"

    def _check_room(self, missing: int) -> None:
        if self._store.room() >= missing + self._margin_bytes:
            return
        self._store.collect(self._keep)
        if self._store.room() < missing + self._margin_bytes:
            if missing == self._size:
                self._part.unlink()
            raise FetchError(f"there is not enough room on the disk: {self._needs()}")

    def _needs(self) -> str:
        return (
            f"the artifact has {self._size} bytes, {self._store.room()} are left and "
            f"{self._margin_bytes} must stay free"
        )

    def _transient(self, reason: str) -> FetchError:
        return FetchError(
            f"the download from {self.server} failed: {reason}; check that the server is "
            "reachable from this device",
            transient=True,
        )


_conforms: type[Artifacts] = HttpArtifacts
