"""`/api/v1/events`: a stream for those who ask for `text/event-stream`, else pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import islice
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from shoal_controlplane.api.paging import Page, Paging, page
from shoal_controlplane.errors import InvalidError
from shoal_controlplane.events.log import RESET, Event, EventLog, matches, timestamp

HEARTBEAT_S = 15.0
STREAM = "text/event-stream"
_HEARTBEAT = b": heartbeat\n\n"

KindFilter = Annotated[
    str, Query(max_length=64, description="Kind such as device.online; device means device.*")
]
SubjectFilter = Annotated[str, Query(max_length=64, description="Device, deployment or other name")]


class EventView(BaseModel):
    """One event; `message` is a sentence, `data` depends on the kind."""

    id: int
    time: str
    kind: str
    subject: str
    message: str
    data: dict[str, Any]


def event_view(event: Event) -> EventView:
    return EventView(
        id=event.id,
        time=timestamp(event.time),
        kind=event.kind,
        subject=event.subject,
        message=event.message,
        data=event.data,
    )


def event_routes(log: EventLog, *, heartbeat_s: float = HEARTBEAT_S) -> APIRouter:
    """Routes over a log."""
    router = APIRouter(prefix="/api/v1/events", tags=["events"])

    @router.get(
        "",
        response_model=Page[EventView],
        responses={
            200: {
                "description": "A page of events, or the stream of them from now on",
                "content": {STREAM: {"schema": {"type": "string"}}},
            }
        },
    )
    async def events(
        request: Request,
        paging: Annotated[Paging, Depends()],
        kind: KindFilter = "",
        subject: SubjectFilter = "",
        last_event_id: Annotated[
            str | None, Header(description="Resume the stream after this event")
        ] = None,
    ) -> Response:
        """Events, newest first; or, with `Accept: text/event-stream`, each as it happens.

        The stream resumes after `Last-Event-ID`. An event `reset` says that some were missed.
        """
        if STREAM in request.headers.get("accept", ""):
            after = None if last_event_id is None else _event_id(last_event_id)
            return StreamingResponse(
                stream(log, kind, subject, after, heartbeat_s),
                media_type=STREAM,
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        before = _cursor(paging.after)
        found = (
            event_view(event)
            for event in log.newest_first()
            if (before is None or event.id < before) and matches(event, kind, subject)
        )
        items = list(islice(found, paging.limit + 1))
        shown = page(items, lambda event: str(event.id), paging)
        return JSONResponse(shown.model_dump(mode="json"))

    return router


async def stream(
    log: EventLog, kind: str, subject: str, after: int | None, heartbeat_s: float
) -> AsyncIterator[bytes]:
    """Server-sent events until the client goes or the log stops."""
    subscription = log.subscribe(after)
    try:
        yield _HEARTBEAT  # The headers go out with the first bytes.
        while True:
            try:
                async with asyncio.timeout(heartbeat_s):
                    event = await subscription.get()
            except TimeoutError:
                yield _HEARTBEAT
                continue
            if event is None:
                return
            if event.kind == RESET or matches(event, kind, subject):
                yield _frame(event)
    finally:
        log.unsubscribe(subscription)


def _frame(event: Event) -> bytes:
    data = msgspec.json.encode(event_view(event).model_dump())
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.kind.encode(), data)


def _event_id(text: str) -> int:
    """An id that is not one resumes from the very beginning, which answers with a reset."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _cursor(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidError("The cursor is not one of this list: start again without one.")
    return int(text)
