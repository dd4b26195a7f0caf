"""The event log: what changed in the fleet, with ids that only grow, over restarts too."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from shoal_controlplane.database import Database
from shoal_controlplane.events.tables import EventRow

log = structlog.get_logger("events")

FLUSH_S = 1.0
QUEUE_LIMIT = 1000

RESET: Final = "reset"
"""Kind that a subscriber gets in place of events that it missed: read the state anew."""


@dataclass(frozen=True, slots=True)
class Event:
    """`time` is seconds since the epoch; `message` is a sentence; `data` plain JSON values."""

    id: int
    time: float
    kind: str
    subject: str
    message: str
    data: dict[str, Any]


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def matches(event: Event, kind: str, subject: str) -> bool:
    """Whether an event passes the filters; `kind` "device" covers all of `device.…`."""
    return (not subject or event.subject == subject) and (
        not kind or event.kind == kind or event.kind.startswith(f"{kind}.")
    )


class Subscription:
    """Events for one reader. One that falls behind loses them and gets a `reset` instead."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: deque[Event] = deque()
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        if len(self._pending) >= self._limit:
            self._pending.clear()
            event = _reset(event.id, event.time)
        self._pending.append(event)
        self._filled.set()

    def close(self) -> None:
        self._closed = True
        self._filled.set()

    async def get(self) -> Event | None:
        """The next event; None once the log has stopped."""
        while not self._pending:
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        return self._pending.popleft()


class EventLog:
    """The newest `capacity` events in memory and in the database, written in batches.

    An id is the wall time in ms, or one more than the last where that is higher: so ids grow
    over restarts, whatever was not yet written when the process died.
    """

    def __init__(
        self, database: Database, wall: Callable[[], float], *, capacity: int = 10_000
    ) -> None:
        self._database = database
        self._wall = wall
        self._ring: deque[Event] = deque(maxlen=capacity)
        self._unsaved: deque[Event] = deque(maxlen=capacity)
        self._subscriptions: set[Subscription] = set()
        self._last_id = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what the database holds and begin to write."""
        capacity = self._ring.maxlen or 0

        def load(session: Session) -> list[EventRow]:
            newest = select(EventRow).order_by(col(EventRow.id).desc()).limit(capacity)
            return list(session.exec(newest))

        rows = await self._database.run(load)
        early, self._ring = list(self._ring), deque(map(_event, reversed(rows)), capacity)
        self._ring.extend(early)
        self._last_id = max([self._last_id, *(event.id for event in self._ring)])
        self._task = asyncio.create_task(self._flush_forever())

    async def stop(self) -> None:
        """End all subscriptions and write what is left."""
        self.close_subscriptions()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()

    def close_subscriptions(self) -> None:
        """End the streams of all readers, as a server must before it can stop."""
        for subscription in list(self._subscriptions):
            subscription.close()

    def append(
        self, kind: str, subject: str, message: str, data: dict[str, Any] | None = None
    ) -> Event:
        """Record an event and hand it to all subscribers; never blocks."""
        now = self._wall()
        self._last_id = max(self._last_id + 1, int(now * 1000))
        event = Event(self._last_id, now, kind, subject, message, data or {})
        self._ring.append(event)
        self._unsaved.append(event)
        for subscription in self._subscriptions:
            subscription.put(event)
        return event

    def newest_first(self) -> Iterable[Event]:
        return reversed(self._ring)

    def subscribe(self, after: int | None = None, limit: int = QUEUE_LIMIT) -> Subscription:
        """Events from now on, or all after id `after`, led by a `reset` if some are lost."""
        subscription = Subscription(limit)
        if after is not None:
            missed = [event for event in self._ring if event.id > after]
            known = bool(self._ring) and self._ring[0].id <= after <= self._last_id
            if not known or len(missed) > limit:
                missed = [_reset(self._last_id, self._wall())]
            for event in missed:
                subscription.put(event)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    async def flush(self) -> None:
        """Write what is not yet in the database, and drop what is older than the ring."""
        batch = list(self._unsaved)
        if not batch:
            return
        oldest = self._ring[0].id

        def save(session: Session) -> None:
            session.add_all(_row(event) for event in batch)
            session.execute(delete(EventRow).where(col(EventRow.id) < oldest))

        await self._database.run(save)
        saved = batch[-1].id
        while self._unsaved and self._unsaved[0].id <= saved:
            self._unsaved.popleft()

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except SQLAlchemyError as error:
                log.error("events could not be saved, trying again", error=str(error))


def _reset(event_id: int, time: float) -> Event:
    return Event(event_id, time, RESET, "", "Events were missed: read the state anew.", {})


def _row(event: Event) -> EventRow:
    return EventRow(
        id=event.id,
        time=event.time,
        kind=event.kind,
        # PostgreSQL text holds no NUL.
        subject=event.subject.replace("\0", ""),
        message=event.message.replace("\0", ""),
        data=msgspec.json.encode(event.data).decode(),
    )


def _event(row: EventRow) -> Event:
    data = msgspec.json.decode(row.data, type=dict[str, Any])
    return Event(row.id, row.time, row.kind, row.subject, row.message, data)
