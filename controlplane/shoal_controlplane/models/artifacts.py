"""Content-addressed files: an artifact lies under its SHA-256 and never changes."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from shoal_controlplane.errors import (
    InvalidError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)

DEFAULT_LIMIT = 2 * 1024**3
"""Largest artifact in bytes."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PART = ".part"
_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class StorageFullError(UnavailableError):
    """The disk is full; nothing of the artifact was kept."""


RefersTo = Callable[[str], Awaitable[bool]]
"""Whether a room refers to the artifact with a digest."""


class ArtifactStore:
    """Artifacts in one folder, by `sha256:<hex>` of their bytes, for all rooms that refer to some.

    A file appears under its name only when it is complete, verified and on disk, so whatever
    `path` returns is whole. Uploads that a crash cut short are removed at the start.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self._folder = folder / "sha256"
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(f"*{_PART}"):
            leftover.unlink(missing_ok=True)
        self._rooms: list[RefersTo] = []

    def add_room(self, refers_to: RefersTo) -> None:
        """Ask this room before anything is removed."""
        self._rooms.append(refers_to)

    def path(self, digest: str) -> Path:
        """File of an artifact that is there. Raises `InvalidError` or `NotFoundError`."""
        path = self._path(digest)
        if not path.is_file():
            raise NotFoundError(f"There is no artifact {digest}: upload it first.")
        return path

    def __contains__(self, digest: str) -> bool:
        return self._path(digest).is_file()

    async def put(self, digest: str, chunks: AsyncIterator[bytes]) -> bool:
        """Store the bytes of `chunks`; whether they were new.

        Raises `InvalidError` if they do not have that digest, `TooLargeError` beyond the limit
        and `StorageFullError`. After any error, and if `chunks` raises, nothing is left behind.
        """
        target = self._path(digest)
        if target.is_file():
            # The client is still sending: hear it out, so that it gets to read the answer.
            async for _ in self._bounded(chunks):
                pass
            return False
        try:
            await self._write(target, digest, chunks)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise StorageFullError(
                "The disk for artifacts is full: free space on the server and send it again."
            ) from None
        return True

    async def remove(self, digest: str) -> None:
        """Remove an artifact, if it is there and no room refers to it; who still reads it reads
        on to its end."""
        path = self._path(digest)
        for refers_to in self._rooms:
            if await refers_to(digest):
                return
        await asyncio.to_thread(path.unlink, missing_ok=True)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InvalidError("A digest is 'sha256:' and 64 hexadecimal digits in lower case.")
        return self._folder / digest.removeprefix("sha256:")

    async def _write(self, target: Path, digest: str, chunks: AsyncIterator[bytes]) -> None:
        descriptor, name = tempfile.mkstemp(suffix=_PART, dir=self._folder)
        part, sha = Path(name), hashlib.sha256()

        def write(data: bytearray) -> None:
            sha.update(data)
            file.write(data)

        def finish() -> None:
            file.flush()
            os.fsync(descriptor)
            part.chmod(0o644)
            part.replace(target)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

        try:
            with os.fdopen(descriptor, "wb") as file:
                pending = bytearray()
                async for chunk in self._bounded(chunks):
                    pending += chunk
                    if len(pending) >= _CHUNK:
                        await asyncio.to_thread(write, pending)
                        pending = bytearray()
                await asyncio.to_thread(write, pending)
                if f"sha256:{sha.hexdigest()}" != digest:
                    raise InvalidError(
                        f"The bytes have the digest sha256:{sha.hexdigest()}, not {digest}: "
                        "send the file again."
                    )
                await asyncio.to_thread(finish)
        finally:
            part.unlink(missing_ok=True)

    async def _bounded(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        total = 0
        async for chunk in chunks:
            total += len(chunk)
            if total > self.limit:
                raise TooLargeError(f"The artifact is larger than {self.limit} bytes.")
            yield chunk
