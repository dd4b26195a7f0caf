"""The control plane's link against real brokers: Mosquitto and the embedded one."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.processes import Process, free_port, start_mosquitto

from shoal_controlplane.mqtt.broker import BrokerError, EmbeddedBroker
from shoal_controlplane.mqtt.link import MqttLink
from shoal_shared.publish import (
    Message,
    PublishProperties,
    correlation_data,
    message_expiry,
    response_topic,
    user_property,
)

MB = 1 << 20
TIMEOUT_S = 30.0


class Mosquitto:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.to_thread(start_mosquitto, self._folder, self.port)

    async def kill(self) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.kill)


class Embedded:
    def __init__(self, _folder: Path) -> None:
        self.port = free_port()
        self._broker: EmbeddedBroker | None = None

    async def start(self) -> None:
        self._broker = EmbeddedBroker(port=self.port)
        await self._broker.start()

    async def kill(self) -> None:
        if self._broker is not None:
            await self._broker.stop()


Broker = Mosquitto | Embedded


@pytest.fixture(params=[Mosquitto, Embedded])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    made: Broker = request.param(tmp_path)
    try:
        await made.start()
        yield made
    finally:
        await made.kill()


class Peer:
    """A link with a record of what came and went."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.link = MqttLink(
            "127.0.0.1", broker.port, name, rng=random.Random(1), max_backoff_s=0.2
        )
        self.received: list[Message] = []
        self.connections: list[bool] = []
        self._changed = asyncio.Event()
        self.link.on_connection(self._connection)

    def subscribe(self, topic: str, qos: int = 0) -> None:
        self.link.subscribe(topic, qos, self._message)

    async def until(self, check: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not check():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"{what} did not happen; {len(self.received)} messages came")

    async def messages(self, count: int) -> list[Message]:
        await self.until(lambda: len(self.received) >= count, f"{count} messages")
        return self.received

    async def connected(self, times: int = 1) -> None:
        await self.until(lambda: self.connections.count(True) >= times, "the connection")

    def _message(self, message: Message) -> None:
        self.received.append(message)
        self._changed.set()

    def _connection(self, connected: bool) -> None:
        self.connections.append(connected)
        self._changed.set()


