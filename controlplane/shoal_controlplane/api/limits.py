"""No request to the API is larger than it has reason to be."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_JSON_BYTES = 16 * 1024 * 1024
"""A model push with its labels and card is the largest document that clients send."""


class BodyLimit:
    """ASGI middleware: bodies beyond `limit` bytes are refused with 413 while they are read.

    Paths below `exempt` have limits of their own.
    """

    def __init__(self, app: ASGIApp, *, limit: int = MAX_JSON_BYTES, exempt: str) -> None:
        self._app = app
        self._limit = limit
        self._exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._exempt):
            await self._app(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The body is larger than the limit of {self._limit} bytes.",
                )
            return message

        await self._app(scope, limited, send)
