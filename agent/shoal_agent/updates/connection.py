"""A connection to the control plane that blocks its thread, and can be broken off by another."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from shoal_agent.updates.store import CHUNK_BYTES

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0


class Breakable:
    """One exchange with the control plane at `server`.

    `cancel` may be called from another thread, before or while `connected` is in use: what waits
    for the socket then fails with `OSError`.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self._parts = urlsplit(server)
        self._sock: socket.socket | None = None
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # Closed already: whoever waits is about to see it.

    def path(self, artifact: str) -> str:
        """Where something below `/artifacts/` is on this server."""
        return f"{self._parts.path.rstrip('/')}/artifacts/{artifact}"

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """A connection, closed afterwards. Raises `OSError`."""
        # Never through a proxy: http.client knows none.
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(
            self._parts.hostname or "",
            self._parts.port,
            timeout=CONNECT_TIMEOUT_S,
            blocksize=CHUNK_BYTES,
        )
        try:
            connection.connect()
            # Kept here because the connection forgets it when the answer begins.
            self._sock = connection.sock
            self._sock.settimeout(READ_TIMEOUT_S)
            yield connection
        finally:
            connection.close()
