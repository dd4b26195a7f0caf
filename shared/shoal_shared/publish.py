"""PUBLISH packets of MQTT 5, encoded and decoded without a client library's detours.

paho looks every property up by name in several lists, and copies the payload for every property
that it reads; with tensors as payload that costs more than all the rest of a message's way. The
links of agent and control plane use these functions for the data path instead.

Source: MQTT 5.0, sections 2.2.2 (properties) and 3.3 (PUBLISH).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_EXPIRY, _RESPONSE_TOPIC, _CORRELATION, _USER = 0x02, 0x08, 0x09, 0x26
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")

CANCEL = "Shoal-Cancel"
"""The user property of a message without payload on a device's topic for requests: whoever sent
the request of the same response topic and correlation data waits for it no more."""

# How long the value of every other property that a PUBLISH may carry is: payload format,
# content type, subscription identifier, topic alias.
_SKIP: dict[int, str] = {0x01: "byte", 0x03: "string", 0x0B: "varint", 0x23: "u16"}


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it arrived. `payload` is a copy of its own, aligned for any element type.

    `expiry_s` is what remains of the message's lifetime in whole seconds, None for ever.
    """

    topic: str
    payload: bytes
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    user_properties: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Message], None]


class PublishProperties:
    """Encoded properties of a PUBLISH, to be reused; clients ask only for `pack()`."""

    __slots__ = ("_encoded",)

    def __init__(self, *properties: bytes) -> None:
        encoded = b"".join(properties)
        self._encoded = _encode_varint(len(encoded)) + encoded

    def pack(self) -> bytes:
        return self._encoded


def response_topic(topic: str) -> bytes:
    """The property that names the topic for replies."""
    return b"\x08" + _string(topic.encode())


def correlation_data(data: bytes) -> bytes:
    """The property that a reply echoes."""
    return b"\x09" + _string(data)


def message_expiry(seconds: int) -> bytes:
    """Lifetime in whole seconds, at least 1: the protocol knows nothing finer."""
    return b"\x02" + _U32.pack(max(1, seconds))


def user_property(name: str, value: str) -> bytes:
    """A name and a value of our own."""
    return b"\x26" + _string(name.encode()) + _string(value.encode())


def encode_publish(topic: str, payload: bytes, properties: PublishProperties) -> bytes:
    """A whole PUBLISH packet of QoS 0, not retained. `topic` must be valid."""
    head = _string(topic.encode()) + properties.pack()
    return b"\x30" + _encode_varint(len(head) + len(payload)) + head + payload


def first_publish(data: memoryview) -> tuple[int, int] | None:
    """Where a whole PUBLISH of QoS 0 at the start of `data` goes on after its length, and where
    it ends; None if there is something else, or not all of it."""
    if len(data) < 2 or data[0] & 0xF6 != 0x30:
        return None
    try:
        size, at = _decode_varint(data, 1)
    except (IndexError, ValueError):
        return None
    return (at, at + size) if at + size <= len(data) else None


def decode_publish(flags: int, packet: bytes | bytearray | memoryview) -> Message:
    """Decode a PUBLISH of QoS 0 from its flags and all that follows its length.

    Raises `ValueError` for a malformed packet.
    """
    view = memoryview(packet)
    try:
        at = 2 + _U16.unpack_from(view, 0)[0]
        topic = str(view[2:at], "utf-8")
        size, at = _decode_varint(view, at)
        end = at + size
        if end > len(view):
            raise ValueError("properties end after the packet")
        reply_to: str | None = None
        correlation: bytes | None = None
        expiry: int | None = None
        user: dict[str, str] = {}
        while at < end:
            kind = view[at]
            at += 1
            if kind == _CORRELATION:
                data, at = _decode_string(view, at)
                correlation = bytes(data)
            elif kind == _USER:
                name, at = _decode_string(view, at)
                value, at = _decode_string(view, at)
                user[str(name, "utf-8")] = str(value, "utf-8")
            elif kind == _RESPONSE_TOPIC:
                data, at = _decode_string(view, at)
                reply_to = str(data, "utf-8")
            elif kind == _EXPIRY:
                expiry = _U32.unpack_from(view, at)[0]
                at += 4
            else:
                at = _skip(view, at, kind)
        if at != end:
            raise ValueError("a property ends after the properties")
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"malformed PUBLISH: {error}") from None
    return Message(topic, bytes(view[end:]), bool(flags & 1), reply_to, correlation, expiry, user)


def _skip(view: memoryview, at: int, kind: int) -> int:
    how = _SKIP.get(kind)
    if how == "byte":
        return at + 1
    if how == "u16":
        return at + 2
    if how == "string":
        return _decode_string(view, at)[1]
    if how == "varint":
        return _decode_varint(view, at)[1]
    raise ValueError(f"property {kind:#x} does not belong to a PUBLISH")


def _string(data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise ValueError("a string in a PUBLISH is longer than 65535 bytes")
    return _U16.pack(len(data)) + data


def _decode_string(view: memoryview, at: int) -> tuple[memoryview, int]:
    # One that is cut off also ends after the properties, which the caller sees.
    end = at + 2 + _U16.unpack_from(view, at)[0]
    return view[at + 2 : end], end


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, digit = value >> 7, value & 0x7F
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _decode_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        digit = view[at]
        at += 1
        value |= (digit & 0x7F) << shift
        if digit < 0x80:
            return value, at
        shift += 7
        if shift > 21:
            raise ValueError("a variable byte integer is too long")
