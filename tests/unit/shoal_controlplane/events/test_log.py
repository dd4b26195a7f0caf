from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.fleet import FakeClock, open_database

from shoal_controlplane.database import Database
from shoal_controlplane.events.log import RESET, Event, EventLog, matches, timestamp


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(tmp_path)
    yield opened
    opened.close()


async def test_ids_grow_over_restarts_even_if_nothing_was_saved(database: Database) -> None:
    clock = FakeClock()
    first = EventLog(database, clock.wall)
    ids = [first.append("a.b", "x", "Hello.").id for _ in range(3)]
    await first.flush()
    ids.append(first.append("a.b", "x", "Lost in a crash.").id)
    clock.advance(1)
    second = EventLog(database, clock.wall)
    await second.start()
    ids.append(second.append("a.b", "x", "Back.").id)
    await second.stop()
    clock.advance(-3600)
    third = EventLog(database, clock.wall)
    await third.start()
    ids.append(third.append("a.b", "x", "The clock went back.").id)
    await third.stop()
    assert ids == sorted(set(ids))


async def test_memory_and_database_keep_the_newest(database: Database) -> None:
    clock = FakeClock()
    log = EventLog(database, clock.wall, capacity=3)
    for n in range(5):
        log.append("a.b", str(n), "Hello.", {"n": n})
    await log.flush()
    log.append("a.b", "5", "Null \0 byte.")
    await log.flush()
    assert [e.subject for e in log.newest_first()] == ["5", "4", "3"]
    again = EventLog(database, clock.wall, capacity=10)
    await again.start()
    assert [(e.subject, e.data) for e in again.newest_first()] == [
        ("5", {}),
        ("4", {"n": 4}),
        ("3", {"n": 3}),
    ]
    await again.stop()


async def test_subscribers_get_what_is_new(database: Database) -> None:
    log = EventLog(database, FakeClock().wall)
    log.append("a.b", "old", "Hello.")
    subscription = log.subscribe()
    new = log.append("a.b", "new", "Hello.")
    assert await subscription.get() == new
    log.unsubscribe(subscription)
    log.append("a.b", "unheard", "Hello.")
    subscription.close()
    assert await subscription.get() is None


async def test_resuming_gives_what_was_missed(database: Database) -> None:
    log = EventLog(database, FakeClock().wall)
    events = [log.append("a.b", str(n), "Hello.") for n in range(4)]
    subscription = log.subscribe(after=events[1].id)
    assert [await subscription.get(), await subscription.get()] == events[2:]
    up_to_date = log.subscribe(after=events[3].id)
    new = log.append("a.b", "new", "Hello.")
    assert await up_to_date.get() == new


@pytest.mark.parametrize("after", [0, 10**18])
async def test_resuming_from_an_id_that_is_not_known_resets(database: Database, after: int) -> None:
    log = EventLog(database, FakeClock().wall, capacity=2)
    for n in range(4):
        last = log.append("a.b", str(n), "Hello.")
    subscription = log.subscribe(after=after)
    reset = await subscription.get()
    assert reset is not None
    assert (reset.kind, reset.id) == (RESET, last.id)


async def test_slow_subscriber_loses_events_and_is_told(database: Database) -> None:
    log = EventLog(database, FakeClock().wall)
    slow, fast = log.subscribe(limit=3), log.subscribe(limit=100)
    events = [log.append("a.b", str(n), "Hello.") for n in range(5)]
    reset = await slow.get()
    assert reset is not None
    assert (reset.kind, reset.id) == (RESET, events[3].id)
    assert await slow.get() == events[4]
    assert [await fast.get() for _ in events] == events


def test_filters() -> None:
    event = Event(1, 0.0, "device.online", "d1", "Hello.", {})
    assert matches(event, "", "")
    assert matches(event, "device", "d1")
    assert matches(event, "device.online", "")
    assert not matches(event, "dev", "")
    assert not matches(event, "", "d2")


def test_timestamp() -> None:
    assert timestamp(0.25) == "1970-01-01T00:00:00.250Z"
