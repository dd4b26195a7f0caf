"""The load: a closed loop over keep-alive connections, in a process of its own.

`python client.py SPEC.json` sends whole requests that were prepared as files, byte by byte as
they are, and prints what it measured as JSON. It knows no server and parses no body.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

_GRACE_S = 20.0
_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"


def read_answer(buffer: bytearray) -> bytes | None:
    """The whole HTTP/1.1 answer in `buffer`, chunks joined; None if more is to come.

    Raises `ValueError` if it is no answer with status 200 and a length.
    """
    end = buffer.find(_END)
    if end < 0:
        return None
    head = bytes(buffer[: end + 2]).lower()
    if head[9:12] != b"200":
        raise ValueError("not answered with 200")
    body = end + len(_END)
    at = head.find(_LENGTH)
    if at >= 0:
        start = at + len(_LENGTH)
        total = body + int(head[start : head.index(b"\r\n", start)])
        return bytes(buffer[:total]) if len(buffer) >= total else None
    if _CHUNKED not in head:
        raise ValueError("neither a length nor chunks")
    chunks = [bytes(buffer[:body])]
    while True:
        line = buffer.find(b"\r\n", body)
        if line < 0:
            return None
        size = int(buffer[body:line], 16)
        body = line + 2 + size + 2
        if len(buffer) < body:
            return None
        if not size:
            return b"".join(chunks)
        chunks.append(bytes(buffer[line + 2 : body - 2]))


class Load:
    """What all connections share. Times are readings of `perf_counter`."""

    def __init__(self, requests: list[bytes], warm_up_s: float, seconds: float) -> None:
        self.requests = requests
        self.turns: Iterator[int] = itertools.cycle(range(len(requests)))
        self.measure_from = time.perf_counter() + warm_up_s
        self.until = self.measure_from + seconds
        self.latencies: list[float] = []
        self.answers: dict[int, bytes] = {}
        self.error = ""


class Connection(asyncio.Protocol):
    """One request after the other; `done` is set when the time is over or something failed."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = bytearray()
        self._turn = 0
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        try:
            answer = read_answer(buffer)
        except ValueError as error:
            self._stop(f"{error}: {bytes(buffer[:500])!r}")
            return
        if answer is None:
            return
        load, now = self._load, time.perf_counter()
        if self._sent_at >= load.measure_from:
            if now <= load.until:
                load.latencies.append(now - self._sent_at)
            load.answers[self._turn] = answer
        buffer.clear()
        if now >= load.until:
            self._stop("")
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(f"the connection was lost: {exc or 'closed by the server'}")

    def _send(self) -> None:
        self._turn = next(self._load.turns)
        self._sent_at = time.perf_counter()
        self._transport.write(self._load.requests[self._turn])

    def _stop(self, error: str) -> None:
        if self.done.done():
            return
        self._load.error = self._load.error or error
        self.done.set_result(None)
        self._transport.close()


async def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the load that `spec` describes; keys as `gateway.measure.Spec` writes them."""
    requests = [Path(path).read_bytes() for path in spec["requests"]]
    load = Load(requests, spec["warm_up_s"], spec["seconds"])
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(spec["connections"]):
        _, connection = await loop.create_connection(
            lambda: Connection(load), spec["host"], spec["port"]
        )
        connections.append(connection)
    cpu = time.process_time()
    everything = asyncio.gather(*(connection.done for connection in connections))
    try:
        await asyncio.wait_for(everything, spec["warm_up_s"] + spec["seconds"] + _GRACE_S)
    except asyncio.TimeoutError:
        load.error = load.error or f"no answer for {_GRACE_S:.0f} s"
    cpu = time.process_time() - cpu
    for turn, answer in load.answers.items():
        Path(spec["answers"], f"{turn}").write_bytes(answer)
    ordered = sorted(load.latencies)
    if not ordered:
        return {"error": load.error or "no answer came in time"}
    return {
        "error": load.error,
        "requests": len(ordered),
        "per_second": len(ordered) / spec["seconds"],
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3,
        "client_cpu": cpu / (spec["seconds"] + spec["warm_up_s"]),
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_bytes())
    run = uvloop.run if uvloop is not None else asyncio.run
    print(json.dumps(run(measure(spec))))


if __name__ == "__main__":
    main()
