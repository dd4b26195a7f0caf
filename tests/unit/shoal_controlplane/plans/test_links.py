"""Probes of links over a link on which the test plays the devices, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway import TOPICS, DeviceLink, Sent
from support.virtual_time import virtual_time

from shoal_controlplane.planner.partition.problem import Link
from shoal_controlplane.plans import links
from shoal_controlplane.plans.links import (
    ANSWER_S,
    BULK_BYTES,
    KEEP_S,
    LARGE_BYTES,
    LEAST_BYTES_PER_S,
    MOST_BYTES_PER_S,
    RETRY_S,
    UNMEASURED,
    LinkBook,
    LinkProber,
)
from shoal_shared import oip
from shoal_shared.linkprobe import REPLY_BYTES
from shoal_shared.oip import InferReply, Tensor
from shoal_shared.publish import Message
from shoal_shared.status import InferCode

MB = 1e6


@dataclass
class Way:
    """How a device of the test is reached: one-way seconds, bytes a second down and up."""

    latency_s: float = 0.002
    down: float = 10 * MB
    up: float = 5 * MB
    silent: bool = False
    loses_bulk: bool = False
    knows_link: bool = True


class World:
    """Devices that answer `$link` as slowly as their way is."""

    def __init__(self, ways: Mapping[str, Way]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ways = dict(ways)
        self.link = DeviceLink()
        self.link.on_sent = self._on_sent
        self.book = LinkBook()
        self.prober = LinkProber(self.link, TOPICS, "g1", self.book, self.loop.time)
        self.under_way = self.most_under_way = 0

    @property
    def probed(self) -> list[str]:
        return [sent.device for sent in self.link.sent]

    def _on_sent(self, sent: Sent) -> None:
        self.under_way = len({s.device for s in self.link.sent}) - len(self.done())
        self.most_under_way = max(self.most_under_way, self.under_way)
        way = self.ways[sent.device]
        request = sent.request
        size = sum(t.data.nbytes for t in request.inputs)
        receive = int(request.parameters[REPLY_BYTES])
        if way.silent or (way.loses_bulk and size + receive):
            return
        took = 2 * way.latency_s + size / way.down + receive / way.up
        self.loop.call_later(took, self.answer, sent, receive, way.knows_link)

    def done(self) -> set[str]:
        return {name for name in self.ways if self.book.of(name).at is not None}

    def answer(self, sent: Sent, receive: int, knows: bool) -> None:
        if knows:
            reply = InferReply([Tensor("data", "UINT8", np.zeros(receive, np.uint8))])
        else:
            reply = InferReply([], error="no such model", code=InferCode.NOT_FOUND.value)
        buffers, length = oip.encode_reply(reply)
        user = {oip.HEADER_LENGTH: str(length)} if length is not None else {}
        self.deliver(b"".join(buffers), sent.message.correlation, user)

    def deliver(
        self, payload: bytes, correlation: bytes | None, user: Mapping[str, str] | None = None
    ) -> None:
        topic = TOPICS.replies("g1-links")
        self.link._handlers[topic](
            Message(topic, payload, correlation=correlation, user_properties=user or {})
        )


@virtual_time
async def test_a_link_is_measured() -> None:
    world = World({"d1": Way()})
    await world.prober.refresh(["d1"])
    found = world.book.of("d1")
    assert found.measured
    assert found.latency_ms == pytest.approx(2.0)
    assert found.down_bytes_per_s == pytest.approx(10 * MB, rel=0.01)
    assert found.up_bytes_per_s == pytest.approx(5 * MB, rel=0.01)
    first, *_ = world.link.sent
    assert first.request.model_name == "$link"
    assert first.message.response_topic == TOPICS.replies("g1-links")
    assert first.message.expiry_s == int(ANSWER_S) + 1
    sizes = [s.request.inputs[0].data.nbytes for s in world.link.sent]
    assert sizes == [0, 0, 0, BULK_BYTES, 0]


@virtual_time
async def test_fast_links_get_more_bytes() -> None:
    world = World({"d1": Way(latency_s=0.0001, down=400 * MB, up=300 * MB)})
    await world.prober.refresh(["d1"])
    assert [s.request.inputs[0].data.nbytes for s in world.link.sent][-2:] == [LARGE_BYTES, 0]
    assert world.link.sent[-1].request.parameters[REPLY_BYTES] == LARGE_BYTES
    assert world.book.of("d1").down_bytes_per_s == pytest.approx(400 * MB, rel=0.01)
    assert world.book.of("d1").up_bytes_per_s == pytest.approx(300 * MB, rel=0.01)


@virtual_time
async def test_a_link_too_fast_to_measure_stays_bounded() -> None:
    world = World({"d1": Way(latency_s=0.0, down=1e15, up=1e15)})
    await world.prober.refresh(["d1"])
    assert world.book.of("d1").down_bytes_per_s == MOST_BYTES_PER_S


@virtual_time
async def test_a_silent_device_gets_the_default_and_is_tried_again_later() -> None:
    world = World({"d1": Way(silent=True)})
    began = world.loop.time()
    await world.prober.refresh(["d1"])
    assert world.loop.time() - began == pytest.approx(ANSWER_S)
    found = world.book.of("d1")
    assert not found.measured
    assert found.up_bytes_per_s == UNMEASURED.up_bytes_per_s
    await world.prober.refresh(["d1"])
    assert len(world.link.sent) == 1
    await asyncio.sleep(RETRY_S)
    world.ways["d1"] = Way()
    await world.prober.refresh(["d1"])
    assert world.book.of("d1").measured


@virtual_time
async def test_bulk_that_never_comes_bounds_the_bandwidth() -> None:
    world = World({"d1": Way(loses_bulk=True)})
    await world.prober.refresh(["d1"], timeout_s=60)
    found = world.book.of("d1")
    assert not found.measured
    assert found.latency_ms == pytest.approx(2.0)
    assert found.down_bytes_per_s == found.up_bytes_per_s == BULK_BYTES / ANSWER_S


@virtual_time
async def test_a_device_that_does_not_know_the_model_has_a_round_trip_only() -> None:
    world = World({"d1": Way(knows_link=False)})
    await world.prober.refresh(["d1"])
    found = world.book.of("d1")
    assert not found.measured
    assert found.latency_ms == pytest.approx(2.0)
    assert found.up_bytes_per_s == UNMEASURED.up_bytes_per_s


@virtual_time
async def test_without_a_broker_nothing_waits() -> None:
    world = World({"d1": Way()})
    world.link.connected = False
    began = world.loop.time()
    await world.prober.refresh(["d1"])
    assert await world.prober.alive(["d1"], 1.0) == set()
    assert world.loop.time() == began
    assert not world.book.of("d1").measured


@virtual_time
async def test_results_are_kept_for_a_while() -> None:
    world = World({"d1": Way()})
    await world.prober.refresh(["d1"])
    count = len(world.link.sent)
    await asyncio.sleep(KEEP_S - 1)
    await world.prober.refresh(["d1"])
    assert len(world.link.sent) == count
    await asyncio.sleep(2)
    await world.prober.refresh(["d1"])
    assert len(world.link.sent) == 2 * count


@virtual_time
async def test_few_devices_are_probed_at_once_and_each_only_once() -> None:
    world = World({f"d{i}": Way() for i in range(20)})
    await asyncio.gather(*(world.prober.refresh(list(world.ways)) for _ in range(3)))
    assert world.done() == set(world.ways)
    assert world.most_under_way <= links.AT_ONCE
    assert world.probed.count("d7") == links.PINGS + 2


@virtual_time
async def test_the_caller_does_not_wait_longer_than_it_said() -> None:
    world = World({f"d{i}": Way(silent=True) for i in range(20)} | {"slow": Way(up=0.1 * MB)})
    began = world.loop.time()
    await world.prober.refresh(list(world.ways), timeout_s=3.0)
    assert world.loop.time() - began == pytest.approx(3.0)
    await asyncio.sleep(60)
    assert world.book.of("slow").up_bytes_per_s == pytest.approx(0.1 * MB, rel=0.01)


@virtual_time
async def test_stopping_ends_what_is_under_way() -> None:
    world = World({"d1": Way(silent=True)})
    await world.prober.refresh(["d1"], timeout_s=0.1)
    await world.prober.stop()
    assert not world.prober._probes
    assert not world.prober._waiting


@virtual_time
async def test_who_is_alive() -> None:
    world = World({"d1": Way(), "d2": Way(silent=True), "d3": Way(knows_link=False)})
    began = world.loop.time()
    assert await world.prober.alive(["d1", "d2", "d3"], 0.4) == {"d1", "d3"}
    assert world.loop.time() - began == pytest.approx(0.4)
    assert not world.prober._waiting


@virtual_time
async def test_strange_replies_do_no_harm() -> None:
    world = World({"d1": Way(silent=True)})
    task = asyncio.create_task(world.prober.alive(["d1"], 1.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.deliver(b"", None)
    world.deliver(b"{}", b"12345678")
    (sent,) = world.link.sent
    for _ in range(2):
        world.deliver(b"\xff{", sent.message.correlation, {oip.HEADER_LENGTH: "x"})
    assert await task == {"d1"}


rates = st.floats(allow_nan=False, min_value=0)


@given(st.lists(st.tuples(rates, rates), max_size=5))
def test_observations_only_lower(seen: list[tuple[float, float]]) -> None:
    book = LinkBook()
    for up, down in seen:
        before = book.of("d1")
        book.observed("d1", up_bytes_per_s=up, down_bytes_per_s=down)
        after = book.of("d1")
        assert LEAST_BYTES_PER_S <= after.up_bytes_per_s <= before.up_bytes_per_s
        assert LEAST_BYTES_PER_S <= after.down_bytes_per_s <= before.down_bytes_per_s
    book.forget("d1")
    assert book.of("d1") == UNMEASURED


def test_links_of_a_star() -> None:
    a = links.DeviceLink(up_bytes_per_s=5e6, down_bytes_per_s=10e6, latency_ms=1.0)
    b = links.DeviceLink(up_bytes_per_s=1e6, down_bytes_per_s=2e6, latency_ms=3.0)
    assert links.between(a, b) == Link(0.95 * 2e6, 4.0)
    assert links.between(b, a) == Link(0.95 * 1e6, 4.0)
    assert links.entry(a) == Link(0.95 * 10e6, 1.0)
    assert links.leaving(b) == Link(0.95 * 1e6, 3.0)
