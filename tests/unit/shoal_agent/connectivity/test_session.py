from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from shoal_agent.connectivity import session as session_module
from shoal_agent.connectivity.exchange import Exchange
from shoal_agent.connectivity.session import DeviceSession, Key, Reply
from shoal_agent.connectivity.transport import Transport
from shoal_agent.identity.device import Identity
from shoal_shared.messages import Board as BoardDescription
from shoal_shared.messages import (
    Capabilities,
    Desired,
    Reported,
    Status,
    decode_document,
    encode_document,
)
from shoal_shared.oip import HEADER_LENGTH
from shoal_shared.publish import CANCEL, Handler, Message, PublishProperties, decode_publish
from shoal_shared.status import Presence
from shoal_shared.tensors import Buffer

BASE = "shoal/v1/default/devices/d1/"
REPLIES = "shoal/v1/default/gateways/g1/replies"


class FakeTransport:
    """Records what is published; messages are put in by hand."""

    def __init__(self) -> None:
        self.connected = False
        self.will: tuple[str, bytes] | None = None
        self.handlers: dict[str, tuple[int, Handler]] = {}
        self.listeners: list[Callable[[bool], None]] = []
        self.sent: list[tuple[str, bytes, int, bool, PublishProperties | None]] = []
        self.running = False

    def set_will(self, topic: str, payload: bytes) -> None:
        self.will = topic, payload

    def subscribe(self, topic: str, qos: int, handler: Handler) -> None:
        self.handlers[topic] = qos, handler

    def unsubscribe(self, topic: str) -> None:
        del self.handlers[topic]

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        self.listeners.append(callback)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> bool:
        if self.connected:
            self.sent.append((topic, payload, qos, retain, properties))
        return self.connected

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = self.connected = False

    def connect(self, connected: bool = True) -> None:
        self.connected = connected
        for listener in self.listeners:
            listener(connected)


_conforms: type[Transport] = FakeTransport


class Rig:
    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.desired: list[Desired] = []
        self.requests: list[tuple[bytes, int | None, float | None, Reply, Key | None]] = []
        self.cancelled: list[Key] = []
        self.connections: list[bool] = []
        self.session = DeviceSession(
            self.transport,
            "default",
            Identity("d1", "boot"),
            on_desired=self.desired.append,
            infer=lambda *request: self.requests.append(request),
            cancel=self.cancelled.append,
            on_connection=self.connections.append,
            clock=lambda: 100.0,
        )

    def receive(self, topic: str, message: Message) -> None:
        self.transport.handlers[BASE + topic][1](message)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def request(payload: bytes = b"request", **more: object) -> Message:
    values: dict[str, object] = {
        "response_topic": REPLIES,
        "correlation": b"12345678",
        "expiry_s": 3,
        "user_properties": {HEADER_LENGTH: "5"},
    } | more
    return Message(BASE + "infer", payload, **values)  # type: ignore[arg-type]


def test_presence_is_said_on_connect_left_as_a_will_and_said_at_the_end(rig: Rig) -> None:
    assert rig.transport.will is not None
    topic, payload = rig.transport.will
    assert topic == BASE + "status"
    assert decode_document(Status, payload) == Status(state=Presence.OFFLINE, boot_id="boot")
    rig.transport.connect()
    rig.session.say_offline()
    said = [(t, decode_document(Status, p).state, q, r) for t, p, q, r, _ in rig.transport.sent]
    assert said == [
        (BASE + "status", Presence.ONLINE, 1, True),
        (BASE + "status", Presence.OFFLINE, 1, True),
    ]
    assert rig.connections == [True]
    rig.transport.connect(False)
    assert rig.connections == [True, False]


def test_goals_are_subscribed_reliably_and_requests_fast(rig: Rig) -> None:
    assert {t: q for t, (q, _) in rig.transport.handlers.items()} == {
        BASE + "desired": 1,
        BASE + "infer": 0,
    }


async def test_start_and_stop_are_the_transports(rig: Rig) -> None:
    await rig.session.start()
    assert rig.transport.running
    await rig.session.stop()
    assert not rig.transport.running


def test_documents_are_retained_and_dropped_while_offline(rig: Rig) -> None:
    document = Reported(goal=1, boot_id="boot")
    assert not rig.session.publish_reported(document)
    rig.transport.connect()
    assert rig.session.publish_reported(document)
    topic, payload, qos, retain, _ = rig.transport.sent[-1]
    assert (topic, qos, retain) == (BASE + "reported", 1, True)
    assert decode_document(Reported, payload) == document


