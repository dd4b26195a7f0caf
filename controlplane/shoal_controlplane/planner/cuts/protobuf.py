"""Protobuf's own methods, which have no types."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor

Message = TypeVar("Message")


def has(message: Any, field: str) -> bool:
    """Whether a field of a message is set."""
    return bool(message.HasField(field))


def copied(message: Message) -> Message:
    """A deep copy of a message."""
    copy: Any = type(message)()
    copy.CopyFrom(message)
    result: Message = copy
    return result


def byte_size(message: Any) -> int:
    """Bytes that a message takes in a file."""
    return int(message.ByteSize())


def clear(message: Any, field: str) -> None:
    """Take a field out of a message."""
    message.ClearField(field)


def is_text_valid(message: Any) -> bool:
    """Whether all text in a message is UTF-8, which the parser does not check for old syntax: it
    hands out bytes in place of such text."""
    todo = [message]
    while todo:
        for field, value in todo.pop().ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                todo += [value] if hasattr(value, "ListFields") else value
            elif field.type == FieldDescriptor.TYPE_STRING:
                texts = [value] if isinstance(value, (str, bytes)) else value
                if not all(isinstance(text, str) for text in texts):
                    return False
    return True
