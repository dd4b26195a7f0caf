"""The link against a broker of a few lines, which can misbehave as no real one would."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shoal_agent.connectivity import link as link_module
from shoal_agent.connectivity.link import MAX_PACKET_BYTES, MqttLink
from shoal_shared.publish import Message, PublishProperties, correlation_data

CONNACK = b"\x20\x03\x00\x00\x00"
REFUSED = b"\x20\x03\x00\x87\x00"

Behaviour = Callable[
    ["FakeBroker", asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]
]


def publish_packet(topic: str, payload: bytes, qos: int = 0) -> bytes:
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name + (b"\x00\x07" if qos else b"") + b"\x00" + payload
    return bytes([0x30 | qos << 1]) + varint(len(body)) + body


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, digit = value >> 7, value & 0x7F
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


class FakeBroker:
    """Accepts connections and does with each what the next behaviour says."""

    def __init__(self) -> None:
        self.behaviours: list[Behaviour] = []
        self.packets: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.connections = 0
        self.writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        if self.writer is not None:
            self.writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        behave = self.behaviours.pop(0) if self.behaviours else well
        try:
            await behave(self, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def packet(self, kind: int) -> bytes:
        """The next packet of a kind, without its fixed header."""

        async def find() -> bytes:
            while True:
                first, body = await self.packets.get()
                if first >> 4 == kind:
                    return body

        return await asyncio.wait_for(find(), 10)


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        digit = (await reader.readexactly(1))[0]
        length |= (digit & 0x7F) << shift
        shift += 7
        if digit < 0x80:
            return first, await reader.readexactly(length)


async def well(
    broker: FakeBroker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while True:
        first, body = await read_packet(reader)
        broker.packets.put_nowait((first, body))
        if first >> 4 == 1:
            writer.write(CONNACK)
        elif first >> 4 == 14:
            return


def after_connect(answer: bytes) -> Behaviour:
    async def behave(
        broker: FakeBroker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        broker.packets.put_nowait(await read_packet(reader))
        writer.write(answer)
        await reader.read(100_000)

    return behave


async def hang_up(_b: FakeBroker, _r: asyncio.StreamReader, _w: asyncio.StreamWriter) -> None:
    pass


@pytest.fixture
async def broker() -> AsyncIterator[FakeBroker]:
    broker = FakeBroker()
    await broker.start()
    yield broker
    await broker.stop()


class Watched:
    """A link with everything that it calls back with."""

    def __init__(self, port: int) -> None:
        self.link = MqttLink(
            "127.0.0.1", port, "default:d1", rng=_Impatient(), clock=time.monotonic
        )
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.states: asyncio.Queue[bool] = asyncio.Queue()
        self.link.set_will("will", b"gone")
        self.link.subscribe("in", 0, self.messages.put_nowait)
        self.link.on_connection(self.states.put_nowait)

    async def state(self) -> bool:
        return await asyncio.wait_for(self.states.get(), 10)

    async def message(self) -> Message:
        return await asyncio.wait_for(self.messages.get(), 10)


class _Impatient(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return 0.01


@asynccontextmanager
async def linked(broker: FakeBroker) -> AsyncIterator[Watched]:
    watched = Watched(broker.port)
    await watched.link.start()
    yield watched
    await asyncio.wait_for(watched.link.stop(), 10)


async def test_it_introduces_itself_subscribes_and_says_goodbye(broker: FakeBroker) -> None:
    async with linked(broker) as watched:
        assert await watched.state() is True
        connect = await broker.packet(1)
        # MQTT 5, clean start with a retained will of QoS 1, and the largest packet it takes.
        assert connect[:8] == b"\x00\x04MQTT\x05" + bytes([0x02 | 0x04 | 1 << 3 | 0x20])
        assert b"\x27" + MAX_PACKET_BYTES.to_bytes(4, "big") in connect
        assert connect.endswith(b"\x00\x04will\x00\x04gone")
        assert b"\x00\x02in" in await broker.packet(8)
        assert watched.link.publish("out", b"payload")
        assert await broker.packet(3) == b"\x00\x03out\x00payload"
    assert await broker.packet(14) == b""
    assert not watched.link.connected


async def test_small_packets_are_not_held_back(broker: FakeBroker) -> None:
    async with linked(broker) as watched:
        await watched.state()
        sock = watched.link._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_messages_arrive_however_they_are_cut(broker: FakeBroker) -> None:
    rng = random.Random(3)
    payloads = [rng.randbytes(n) for n in (0, 1, 127, 128, 5000, 70_000, 300_000, 3)]
    stream = b"".join(publish_packet("in", p, qos=i % 2) for i, p in enumerate(payloads))
    async with linked(broker) as watched:
        await watched.state()
        assert broker.writer is not None
        at = 0
        while at < len(stream):
            size = rng.choice([1, 2, 3, 1000, 65_536, 100_000])
            broker.writer.write(stream[at : at + size])
            at += size
            await asyncio.sleep(0)
        assert [(await watched.message()).payload for _ in payloads] == payloads


async def test_properties_of_fast_messages_arrive(broker: FakeBroker) -> None:
    properties = PublishProperties(correlation_data(b"id")).pack()
    body = b"\x00\x02in" + properties + b"data"
    async with linked(broker) as watched:
        await watched.state()
        assert broker.writer is not None
        broker.writer.write(bytes([0x31]) + varint(len(body)) + body)
        message = await watched.message()
        assert (message.correlation, message.payload, message.retain) == (b"id", b"data", True)
        watched.link.publish("out", b"x", properties=PublishProperties(correlation_data(b"id")))
        assert await broker.packet(3) == b"\x00\x03out" + properties + b"x"


@pytest.mark.parametrize(
    "behaviour",
    [
        hang_up,
        after_connect(b""),
        after_connect(REFUSED),
        after_connect(b"\x20"),
        after_connect(b"\xff\xff\xff\xff\xff\xff"),
        after_connect(b"\x20\x00"),
        after_connect(CONNACK + b"\x30\x02\x00\xff"),
        after_connect(CONNACK + b"\x32\x01\x00"),
        after_connect(CONNACK + b"\x32\x07\x00\x02\xff\xfe\x00\x01\x00"),
        after_connect(CONNACK + b"\x90\x00"),
        after_connect(CONNACK + b"\xe0\x01\x8e"),
    ],
)
async def test_a_broker_that_misbehaves_is_left_and_tried_again(
    broker: FakeBroker, behaviour: Behaviour
) -> None:
    broker.behaviours = [behaviour]
    watched = Watched(broker.port)
    await watched.link.start()

    async def sane() -> None:
        while broker.connections < 2 or not watched.link.connected:
            if broker.connections == 1 and broker.writer is not None:
                # One that only keeps silent would be left after the keep-alive.
                await asyncio.sleep(0.01)
                if not watched.link.connected:
                    broker.writer.close()
            await asyncio.sleep(0.01)

    await asyncio.wait_for(sane(), 10)
    await asyncio.wait_for(watched.link.stop(), 10)


async def test_after_a_loss_it_subscribes_again_and_old_documents_are_not_repeated(
    broker: FakeBroker,
) -> None:
    async with linked(broker) as watched:
        await watched.state()
        assert watched.link.publish("doc", b"old", qos=1, retain=True)
        await broker.packet(3)
        assert broker.writer is not None
        broker.writer.transport.abort()
        assert await watched.state() is False
        assert not watched.link.publish("doc", b"lost", qos=1)
        assert await watched.state() is True
        watched.link.publish("doc", b"new", qos=1, retain=True)
        await broker.packet(8)
        assert (await broker.packet(3)).endswith(b"new")
        watched.link.publish("doc", b"newer")
        assert (await broker.packet(3)).endswith(b"newer")


async def test_a_handler_that_fails_does_not_end_the_session(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(broker) as watched:

        def fail(message: Message) -> None:
            watched.messages.put_nowait(message)
            raise RuntimeError("bug")

        watched.link.subscribe("in", 0, fail)
        await watched.state()
        assert broker.writer is not None
        broker.writer.write(publish_packet("in", b"1") + publish_packet("in", b"2", qos=1))
        assert [(await watched.message()).payload for _ in "12"] == [b"1", b"2"]
        assert watched.link.connected
    assert caplog.text.count("message handler failed") == 2


async def test_a_broker_that_does_not_read_costs_messages_and_not_memory(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_MAX_BACKLOG_BYTES", 20_000_000)
    monkeypatch.setattr(link_module, "_STOP_S", 0.05)
    resume = asyncio.Event()

    async def lazy(
        broker: FakeBroker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_packet(reader)
        writer.write(CONNACK)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await resume.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await well(broker, reader, writer)

    broker.behaviours = [lazy]
    async with linked(broker) as watched:
        await watched.state()
        sent = [watched.link.publish("out", bytes(5_000_000)) for _ in range(10)]
        assert sent[0]
        assert not sent[-1]
        resume.set()
        for _ in range(sum(sent)):
            assert len(await broker.packet(3)) > 5_000_000
        assert watched.link.publish("out", b"again")
        assert (await broker.packet(3)).endswith(b"again")


async def test_stopping_while_it_cannot_connect_ends(broker: FakeBroker) -> None:
    await broker.stop()
    watched = Watched(broker.port)
    await watched.link.start()
    await asyncio.sleep(0.03)
    await asyncio.wait_for(watched.link.stop(), 10)
    assert not watched.link.publish("out", b"x")


async def test_topics_come_and_go_while_it_is_connected(broker: FakeBroker) -> None:
    async with linked(broker) as watched:
        await watched.state()
        assert b"\x00\x02in" in await broker.packet(8)
        more: asyncio.Queue[Message] = asyncio.Queue()
        watched.link.subscribe("more", 0, more.put_nowait)
        watched.link.publish("report", b"sent", qos=1)
        # The broker knows of the topic before anything that is published afterwards.
        first, body = await asyncio.wait_for(broker.packets.get(), 10)
        assert (first >> 4, b"\x00\x04more" in body) == (8, True)
        assert (await broker.packet(3)).endswith(b"sent")
        assert broker.writer is not None
        broker.writer.write(publish_packet("more", b"1"))
        assert (await asyncio.wait_for(more.get(), 10)).payload == b"1"

        replaced: asyncio.Queue[Message] = asyncio.Queue()
        watched.link.subscribe("more", 0, replaced.put_nowait)
        broker.writer.write(publish_packet("more", b"2"))
        assert (await asyncio.wait_for(replaced.get(), 10)).payload == b"2"

        watched.link.unsubscribe("more")
        watched.link.unsubscribe("never")
        assert b"\x00\x04more" in await broker.packet(10)
        broker.writer.write(publish_packet("more", b"late") + publish_packet("in", b"other"))
        assert (await watched.message()).payload == b"other"
        assert more.empty()
        assert replaced.empty()


async def test_topics_outlive_the_session_in_which_they_came(broker: FakeBroker) -> None:
    async with linked(broker) as watched:
        await watched.state()
        watched.link.subscribe("kept", 0, watched.messages.put_nowait)
        watched.link.subscribe("gone", 0, watched.messages.put_nowait)
        for _ in range(3):
            await broker.packet(8)
        assert broker.writer is not None
        broker.writer.transport.abort()
        assert await watched.state() is False
        watched.link.unsubscribe("gone")
        watched.link.subscribe("new", 0, watched.messages.put_nowait)
        assert await watched.state() is True
        asked = [await broker.packet(8) for _ in range(3)]
        assert [any(name in body for body in asked) for name in (b"in", b"kept", b"new")] == [
            True
        ] * 3
        assert broker.packets.empty()
