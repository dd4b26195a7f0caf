"""The control plane's link before brokers that misbehave: a script plays the broker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from shoal_controlplane.mqtt.link import MqttLink
from shoal_shared.publish import Message

CONNACK = b"\x20\x03\0\0\0"
REFUSED = b"\x20\x03\0\x87\0"
CONNECT, PUBLISH, PUBACK, SUBSCRIBE, DISCONNECT = 1, 3, 4, 8, 14
TIMEOUT_S = 10.0


def publish(topic: bytes, payload: bytes, flags: int = 0, properties: bytes = b"\0") -> bytes:
    mid = b"\0\1" if flags & 6 else b""
    rest = len(topic).to_bytes(2, "big") + topic + mid + properties + payload
    assert len(rest) < 128
    return bytes([0x30 | flags, len(rest)]) + rest


class Session:
    """One connection as the broker sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def packet(self, kind: int) -> bytes:
        """The next packet, which must be of `kind`."""
        found, body = await self.any_packet()
        assert found == kind
        return body

    async def any_packet(self) -> tuple[int, bytes]:
        first = (await self._reader.readexactly(1))[0]
        length = shift = 0
        while True:
            digit = (await self._reader.readexactly(1))[0]
            length |= (digit & 0x7F) << shift
            shift += 7
            if digit < 0x80:
                return first >> 4, await self._reader.readexactly(length)

    async def accept(self, subscriptions: int = 0) -> None:
        await self.packet(CONNECT)
        self.writer.write(CONNACK)
        for _ in range(subscriptions):
            await self.packet(SUBSCRIBE)

    async def ended(self) -> bool:
        """The other side closed, perhaps after some packets."""
        while True:
            try:
                if not await asyncio.wait_for(self._reader.read(65536), TIMEOUT_S):
                    return True
            except ConnectionError:
                return True


class Scripted:
    """Connections are handed to the test one by one."""

    def __init__(self) -> None:
        self._sessions: asyncio.Queue[Session] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def session(self) -> Session:
        return await asyncio.wait_for(self._sessions.get(), TIMEOUT_S)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._sessions.put_nowait(Session(reader, writer))


@pytest.fixture
async def broker() -> AsyncIterator[Scripted]:
    made = Scripted()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def link(broker: Scripted, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MqttLink]:
    # The script answers no goodbye.
    monkeypatch.setattr("shoal_controlplane.mqtt.link._STOP_S", 0.05)
    made = MqttLink("127.0.0.1", broker.port, "g", rng=random.Random(1), max_backoff_s=0.1)
    yield made
    await made.stop()


async def until(check: Callable[[], object]) -> None:
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never happened")


async def test_what_was_not_acknowledged_is_not_sent_after_newer_goals(
    broker: Scripted, link: MqttLink
) -> None:
    goals = [b"goal 5", b"goal 6"]

    def publish_goal(connected: bool) -> None:
        if connected:
            link.publish("desired", goals.pop(0), qos=1, retain=True)

    link.on_connection(publish_goal)
    await link.start()
    first = await broker.session()
    await first.accept()
    assert (await first.packet(PUBLISH)).endswith(b"goal 5")
    first.writer.close()  # without an acknowledgement
    second = await broker.session()
    await second.accept()
    assert (await second.packet(PUBLISH)).endswith(b"goal 6")
    await link.stop()
    kinds = [(await second.any_packet())[0]]
    while kinds[-1] != DISCONNECT:
        kinds.append((await second.any_packet())[0])
    assert PUBLISH not in kinds


Misbehaviour = Callable[[Session], Awaitable[None]]


async def _garbage(session: Session) -> None:
    await session.accept(1)
    session.writer.write(b"\xff" * 200)


async def _malformed_qos_0(session: Session) -> None:
    await session.accept(1)
    session.writer.write(publish(b"to/g", b"", properties=b"\x02\x11\0"))


async def _malformed_qos_1(session: Session) -> None:
    await session.accept(1)
    session.writer.write(publish(b"to/g", b"", flags=2, properties=b"\x02\x11\0"))


async def _topic_that_is_no_text(session: Session) -> None:
    await session.accept(1)
    session.writer.write(publish(b"to/\xff", b"", flags=2))


async def _endless_length(session: Session) -> None:
    await session.accept(1)
    session.writer.write(b"\x30\xff\xff\xff\xff\xff")


