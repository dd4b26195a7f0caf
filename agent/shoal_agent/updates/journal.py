"""The last accepted goal, so that a reboot without a network ends in the same models."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Protocol

import msgspec

from shoal_agent.service.logs import fields
from shoal_agent.updates.files import write_atomically
from shoal_agent.updates.goals import check_desired
from shoal_shared.messages import Desired

log = logging.getLogger("journal")

_VERSION = 1


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered: the goal, and the digests that the goal before it needed."""

    v: int = _VERSION
    desired: Desired
    previous: tuple[str, ...] = ()


class Journal(Protocol):
    """Where the entry is kept."""

    async def read(self) -> Entry | None:
        """The entry; None if there is none that can be used, which is logged."""

    async def write(self, entry: Entry) -> None:
        """Replace the entry durably. Where that fails, the old one remains, and it is logged."""


class FileJournal:
    """One entry in one file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> Entry | None:
        return await asyncio.to_thread(self._read)

    async def write(self, entry: Entry) -> None:
        try:
            await asyncio.to_thread(write_atomically, self._path, msgspec.json.encode(entry))
        except OSError as error:
            log.error("goal not remembered", extra=fields(path=self._path, error=error.strerror))

    def _read(self) -> Entry | None:
        try:
            entry = msgspec.json.decode(self._path.read_bytes(), type=Entry)
            check_desired(entry.desired)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log.error("journal cannot be read", extra=fields(path=self._path, error=error))
            return None
        if entry.v != _VERSION:
            log.error("journal has an unknown version", extra=fields(version=entry.v))
            return None
        return entry


_conforms: type[Journal] = FileJournal