def test_a_document_over_the_limit_is_not_sent(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.transport.connect()
    board = BoardDescription(family="generic", model="x" * 9000)
    large = Capabilities(agent_version="1", board=board, cores=1, memory_bytes=1, disk_free_bytes=1)
    assert not rig.session.publish_capabilities(large)
    assert "document not published" in caplog.text


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"\xff\xfe",
        b'{"v":2,"goal":1}',
        b'{"v":1,"goal":"one"}',
        b'{"v":1,"goal":1,"models":[{"model":"m"}]}',
        b"[" * 5000,
        b'{"v":1,"goal":1,"x":"' + b"a" * 9000 + b'"}',
    ],
)
def test_a_bad_goal_document_costs_one_line(
    rig: Rig, caplog: pytest.LogCaptureFixture, payload: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        rig.receive("desired", Message(BASE + "desired", payload, retain=True))
    assert rig.desired == []
    assert [r.getMessage() for r in caplog.records] == ["ignored a goal document"]


def test_a_good_goal_document_is_handed_on(rig: Rig) -> None:
    desired = Desired(goal=4)
    rig.receive("desired", Message(BASE + "desired", encode_document(desired), retain=True))
    rig.receive("desired", Message(BASE + "desired", b"", retain=True))
    assert rig.desired == [desired]


def test_a_request_is_handed_on_with_its_deadline(rig: Rig) -> None:
    rig.receive("infer", request())
    ((payload, header_length, expires_at, _, key),) = rig.requests
    assert key == (REPLIES, b"12345678")
    assert (payload, header_length, expires_at) == (b"request", 5, 103.0)


def test_a_cancel_is_handed_on_by_the_name_of_its_request(rig: Rig) -> None:
    rig.transport.connect()
    before = len(rig.transport.sent)
    rig.receive("infer", request(b"", user_properties={CANCEL: "1"}))
    assert rig.cancelled == [(REPLIES, b"12345678")]
    assert rig.requests == []
    assert len(rig.transport.sent) == before


@pytest.mark.parametrize(
    "message",
    [
        {"response_topic": None},
        {"correlation": None},
        {"correlation": b""},
        {"retain": True},
    ],
)
def test_a_cancel_that_names_nothing_is_dropped_without_a_word(
    rig: Rig, caplog: pytest.LogCaptureFixture, message: dict[str, object]
) -> None:
    facts: dict[str, object] = {"user_properties": {CANCEL: "1"}}
    rig.receive("infer", request(b"", **facts | message))
    assert rig.cancelled == rig.requests == []
    assert caplog.records == []


def test_a_request_without_properties_has_no_deadline(rig: Rig) -> None:
    rig.receive("infer", request(expiry_s=None, user_properties={}))
    assert rig.requests[0][1:3] == (None, None)


@pytest.mark.parametrize("length", ["", "-1", "five", "٣", "9" * 30])
def test_a_length_that_is_no_number_reaches_the_service_as_impossible(
    rig: Rig, length: str
) -> None:
    rig.receive("infer", request(user_properties={HEADER_LENGTH: length}))
    assert rig.requests[0][1] == -1


@pytest.mark.parametrize(
    "message",
    [
        request(response_topic=None),
        request(response_topic="shoal/v1/default/devices/d2/desired"),
        request(response_topic="shoal/v1/other/gateways/g1/replies"),
        request(response_topic="shoal/v1/default/gateways/+/replies"),
        request(retain=True),
    ],
)
def test_a_request_that_may_not_be_answered_costs_one_line(
    rig: Rig, caplog: pytest.LogCaptureFixture, message: Message
) -> None:
    rig.receive("infer", message)
    assert rig.requests == []
    assert [r.getMessage() for r in caplog.records] == ["ignored an inference request"]


def test_a_request_over_the_limit_costs_one_line(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_PAYLOAD_BYTES", 10)
    rig.receive("infer", request(b"x" * 11))
    assert rig.requests == []
    assert "larger than the limit" in str(caplog.records[0].__dict__["fields"])


@pytest.mark.parametrize("length", [4, None])
def test_the_reply_goes_back_with_correlation_and_header_length(
    rig: Rig, length: int | None
) -> None:
    rig.transport.connect()
    rig.receive("infer", request())
    buffers: list[Buffer] = [b"head", memoryview(b"tail")]
    rig.requests[0][3](buffers, length)
    topic, payload, qos, retain, properties = rig.transport.sent[-1]
    assert (topic, payload, qos, retain) == (REPLIES, b"headtail", 0, False)
    assert properties is not None
    arrived = decode_publish(0, b"\0\1t" + properties.pack() + payload)
    assert arrived.payload == b"headtail"
    assert arrived.correlation == b"12345678"
    assert arrived.user_properties == ({} if length is None else {HEADER_LENGTH: "4"})


def test_a_reply_without_a_session_is_dropped(rig: Rig) -> None:
    rig.receive("infer", request(correlation=None))
    rig.requests[0][3]([b"late"], None)
    assert rig.transport.sent == []


PLAN = "shoal/v1/default/plans/p/1/0"


def test_more_topics_are_listened_to_and_left_at_any_time(rig: Rig) -> None:
    rig.transport.connect()
    exchanges: list[Exchange] = []
    rig.session.listen(PLAN, exchanges.append)
    qos, handler = rig.transport.handlers[PLAN]
    assert qos == 0
    handler(request())
    handler(request(retain=True))
    handler(request(response_topic=None))
    handler(request(expiry_s=None, user_properties={}))
    assert [(e.payload, e.header_length, e.expires_at) for e in exchanges] == [
        (b"request", 5, 103.0),
        (b"request", None, None),
    ]
    assert rig.requests == []
    rig.session.leave(PLAN)
    assert PLAN not in rig.transport.handlers


@pytest.mark.parametrize(
    ("left_s", "expiry_s"), [(None, None), (0.2, 1), (2.0, 2), (2.1, 3), (1e-9, 1)]
)
def test_what_is_handed_on_is_answered_where_it_came_from(
    rig: Rig, left_s: float | None, expiry_s: int | None
) -> None:
    rig.transport.connect()
    exchanges: list[Exchange] = []
    rig.session.listen(PLAN, exchanges.append)
    rig.transport.handlers[PLAN][1](request())
    exchanges[0].forward("next", [b"head", memoryview(b"tail")], 4, left_s)
    topic, payload, qos, retain, properties = rig.transport.sent[-1]
    assert (topic, payload, qos, retain) == ("next", b"headtail", 0, False)
    assert properties is not None
    arrived = decode_publish(0, b"\0\1t" + properties.pack() + payload)
    assert (arrived.response_topic, arrived.correlation) == (REPLIES, b"12345678")
    assert (arrived.expiry_s, arrived.user_properties) == (expiry_s, {HEADER_LENGTH: "4"})
