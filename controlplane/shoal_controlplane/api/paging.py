"""Cursor pagination: `?limit=&cursor=` in, `{items, next_cursor}` out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

from shoal_controlplane.errors import InvalidError

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """One page of a list. `next_cursor` asks for the next one; it is null on the last."""

    items: list[T]
    next_cursor: str | None = None


class Paging:
    """Dependency of list routes: give up to `limit` items whose key is greater than `after`.

    The cursor is opaque to clients. Raises `InvalidError` for one that was not made here.
    """

    def __init__(
        self,
        limit: Annotated[int, Query(ge=1, le=500, description="Most items of a page")] = 100,
        cursor: Annotated[
            str | None, Query(max_length=1024, description="`next_cursor` of the page before")
        ] = None,
    ) -> None:
        self.limit = limit
        self.after = None if cursor is None else _decode(cursor)


def page(items: Sequence[T], key: Callable[[T], str], paging: Paging) -> Page[T]:
    """Make a page of `items`: up to `limit` + 1 of them, in key order, keys after the cursor's."""
    shown = list(items[: paging.limit])
    more = len(items) > paging.limit
    return Page(items=shown, next_cursor=_encode(key(shown[-1])) if more else None)


def _encode(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        key = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (UnicodeError, binascii.Error):
        key = ""
    # A NUL is legal UTF-8, but PostgreSQL refuses it in a text.
    if not key or "\0" in key or _encode(key) != cursor:
        raise InvalidError("The cursor is not one of this list: start again without one.")
    return key
