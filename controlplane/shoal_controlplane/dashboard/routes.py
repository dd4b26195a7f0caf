"""`/`: the page that shows the fleet. Static files; what it shows it asks the API for."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request, Response

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> APIRouter:
    """The page at `/`, its files under `/dashboard/`."""
    router = APIRouter(include_in_schema=False)
    for name, content in _assets().items():
        path = "/" if name == "index.html" else f"/dashboard/{name}"
        router.add_api_route(path, _Asset(name, content), methods=["GET", "HEAD"])
    return router


class _Asset:
    """Answers with one file, or that the browser's copy is still right."""

    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._type = _TYPES[f".{name.rpartition('.')[2]}"]
        self._tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def __call__(self, request: Request) -> Response:
        headers = {**_HEADERS, "ETag": self._tag}
        if request.headers.get("if-none-match") == self._tag:
            return Response(status_code=304, headers=headers)
        return Response(self._content, headers=headers, media_type=self._type)


def _assets() -> dict[str, bytes]:
    folder = files("shoal_controlplane.dashboard") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