@pytest.fixture
async def peers(broker: Broker) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two links: each has a topic of its own name."""
    a, b = Peer(broker, "a"), Peer(broker, "b")
    for peer, name in ((a, "a"), (b, "b")):
        peer.subscribe(f"to/{name}")
        await peer.link.start()
        await peer.connected()
        await subscribed(peer, f"to/{name}")
    yield a, b
    for peer in (a, b):
        await peer.link.stop()


async def subscribed(peer: Peer, topic: str) -> None:
    """The broker knows the subscription: it gives back what the peer sends to itself."""
    peer.link.publish(topic, b"ready?")
    await peer.messages(1)
    peer.received.clear()


async def test_properties_of_a_request_arrive(peers: tuple[Peer, Peer]) -> None:
    a, b = peers
    properties = PublishProperties(
        response_topic("to/a"),
        correlation_data(b"\0\xff12345"),
        message_expiry(60),
        user_property("Inference-Header-Content-Length", "17"),
    )
    assert a.link.publish("to/b", b"\0\1\2", properties=properties)
    (message,) = await b.messages(1)
    assert (message.topic, message.payload, message.retain) == ("to/b", b"\0\1\2", False)
    assert message.response_topic == "to/a"
    assert message.correlation == b"\0\xff12345"
    assert message.expiry_s is not None
    assert 55 <= message.expiry_s <= 60
    assert message.user_properties == {"Inference-Header-Content-Length": "17"}


async def test_retained_documents_reach_who_comes_later(
    broker: Broker, peers: tuple[Peer, Peer]
) -> None:
    a, b = peers
    for device in ("d1", "d2"):
        for version in (b"old", b"new"):
            a.link.publish(f"devices/{device}/desired", version, qos=1, retain=True)
    await subscribed(a, "to/a")  # so the broker has taken in all that came before
    b.subscribe("devices/d2/desired", qos=1)  # while connected
    (message,) = await b.messages(1)
    assert (message.payload, message.retain) == (b"new", True)

    late = Peer(broker, "late")
    late.subscribe("devices/+/desired", qos=1)
    await late.link.start()
    found = await late.messages(2)
    assert {m.topic: m.payload for m in found} == {
        "devices/d1/desired": b"new",
        "devices/d2/desired": b"new",
    }
    a.link.publish("devices/d1/desired", b"newer", qos=1, retain=True)
    live = (await late.messages(3))[2]
    assert (live.payload, live.retain) == (b"newer", False)
    await late.link.stop()


async def test_the_link_comes_back_after_the_broker_was_killed(
    broker: Broker, peers: tuple[Peer, Peer]
) -> None:
    a, b = peers
    await broker.kill()
    for peer in peers:
        await peer.until(lambda p=peer: p.connections[-1] is False, "the loss")  # type: ignore[misc]
        assert not peer.link.connected
        assert not peer.link.publish("to/b", b"lost")
    await broker.start()
    for peer, topic in ((a, "to/a"), (b, "to/b")):
        await peer.connected(times=2)
        assert peer.connections == [True, False, True]
        await subscribed(peer, topic)
    assert a.link.publish("to/b", b"again")
    assert [m.payload for m in await b.messages(1)] == [b"again"]


async def test_a_link_that_starts_before_the_broker(tmp_path: Path) -> None:
    broker = Embedded(tmp_path)
    peer = Peer(broker, "early")
    peer.subscribe("to/early")
    await peer.link.start()
    assert not peer.link.connected
    assert not peer.link.publish("to/early", b"?")
    await broker.start()
    await peer.connected()
    await subscribed(peer, "to/early")
    await peer.link.stop()
    await broker.kill()


async def test_payloads_of_some_megabytes_both_ways(peers: tuple[Peer, Peer]) -> None:
    rng = random.Random(7)
    sent: dict[str, list[str]] = {"to/a": [], "to/b": []}
    a, b = peers
    for size in (4 * MB, 10, 2 * MB + 1, 1000, 3 * MB):
        for peer, topic in ((a, "to/b"), (b, "to/a")):
            # Far more than the socket takes at once: it is written as the broker reads.
            payload = rng.randbytes(size)
            sent[topic].append(hashlib.sha256(payload).hexdigest())
            assert peer.link.publish(topic, payload)
    for peer, topic in ((a, "to/a"), (b, "to/b")):
        received = await peer.messages(5)
        assert [hashlib.sha256(m.payload).hexdigest() for m in received] == sent[topic]


async def test_no_reply_is_lost_in_a_burst(peers: tuple[Peer, Peer]) -> None:
    a, b = peers
    count, padding = 3000, b"." * 500
    b.link.subscribe(
        "echo", 0, lambda m: b.link.publish(m.response_topic or "", m.payload + padding) and None
    )
    b.link.publish("echo", b"", properties=PublishProperties(response_topic("to/a")))
    await a.messages(1)
    a.received.clear()
    properties = PublishProperties(response_topic("to/a"))
    for number in range(count):
        assert a.link.publish("echo", b"%d:" % number + padding, properties=properties)
    received = await a.messages(count)
    assert [int(m.payload.split(b":")[0]) for m in received] == list(range(count))


async def test_a_handler_that_fails_does_not_end_the_session(peers: tuple[Peer, Peer]) -> None:
    a, b = peers

    def fail(message: Message) -> None:
        raise RuntimeError("a bug")

    for qos in (0, 1):
        a.link.subscribe(f"bad/{qos}", qos, fail)
        await subscribed(a, "to/a")
        b.link.publish(f"bad/{qos}", b"x", qos=qos)
        b.link.publish("to/a", b"next", qos=qos)
        await a.until(lambda: [m.payload for m in a.received] == [b"next"], "the next message")
        a.received.clear()
    assert a.connections == [True]


@pytest.mark.parametrize(("count", "size"), [(10, MB), (200, 50_000), (2000, 500)])
async def test_stop_sends_what_was_published_and_leaves_nothing(
    broker: Broker, peers: tuple[Peer, Peer], count: int, size: int
) -> None:
    before = asyncio.all_tasks()
    leaving = Peer(broker, "leaving")
    leaving.subscribe("to/leaving")
    await leaving.link.start()
    await leaving.connected()
    for number in range(count):
        assert leaving.link.publish("to/a", bytes([number % 256]) * size)
    await leaving.link.stop()
    assert not leaving.link.connected
    assert not leaving.link.publish("to/a", b"?")
    received = await peers[0].messages(count)
    found = [(m.payload[0], len(m.payload)) for m in received]
    assert found == [(n % 256, size) for n in range(count)]
    assert leaving.connections == [True]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before
    await leaving.link.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "::1", "example.org", ""])
def test_the_embedded_broker_serves_this_machine_only(host: str) -> None:
    with pytest.raises(BrokerError, match=r"listens on IPv4 loopback only.*run Mosquitto"):
        EmbeddedBroker(host)


async def test_the_embedded_broker_and_its_port() -> None:
    first = EmbeddedBroker("localhost", 0)
    await first.start()
    second = EmbeddedBroker(port=first.port)
    with pytest.raises(BrokerError, match=f"cannot listen on 127.0.0.1:{first.port}"):
        await second.start()
    await second.stop()
    await first.stop()
    await first.stop()
    third = EmbeddedBroker(port=first.port)  # which is free again
    await third.start()
    await third.stop()
