"""PUBLISH packets, compared with paho's own and with packets made by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from shoal_shared.publish import (
    Message,
    PublishProperties,
    correlation_data,
    decode_publish,
    encode_publish,
    first_publish,
    message_expiry,
    response_topic,
    user_property,
)

# MQTT text: no NUL, and paho refuses what the protocol calls disallowed.
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xD7FF), max_size=20)
TOPIC = TEXT.filter(bool)


def packet(topic: str, properties: bytes, payload: bytes = b"") -> bytes:
    name = topic.encode()
    return struct.pack("!H", len(name)) + name + properties + payload


def of_paho(**values: object) -> bytes:
    properties = Properties(PacketTypes.PUBLISH)
    for name, value in values.items():
        setattr(properties, name, value)
    return properties.pack()


@given(TOPIC, TOPIC, st.binary(max_size=16), st.integers(1, 2**32 - 1), TEXT, TEXT, st.binary())
def test_paho_reads_what_is_encoded(
    topic: str, reply_to: str, key: bytes, expiry: int, name: str, value: str, payload: bytes
) -> None:
    encoded = PublishProperties(
        response_topic(reply_to),
        correlation_data(key),
        message_expiry(expiry),
        user_property(name, value),
    ).pack()
    properties = Properties(PacketTypes.PUBLISH)
    _, length = properties.unpack(encoded)
    assert length == len(encoded)
    assert properties.ResponseTopic == reply_to
    assert properties.CorrelationData == key
    assert properties.MessageExpiryInterval == expiry
    assert properties.UserProperty == [(name, value)]
    assert decode_publish(1, packet(topic, encoded, payload)) == Message(
        topic, payload, True, reply_to, key, expiry, {name: value}
    )


@given(TOPIC, st.binary(max_size=20), st.lists(st.tuples(TEXT, TEXT), max_size=4), st.binary())
def test_what_paho_encodes_is_read(
    reply_to: str, key: bytes, users: list[tuple[str, str]], payload: bytes
) -> None:
    encoded = of_paho(
        ResponseTopic=reply_to,
        CorrelationData=key,
        MessageExpiryInterval=30,
        UserProperty=users or [("a", "b")],
        PayloadFormatIndicator=1,
        ContentType="application/json",
        SubscriptionIdentifier=268_435_455,
        TopicAlias=7,
    )
    message = decode_publish(0, packet("t", encoded, payload))
    assert message.user_properties == dict(users or [("a", "b")])
    assert (message.topic, message.payload, message.retain) == ("t", payload, False)
    assert (message.response_topic, message.correlation) == (reply_to, key)
    assert message.expiry_s == 30


def test_a_packet_without_properties() -> None:
    assert decode_publish(0, packet("a/b", b"\0", b"hi")) == Message("a/b", b"hi")


def test_an_expiry_is_at_least_one_second() -> None:
    for seconds in (0, -3, 1):
        assert message_expiry(seconds) == b"\x02\0\0\0\1"


@pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 60_000])
def test_lengths_of_one_to_three_bytes(size: int) -> None:
    encoded = PublishProperties(*[user_property("k", "v" * size)] * 3).pack()
    message = decode_publish(0, packet("t", encoded, b"end"))
    assert message.user_properties == {"k": "v" * size}
    assert message.payload == b"end"


@pytest.mark.parametrize("size", [65_536, 10**6])
def test_texts_that_a_packet_cannot_hold(size: int) -> None:
    with pytest.raises(ValueError, match="longer than 65535"):
        user_property("k", "v" * size)


def test_the_payload_is_a_copy_aligned_for_any_element_type() -> None:
    raw = bytearray(packet("odd", b"\0", b"12345678"))
    message = decode_publish(0, raw)
    raw[-8:] = b"\0" * 8
    assert message.payload == b"12345678"
    assert np.frombuffer(message.payload, np.float64).flags.aligned


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        b"\0\5ab",
        b"\0\1a",
        b"\0\1a\x05",
        packet("a", b"\x80"),
        packet("a", b"\x80\x80\x80\x80\x01"),
        packet("a", b"\xff\xff\xff\xff\x7f"),
        packet("a", b"\x01\x02"),
        packet("a", b"\x03\x02\0\0"),
        packet("a", b"\x02\x09\0"),
        packet("a", b"\x03\x09\0\x05abc"),
        packet("a", b"\x03\x26\0\x01a"),
        packet("a", b"\x02\x08\0"),
        packet("a", b"\x04\x08\0\x01\xff"),
        packet("a", b"\x01\x23"),
        packet("a", b"\x02\x23\0"),
        packet("a", b"\x02\x0b\x80"),
        packet("a", b"\x01\x01"),
        packet("a", b"\x02\x11\0"),
        packet("a", b"\x02\x00\0"),
        b"\0\1\xff\0",
    ],
)
def test_malformed_packets(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_publish(0, raw)


@given(st.integers(0, 15), st.binary(max_size=80))
def test_noise_raises_nothing_but_value_errors(flags: int, raw: bytes) -> None:
    try:
        message = decode_publish(flags, raw)
    except ValueError:
        return
    assert raw.endswith(message.payload)


@given(st.data())
def test_a_damaged_packet_raises_nothing_but_value_errors(data: st.DataObject) -> None:
    properties = PublishProperties(
        response_topic("r"),
        correlation_data(b"12345678"),
        message_expiry(5),
        user_property("k", "v"),
    )
    raw = bytearray(packet("a/b", properties.pack(), b"payload"))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        decode_publish(0, raw)
    except ValueError:
        pass


@given(TOPIC, st.binary(max_size=400), st.binary(max_size=8), st.binary(max_size=8))
def test_a_whole_packet_is_found_at_the_start(
    topic: str, payload: bytes, key: bytes, behind: bytes
) -> None:
    whole = encode_publish(topic, payload, PublishProperties(correlation_data(key)))
    span = first_publish(memoryview(whole + behind))
    assert span is not None
    assert span[1] == len(whole)
    message = decode_publish(whole[0] & 0x0F, memoryview(whole)[span[0] :])
    assert message == Message(topic, payload, correlation=key)
    for cut in range(len(whole)):
        assert first_publish(memoryview(whole)[:cut]) is None


@pytest.mark.parametrize("start", [0x20, 0x32, 0x34, 0x40, 0x90, 0xD0])
def test_other_packets_are_left_to_the_library(start: int) -> None:
    assert first_publish(memoryview(bytes([start, 2, 0, 0]))) is None


@given(st.binary(max_size=40))
def test_noise_is_no_packet_or_one_within_the_noise(noise: bytes) -> None:
    span = first_publish(memoryview(noise))
    assert span is None or 2 <= span[0] <= span[1] <= len(noise)
