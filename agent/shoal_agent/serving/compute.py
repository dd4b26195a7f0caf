"""Where models run: one thread per accelerator, fed by a queue, answering in bursts."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Compute(Protocol):
    """Runs work on an accelerator, one piece at a time and in order."""

    def submit(self, work: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Run `work` off the event loop, then `done` with its result or error on the loop."""

    def close(self) -> None:
        """Take no more work; what was submitted is still done."""


class ComputeThread:
    """`Compute` by one thread. Bound to the event loop of the first `submit`."""

    def __init__(self, name: str = "compute-cpu") -> None:
        self._name = name
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = (
            queue.SimpleQueue()
        )
        self._results: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._delivery_is_due = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, work: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(
                target=self._run, args=(self._loop,), name=self._name, daemon=True
            ).start()
        self._work.put((work, done))

    def close(self) -> None:
        self._work.put(None)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while (item := self._work.get()) is not None:
            work, done = item
            result: Any
            try:
                result = work()
            except Exception as error:
                result = error
            self._results.append((done, result))
            # Nothing of this piece stays referenced while waiting for the next.
            del item, work, done, result
            if not self._delivery_is_due:
                self._delivery_is_due = True
                try:
                    loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop was closed: nobody is left to be told

    def _deliver(self) -> None:
        # Cleared first: a result that comes after the last look below asks for a delivery anew.
        self._delivery_is_due = False
        while self._results:
            done, result = self._results.popleft()
            try:
                done(result)
            except Exception:
                # The results behind it are still to be handed over.
                logger.exception("Handling a result of %s failed", self._name)


async def compute(accelerator: Compute, work: Callable[[], T]) -> T:
    """Run `work` on the accelerator between the batches, and await its result."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T | Exception) -> None:
        if future.cancelled():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    accelerator.submit(work, done)
    return await future
