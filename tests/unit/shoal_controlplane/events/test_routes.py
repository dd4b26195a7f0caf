from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from support.fleet import FakeClock, open_database

from shoal_controlplane.api import problem
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.events.routes import event_routes, stream

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    database = open_database(tmp_path)
    yield EventLog(database, FakeClock().wall)
    database.close()


@pytest.fixture
async def http(log: EventLog) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(event_routes(log))
    problem.install(app)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        yield client


async def subscribed(log: EventLog) -> None:
    """Wait until somebody reads the stream."""
    for _ in range(1000):
        if log._subscriptions:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("nobody subscribed")


async def test_pages_newest_first(log: EventLog, http: httpx.AsyncClient) -> None:
    for n in range(5):
        log.append("device.online" if n % 2 else "deployment.ready", f"s{n}", "Hello.")

    first = (await http.get("/api/v1/events?limit=2")).json()
    assert [item["subject"] for item in first["items"]] == ["s4", "s3"]
    second = (await http.get(f"/api/v1/events?limit=9&cursor={first['next_cursor']}")).json()
    assert [item["subject"] for item in second["items"]] == ["s2", "s1", "s0"]
    assert second["next_cursor"] is None
    filtered = (await http.get("/api/v1/events?kind=device")).json()
    assert [item["subject"] for item in filtered["items"]] == ["s3", "s1"]
    filtered = (await http.get("/api/v1/events?subject=s0")).json()
    assert [item["kind"] for item in filtered["items"]] == ["deployment.ready"]
    assert (await http.get("/api/v1/events?cursor=eHl6")).status_code == 422


async def test_stream_resumes_and_ends_when_the_log_stops(
    log: EventLog, http: httpx.AsyncClient
) -> None:
    events = [log.append("device.online", f"d{n}", "Hello.", {"n": n}) for n in range(3)]
    asking = asyncio.create_task(
        http.get("/api/v1/events", headers=STREAM | {"Last-Event-ID": str(events[0].id)})
    )
    await subscribed(log)
    log.append("deployment.ready", "cat", "Ready.")
    await log.stop()
    answer = await asking
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [f for f in answer.text.split("\n\n") if f and not f.startswith(":")]
    parsed = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in frames]
    assert [p["event"] for p in parsed] == ["device.online", "device.online", "deployment.ready"]
    assert parsed[0]["id"] == str(events[1].id)
    assert json.loads(parsed[0]["data"])["data"] == {"n": 1}
    assert not log._subscriptions


async def test_stream_filters_but_never_hides_a_reset(log: EventLog) -> None:
    log.append("device.online", "d1", "Hello.")
    frames = stream(log, "device", "d2", after=0, heartbeat_s=100)
    assert await anext(frames) == b": heartbeat\n\n"
    assert b"event: reset" in await anext(frames)
    log.append("device.online", "d1", "Hello.")
    log.append("device.online", "d2", "Hello.")
    assert b'"subject":"d2"' in await anext(frames)
    await frames.aclose()  # type: ignore[attr-defined]
    assert not log._subscriptions


async def test_stream_beats_while_nothing_happens(log: EventLog) -> None:
    frames = stream(log, "", "", after=None, heartbeat_s=0.001)
    assert [await anext(frames) for _ in range(3)] == [b": heartbeat\n\n"] * 3
    log.append("device.online", "d1", "Hello.")
    assert b"event: device.online" in await anext(frames)
    await frames.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["x", "-1", "1" * 40, "\u0661"])
async def test_last_event_id_that_is_none_resets(
    log: EventLog, http: httpx.AsyncClient, text: str
) -> None:
    log.append("device.online", "d1", "Hello.")
    asking = asyncio.create_task(
        http.get(
            "/api/v1/events",
            headers=STREAM | {"Last-Event-ID": text.encode()},  # type: ignore[dict-item]
        )
    )
    await subscribed(log)
    log.close_subscriptions()
    assert "event: reset" in (await asking).text
