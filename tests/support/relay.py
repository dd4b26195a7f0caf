"""A relay between a device and its broker whose speed can be changed while it runs.

It runs on a thread of its own, so that a test may block. Each direction of each connection passes
at most so many bytes a second; what is too much waits in the sender's socket, as on a slow line.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

UNLIMITED = 1e9
_CHUNK = 16 * 1024
_BUFFER = 64 * 1024
_SHORT_S = 0.02


class Relay:
    """Forwards `127.0.0.1:port` to the broker. `bytes_per_s` may be set at any time."""

    def __init__(self, target_port: int) -> None:
        self.bytes_per_s = UNLIMITED
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """End all connections and the thread."""
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=_BUFFER)

    async def _shut(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._target_port, limit=_BUFFER)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            # Little is kept here: what waits must be seen to wait by whoever sends.
            sink.transport.set_write_buffer_limits(high=_BUFFER)
            task = self._loop.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        free_at = time.monotonic()
        try:
            while data := await source.read(_CHUNK):
                now = time.monotonic()
                free_at = max(free_at, now) + len(data) / self.bytes_per_s
                if free_at - now > _SHORT_S:
                    await asyncio.sleep(free_at - now)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()