async def _disconnect(session: Session) -> None:
    await session.accept(1)
    session.writer.write(b"\xe0\x02\x8e\0")


async def _cut_off(session: Session) -> None:
    await session.accept(1)
    session.writer.write(publish(b"to/g", b"payload")[:-3])
    session.writer.close()


async def _refusal(session: Session) -> None:
    await session.packet(CONNECT)
    session.writer.write(REFUSED)


async def _silence_then_close(session: Session) -> None:
    session.writer.close()


@pytest.mark.parametrize(
    "misbehave",
    [
        _garbage,
        _malformed_qos_0,
        _malformed_qos_1,
        _topic_that_is_no_text,
        _endless_length,
        _disconnect,
        _cut_off,
        _refusal,
        _silence_then_close,
    ],
)
async def test_a_new_session_after_misbehaviour(
    broker: Scripted, link: MqttLink, misbehave: Misbehaviour
) -> None:
    received: list[Message] = []
    link.subscribe("to/+", 1, received.append)
    with capture_logs():
        await link.start()
        bad = await broker.session()
        await misbehave(bad)
        assert await bad.ended()
        good = await broker.session()
        await good.accept(1)
        # Nothing of the old session is left over in the new one.
        good.writer.write(publish(b"to/g", b"0") + publish(b"to/g", b"1", flags=3))
        await good.packet(PUBACK)
    assert [(m.payload, m.retain) for m in received] == [(b"0", False), (b"1", True)]


async def test_many_packets_in_one_read_and_one_packet_in_many(
    broker: Scripted, link: MqttLink
) -> None:
    received: list[bytes] = []
    link.subscribe("to/g", 0, lambda m: received.append(m.payload))
    await link.start()
    session = await broker.session()
    await session.accept(1)
    session.writer.write(b"".join(publish(b"to/g", b"%d" % i) for i in range(2000)))
    await until(lambda: len(received) == 2000)
    assert received == [b"%d" % i for i in range(2000)]
    received.clear()
    for byte in publish(b"to/g", b"slow"):
        session.writer.write(bytes([byte]))
        await session.writer.drain()
        await asyncio.sleep(0)
    await until(lambda: received)
    assert received == [b"slow"]


async def test_a_broker_that_does_not_read_is_not_fed_for_ever(
    broker: Scripted, link: MqttLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal_controlplane.mqtt.link._MAX_BACKLOG_BYTES", 32 << 20)
    await link.start()
    session = await broker.session()
    await session.accept()
    await until(lambda: link.connected)
    session.writer.transport.pause_reading()  # type: ignore[attr-defined]
    with capture_logs() as logs:
        taken = sum(link.publish("t", bytes(4 << 20)) for _ in range(32))
        assert 8 <= taken < 20
        assert link.connected
        await link.stop()  # it does not wait for ever either
    events = {entry["event"] for entry in logs}
    assert {
        "dropped a message: the broker reads too slowly",
        "left the broker without a goodbye",
    } <= events
    assert not link.connected


async def test_a_listener_that_fails_keeps_nobody_from_anything(
    broker: Scripted, link: MqttLink
) -> None:
    told: list[bool] = []

    def fail(connected: bool) -> None:
        raise RuntimeError("a bug")

    link.on_connection(fail)
    link.on_connection(told.append)
    with capture_logs() as logs:
        await link.start()
        first = await broker.session()
        await first.accept()
        await until(lambda: told == [True])
        first.writer.close()
        second = await broker.session()
        await second.accept()
        await until(lambda: told == [True, False, True])
    assert [e["event"] for e in logs].count("connection listener failed") == 3


async def test_stop_while_the_broker_is_away_or_has_not_answered(broker: Scripted) -> None:
    for port in (1, broker.port):
        link = MqttLink("127.0.0.1", port, "g", rng=random.Random(1))
        with capture_logs():
            await link.start()
            await asyncio.sleep(0)
            await asyncio.wait_for(link.stop(), TIMEOUT_S)
        assert not link.connected
    session = await broker.session()
    assert await session.ended()


async def test_only_the_first_failure_in_a_row_is_logged(broker: Scripted, link: MqttLink) -> None:
    with capture_logs() as logs:
        await link.start()
        for _ in range(4):
            session = await broker.session()
            await session.packet(CONNECT)
            session.writer.write(REFUSED)
    warnings = [e for e in logs if e["log_level"] == "warning"]
    assert [e["event"] for e in warnings] == ["broker refused the session"]
