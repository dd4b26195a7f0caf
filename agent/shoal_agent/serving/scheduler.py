"""Feed the accelerator from the queues of all models: thin effects around `queue.decide`."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from shoal_agent.runtimes.base import LoadedModel
from shoal_agent.serving.batch import Outcome, run_batch
from shoal_agent.serving.compute import Compute
from shoal_agent.serving.queue import Limits, decide, enqueue
from shoal_agent.serving.request import Key, Pending
from shoal_shared.clock import Clock

logger = logging.getLogger(__name__)

SLOTS = 2
"""Batches handed to the accelerator at once: the one that runs, and one that follows without a
gap. The second is fixed only when waiting longer would not improve it."""


class ModelQueue:
    """Requests to one model. Changed by `Scheduler` only."""

    def __init__(self, model: LoadedModel, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.waiting: list[Pending] = []
        self.running = 0
        self.empty = asyncio.Event()
        self.empty.set()

    @property
    def depth(self) -> int:
        """Requests that wait or run."""
        return len(self.waiting) + self.running


Q = TypeVar("Q", bound=ModelQueue)


class _Batch:
    """Requests that were handed to the accelerator, which sets `begun` on a thread of its own."""

    __slots__ = ("begun", "entries")

    def __init__(self, entries: list[Pending]) -> None:
        self.entries = entries
        self.begun = False

    def run(self, model: LoadedModel, clock: Clock) -> tuple[list[Pending], list[Outcome]]:
        """Compute what was not withdrawn until now."""
        self.begun = True
        entries = [pending for pending in self.entries if not pending.withdrawn]
        if not entries:
            return [], []
        inputs = [pending.inputs for pending in entries]
        return entries, run_batch(model, inputs, [pending.items for pending in entries], clock)


class Scheduler(Generic[Q]):
    """Owns what waits and runs on one accelerator; lives on the event loop.

    `on_done` and `on_expired` are called once for every request added, one or the other, unless
    it is taken back.
    """

    def __init__(
        self,
        accelerator: Compute,
        clock: Clock,
        on_done: Callable[[Q, Pending, Outcome], None],
        on_expired: Callable[[Q, Pending], None],
    ) -> None:
        self._accelerator = accelerator
        self._clock = clock
        self._on_done = on_done
        self._on_expired = on_expired
        self._queues: list[Q] = []
        self._batches: list[_Batch] = []
        self._keyed: dict[Key, tuple[Q, Pending]] = {}
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.depth = 0
        """Requests that wait or run, of all models."""

    def add(self, queue: Q, pending: Pending) -> None:
        """Take a request, and launch it if that is best."""
        if not queue.waiting:
            self._queues.append(queue)
        enqueue(queue.waiting, pending)
        if pending.key is not None:
            self._keyed[pending.key] = queue, pending
        queue.empty.clear()
        self.depth += 1
        self._launch_what_is_due()

    def withdraw(self, queue: Q) -> list[Pending]:
        """Take back what still waits, to be answered by the caller."""
        waiting = list(queue.waiting)
        self._remove(queue, waiting)
        self._settle(queue, waiting)
        return waiting

    def cancel(self, key: Key) -> bool:
        """Drop the request that `key` names; False if it runs already, or is not here."""
        queue, pending = self._keyed.get(key, (None, None))
        if queue is None or pending is None:
            return False
        if pending in queue.waiting:
            self._remove(queue, [pending])
        elif any(pending in batch.entries for batch in self._batches if not batch.begun):
            queue.running -= 1
        else:
            return False
        pending.withdrawn = True
        self._settle(queue, [pending])
        self._launch_what_is_due()
        return True

    def _launch_what_is_due(self) -> None:
        while len(self._batches) < SLOTS and self._queues:
            # Numbers are unique, so ranks of all models' requests have a total order.
            queue = min(self._queues, key=lambda q: q.waiting[0].rank)
            now = self._clock()
            decision = decide(
                queue.waiting, queue.limits, now, self._free_at if self._batches else None
            )
            self._remove(queue, decision.expired)
            self._remove(queue, decision.launch)
            if decision.launch:
                self._launch(queue, decision.launch, now)
            # Last: replying may bring the next request at once.
            for pending in decision.expired:
                self._settle(queue, [pending])
                self._on_expired(queue, pending)
            if not decision.launch and not decision.expired:
                self._arm(decision.wait_until - now)
                return

    def _launch(self, queue: Q, entries: list[Pending], now: float) -> None:
        start = max(now, self._free_at) if self._batches else now
        self._free_at = start + queue.limits.seconds(sum(pending.items for pending in entries))
        batch = _Batch(entries)
        self._batches.append(batch)
        queue.running += len(entries)
        self._accelerator.submit(
            partial(batch.run, queue.model, self._clock), partial(self._finish, queue, batch)
        )

    def _finish(
        self, queue: Q, batch: _Batch, result: tuple[list[Pending], list[Outcome]] | Exception
    ) -> None:
        left = [pending for pending in batch.entries if not pending.withdrawn]
        if isinstance(result, Exception):
            error = f"the batch could not be run: {type(result).__name__}"
            result = left, [Outcome({}, error, 0.0, pending.items) for pending in left]
        self._batches.remove(batch)
        queue.running -= len(left)
        self._forget(left)
        # Before the replies: encoding them is time in which the accelerator can work.
        self._launch_what_is_due()
        for pending, outcome in zip(*result, strict=True):
            if pending.withdrawn:
                continue
            try:
                self._on_done(queue, pending, outcome)
            except Exception:
                # The others of the batch are still to be answered.
                logger.exception("Answering a request failed")
        self._settle(queue, [])

    def _remove(self, queue: Q, entries: Sequence[Pending]) -> None:
        if not entries:
            return
        if len(entries) == len(queue.waiting):
            queue.waiting.clear()
            self._queues.remove(queue)
        else:
            gone = set(map(id, entries))
            queue.waiting = [p for p in queue.waiting if id(p) not in gone]

    def _settle(self, queue: Q, entries: Sequence[Pending]) -> None:
        self._forget(entries)
        if not queue.depth:
            queue.empty.set()

    def _forget(self, entries: Sequence[Pending]) -> None:
        self.depth -= len(entries)
        for pending in entries:
            if pending.key is not None and self._keyed.get(pending.key, (None, None))[1] is pending:
                del self._keyed[pending.key]

    def _arm(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay < math.inf:
            self._timer = asyncio.get_running_loop().call_later(delay, self._launch_what_is_due)


def arrivals() -> Callable[[], int]:
    """Numbers for requests in the order of their arrival, over all models."""
    return itertools.count().__next__
