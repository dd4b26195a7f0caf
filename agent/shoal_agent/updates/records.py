"""Records in one file of the state folder, replaced as a whole."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from shoal_agent.service.logs import fields
from shoal_agent.serving.records import Record, Records
from shoal_agent.updates.files import write_atomically

log = logging.getLogger("records")

MAX_RECORDS = 64

_decoder = msgspec.json.Decoder(dict[str, Record])


class FileRecords:
    """At most `MAX_RECORDS` records, the oldest are dropped. Used by one agent at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records = _read(path)
        self._writing = asyncio.Lock()

    def get(self, key: str) -> Record | None:
        return self._records.get(key)

    async def put(self, key: str, record: Record) -> None:
        self._records.pop(key, None)
        self._records[key] = record
        for oldest in list(self._records)[:-MAX_RECORDS]:
            del self._records[oldest]
        await self._write()

    async def forget(self, key: str) -> None:
        if self._records.pop(key, None) is not None:
            await self._write()

    async def _write(self) -> None:
        async with self._writing:
            data = msgspec.json.encode(self._records)
            try:
                # What it loses in a power cut is found out anew.
                await asyncio.to_thread(write_atomically, self._path, data, durable=False)
            except OSError as error:
                log.warning("records not kept", extra=fields(error=error.strerror))


def _read(path: Path) -> dict[str, Record]:
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("records cannot be read", extra=fields(path=path, error=error))
        return {}


_conforms: type[Records] = FileRecords
