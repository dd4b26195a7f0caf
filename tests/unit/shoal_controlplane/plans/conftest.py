from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from support.fleet import FakeClock, open_database
from support.plans import Rooms, some_models

from shoal_controlplane.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
async def rooms(database: Database, tmp_path: Path) -> AsyncIterator[Rooms]:
    made = Rooms(database, tmp_path / "artifacts", FakeClock(), some_models())
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def restart(database: Database, tmp_path: Path, rooms: Rooms) -> Callable[[], Rooms]:
    """The rooms that come up after a kill of those before."""
    return lambda: Rooms(database, tmp_path / "artifacts", rooms.clock, rooms.models)
