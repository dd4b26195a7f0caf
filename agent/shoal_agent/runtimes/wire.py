"""Protobuf's wire format, as far as a few messages of an ONNX file need it.

Source: Protocol Buffers, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10


class WireError(Exception):
    """What lies there is no protobuf message."""


@dataclass(frozen=True)
class Field:
    """One field of a message: where it starts, and where its value lies."""

    number: int
    kind: int
    start: int
    value: int
    end: int


def fields(data: memoryview, at: int, end: int) -> Iterator[Field]:
    """The fields of the message between two offsets. Raises `WireError`."""
    while at < end:
        start = at
        key, at = read_varint(data, at, end)
        number, kind = key >> 3, key & 7
        value = at
        if kind == VARINT:
            _, at = read_varint(data, at, end)
        elif kind == BYTES:
            length, value = read_varint(data, at, end)
            at = value + length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise WireError
        if at > end or not number:
            raise WireError
        yield Field(number, kind, start, value, at)


def within(data: memoryview, message: Field, number: int) -> list[Field]:
    """Messages and texts with a number inside a message."""
    found = fields(data, message.value, message.end)
    return [f for f in found if f.number == number and f.kind == BYTES]


def read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """A number, and the offset behind it. Raises `WireError`."""
    value = 0
    for count in range(_MAX_VARINT):
        if at >= end:
            raise WireError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at
    raise WireError


def varint(value: int) -> bytes:
    """A number of 0 or more."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, kind: int = BYTES) -> bytes:
    """What a field begins with."""
    return varint(number << 3 | kind)


def message(number: int, content: bytes) -> bytes:
    """A message or text as a field."""
    return tag(number) + varint(len(content)) + content


def integer(number: int, value: int) -> bytes:
    """A number as a field."""
    return tag(number, VARINT) + varint(value)
