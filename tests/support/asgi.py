"""An ASGI application called without a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error answer, which is all that its body holds."""
        body = self.json()
        assert list(body) == ["error"]
        sentence: str = body["error"]
        assert "Traceback" not in sentence
        return sentence


async def call(
    app: Any,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    headers: dict[str, str] | None = None,
    *,
    disconnect: bool = False,
) -> Response | None:
    """One request; a body in several parts is chunked. None if there was no answer."""
    chunks = [body] if isinstance(body, bytes) else list(body)
    raw = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
    if isinstance(body, bytes) and "content-length" not in {k.lower() for k in headers or {}}:
        raw.append((b"content-length", str(len(body)).encode()))
    events = [
        {"type": "http.request", "body": chunk, "more_body": disconnect or i < len(chunks) - 1}
        for i, chunk in enumerate(chunks)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}
    await app(scope, receive, send)
    if not sent:
        return None
    start, end = sent
    names = {k.decode(): v.decode() for k, v in start["headers"]}
    assert len(names) == len(start["headers"])
    assert int(names["content-length"]) == len(end["body"])
    return Response(start["status"], names, end["body"])
