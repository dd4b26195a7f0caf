"""What devices of one kind compiled, on the control plane: look up, upload, announce."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from shoal_agent.updates.connection import Breakable
from shoal_shared.compiled import CompileKey

T = TypeVar("T")

LOOKUP_S = 10.0
"""Longest that a load waits to learn whether somebody compiled its model before."""

_MAX_ANSWER = 64 * 1024


class ShareError(Exception):
    """The server cannot be asked or refuses; the text is one plain sentence.

    `transient` tells that the same attempt may succeed in a moment.
    """

    def __init__(self, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


class SharedCode(msgspec.Struct, frozen=True, kw_only=True):
    """What the server has for a key: a bundle by its digest and size in bytes."""

    key: CompileKey
    digest: str
    size: int


class _Problem(msgspec.Struct, frozen=True, kw_only=True):
    detail: str = ""


_decoder = msgspec.json.Decoder(SharedCode)
_problems = msgspec.json.Decoder(_Problem)


async def in_thread(work: Callable[[], T], cancel: Callable[[], None] = lambda: None) -> T:
    """Run blocking work in a thread, as `asyncio.to_thread`; a caller that is cancelled calls
    `cancel` and leaves only when the thread is done with its files."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancel()
        await asyncio.wait({running})
        # Cancelled: whether the thread succeeded in time or complains does not matter.
        running.exception()
        raise


class CodeServer:
    """The control plane at `server`, asked by `device`. Methods raise `ShareError`."""

    def __init__(self, server: str, device: str) -> None:
        self._server = server
        self._device = device

    async def lookup(self, key: CompileKey) -> SharedCode | None:
        """What is shared for a key, at most `LOOKUP_S` later; None if there is nothing."""
        exchange = _Exchange(self._server)
        asking = asyncio.get_running_loop().run_in_executor(
            None, exchange.run, "GET", f"compiled/{key.hex}"
        )
        try:
            done, _ = await asyncio.wait({asking}, timeout=LOOKUP_S)
        finally:
            exchange.cancel()
        if not done:
            # Not waited for: resolving a name cannot be broken off.
            asking.add_done_callback(lambda late: late.exception())
            raise ShareError(f"{self._server} took too long to answer", transient=True)
        status, body = asking.result()
        if status == 404:
            return None
        _check(status, body)
        try:
            return _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ShareError(f"{self._server} answered nonsense: {error}") from None

    async def upload(self, path: Path, digest: str, size: int) -> None:
        """Send a bundle. Raises `OSError` if it cannot be read."""

        def send() -> tuple[int, bytes]:
            with path.open("rb") as file:
                return exchange.run("PUT", digest.replace(":", "/"), file, size)

        exchange = _Exchange(self._server)
        _check(*await in_thread(send, exchange.cancel))

    async def announce(self, code: SharedCode, *, replace: bool) -> None:
        """Share an uploaded bundle; without `replace`, what is there already stays."""
        document = {**msgspec.to_builtins(code), "device": self._device}
        body = msgspec.json.encode(document)
        target = f"compiled/{code.key.hex}" + ("?replace=true" if replace else "")
        exchange = _Exchange(self._server)
        _check(*await in_thread(lambda: exchange.run("PUT", target, body), exchange.cancel))


class _Exchange(Breakable):
    """One request and its answer."""

    def run(
        self, method: str, target: str, body: bytes | BinaryIO = b"", size: int | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer. Raises `ShareError`."""
        headers = {"Accept-Encoding": "identity"}
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/json"
        else:
            headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            with self.connected() as connection:
                if self.cancelled:
                    raise ShareError("it was cancelled")
                try:
                    connection.request(method, self.path(target), body or None, headers)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # It may have answered before it read all: that answer says more.
                response = connection.getresponse()
                return response.status, response.read(_MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise ShareError(f"{self.server} failed: {reason}", transient=True) from None


def _check(status: int, body: bytes) -> None:
    """Raises `ShareError` for an answer that is not a success."""
    if status in (200, 201):
        return
    try:
        detail = _problems.decode(body).detail[:300]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        detail = ""
    # What a conflict is about, such as a bundle that was removed meanwhile, is sent again.
    transient = status >= 500 or status == 409
    raise ShareError(f"the server answered with status {status}: {detail}", transient=transient)
