"""Artifacts on disk by their digest: what lies under its name is complete and was verified."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from shoal_agent.updates.files import sync_folder

CHUNK_BYTES = 256 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE = re.compile(r"([0-9a-f]{64})(\.part)?")

FreeBytes = Callable[[Path], int]


def is_digest(text: str) -> bool:
    """Whether `text` is `sha256:` and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def disk_free(folder: Path) -> int:
    """Bytes that this user may still write on the disk of `folder`."""
    return shutil.disk_usage(folder).free


class ArtifactStore:
    """Content-addressed files in `folder`/sha256, at most `max_bytes` in all if that is not 0.

    Used by one agent process at a time. All methods may block on the disk.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = 0, free_bytes: FreeBytes = disk_free
    ) -> None:
        self._folder = folder / "sha256"
        self._max_bytes = max_bytes
        self._free_bytes = free_bytes

    def prepare(self) -> None:
        """Create the folder if need be; before all else. Raises `OSError`."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the artifact lies, or will. Raises `ValueError` for what is no digest."""
        if not is_digest(digest):
            raise ValueError(f"{digest[:80]!r} is not a digest")
        return self._folder / digest.removeprefix("sha256:")

    def part_path(self, digest: str) -> Path:
        """Where a download is collected, to be resumed."""
        path = self.path(digest)
        return path.with_name(path.name + ".part")

    def has(self, digest: str, size: int) -> bool:
        """Whether the artifact is there with `size` bytes; `verify` says if it is whole."""
        try:
            return self.path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def verify(self, digest: str, size: int) -> bool:
        """Read the artifact through; one that is not what it should be is removed."""
        path = self.path(digest)
        if not path.exists():
            return False
        if self.has(digest, size) and hash_file(path) == digest:
            return True
        path.unlink()
        return False

    def commit(self, digest: str) -> Path:
        """Give the collected, synced and verified part its name, durably."""
        path = self.path(digest)
        self.part_path(digest).replace(path)
        sync_folder(self._folder)
        return path

    def room(self) -> int:
        """Bytes that may still be stored."""
        free = self._free_bytes(self._folder)
        if self._max_bytes:
            used = sum(entry.stat().st_size for entry in self._folder.iterdir())
            free = min(free, self._max_bytes - used)
        return max(free, 0)

    def collect(self, keep: Collection[str]) -> list[str]:
        """Remove artifacts and parts whose digest is not in `keep`; returns removed digests."""
        removed: list[str] = []
        for entry in sorted(self._folder.iterdir()):
            match = _FILE.fullmatch(entry.name)
            if match is None or f"sha256:{match[1]}" in keep:
                continue
            entry.unlink()
            removed.append(f"sha256:{match[1]}")
        if removed:
            sync_folder(self._folder)
        return removed


def hash_file(path: Path) -> str:
    """Digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
