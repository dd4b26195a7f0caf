"""Requests run one after the other on the device, those that wait together in one batch.

While the device is busy, requests gather; then the oldest takes along those of the same shapes, as
many as the largest compiled batch holds. Nothing waits for others to come. What must be compiled
first is, in a thread of its own, while other shapes go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from shoal_controlplane.offload.tpu.worker.compile import CompiledModel, Shapes
from shoal_controlplane.offload.tpu.worker.reader import Array

MAX_WAITING = 1024


class BusyError(Exception):
    """Too many requests wait; the text is one plain sentence."""


@dataclass(slots=True, eq=False)
class _Waiting:
    inputs: Mapping[str, Array]
    items: int
    shapes: Shapes
    answer: asyncio.Future[list[Array]]


class Batcher:
    """Runs a model for many clients; belongs to one event loop."""

    def __init__(self, model: CompiledModel) -> None:
        self.model = model
        self._names = [spec.name for spec in model.signature.inputs]
        self._waiting: deque[_Waiting] = deque()
        self._held = 0
        self._device = ThreadPoolExecutor(1, "device")
        self._compiler = ThreadPoolExecutor(1, "compiler")
        self._compiling: dict[Shapes, asyncio.Future[object]] = {}
        self._task: asyncio.Task[None] | None = None

    async def infer(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs of a request. Raises `RequestError`, `ModelError` where its shapes cannot be
        compiled, `BusyError`, and JAX's errors where the device fails."""
        items = self.model.check(inputs)
        if self._held >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} requests wait already")
        self._held += 1
        try:
            for shapes in self.model.needed(inputs):
                await self._compile(shapes)
            cut = 1 if items else 0
            own = tuple(inputs[name].shape[cut:] for name in self._names)
            answer: asyncio.Future[list[Array]] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Waiting(inputs, items, own, answer))
            if self._task is None:
                self._task = asyncio.create_task(self._run())
            return await answer
        finally:
            self._held -= 1

    def close(self) -> None:
        """End the threads once they are done."""
        self._device.shutdown(wait=False, cancel_futures=True)
        self._compiler.shutdown(wait=False, cancel_futures=True)

    async def _compile(self, shapes: Shapes) -> None:
        # Shared by all who wait for it, and not undone when one of them leaves.
        under_way = self._compiling.get(shapes)
        if under_way is None:
            loop = asyncio.get_running_loop()
            under_way = loop.run_in_executor(self._compiler, self.model.prepare, shapes)
            self._compiling[shapes] = under_way
            under_way.add_done_callback(lambda _: self._compiling.pop(shapes, None))
        await asyncio.shield(under_way)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._run_batch(self._batch())
        finally:
            self._task = None

    def _batch(self) -> list[_Waiting]:
        """The oldest request, and what fits beside it."""
        first = self._waiting.popleft()
        batch, items = [first], first.items
        room = self.model.room(first.shapes) if items else 0
        for other in list(self._waiting):
            if other.shapes == first.shapes and 0 < other.items <= room - items:
                self._waiting.remove(other)
                batch.append(other)
                items += other.items
        return batch

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        batch = [waiting for waiting in batch if not waiting.answer.cancelled()]
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._device, self._infer, batch)
        except Exception as error:  # Each who waits gets it.
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, found in zip(batch, outputs, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(found)

    def _infer(self, batch: list[_Waiting]) -> list[list[Array]]:
        if len(batch) == 1:
            return [self.model.infer(batch[0].inputs)]
        together = {
            name: np.concatenate([waiting.inputs[name] for waiting in batch])
            for name in self._names
        }
        outputs = self.model.infer(together)
        ends = np.cumsum([waiting.items for waiting in batch])[:-1]
        parts = [np.split(array, ends) for array in outputs]
        return [[part[i] for part in parts] for i in range(len(batch))]
