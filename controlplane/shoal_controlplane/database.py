"""The database: SQLite in WAL mode, or PostgreSQL, used off the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Engine, event
from sqlmodel import Session, create_engine

T = TypeVar("T")

_BUSY_S = 5.0
"""How long a statement waits for another process before it fails."""


class Database:
    """One thread owns the connection; callers hand it short functions.

    One writer at a time is what SQLite wants, and it keeps transactions in the order in which
    the event loop asked for them.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")

    async def run(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a transaction of its own: committed on return, rolled back on an error.

        `work` must return plain values, not table rows that are bound to the session.
        """

        def transaction() -> T:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                return work(session)

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    def close(self) -> None:
        self._thread.shutdown()
        self.engine.dispose()


def open_engine(url: str) -> Engine:
    """Engine for an SQLAlchemy URL such as `sqlite:////var/lib/shoal/shoal.db`."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_S * 1000)}")
            _switch_to_wal(cursor)
            # Writes are rare and small, so a power cut may cost nothing: FULL.
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

    return engine


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL, which the file remembers.

    Where another process is switching at this moment, SQLite fails at once whatever the busy
    timeout says, so this waits itself.
    """
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
