"""Inference on this device: load and unload models, answer requests."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil

from shoal_agent.runtimes.base import LoadedModel, RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.serving import profile as profiling
from shoal_agent.serving.batch import Outcome
from shoal_agent.serving.compute import Compute, ComputeThread, compute
from shoal_agent.serving.queue import Limits
from shoal_agent.serving.request import (
    Contract,
    Pending,
    Reply,
    accept,
    answer,
    deadline_of,
    refuse,
)
from shoal_agent.serving.scheduler import ModelQueue, Scheduler, arrivals
from shoal_shared import oip
from shoal_shared.clock import Clock
from shoal_shared.messages import ModelGoal
from shoal_shared.oip import InferRequest, OipError
from shoal_shared.profiles import Profile, fit
from shoal_shared.status import InferCode, ReplicaState
from shoal_shared.tensors import Array, TensorError

logger = logging.getLogger(__name__)

MAX_DEPTH = 256
DRAIN_S = 10.0
FIRST_REQUESTS = 5

T = TypeVar("T")


class ServingError(Exception):
    """A model cannot be served; the text is one plain sentence."""


@dataclass(frozen=True)
class Loaded:
    """A model in service. `note` is one sentence where its profile is not measured yet."""

    providers: tuple[str, ...]
    memory_bytes: int
    profile: Profile
    note: str = ""


class RunBlocking(Protocol):
    """Runs blocking work off the event loop, as `asyncio.to_thread` does."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


class _Resident(ModelQueue):
    """A model in service: its queue and counters."""

    def __init__(self, goal: ModelGoal, model: LoadedModel, loaded: Loaded) -> None:
        super().__init__(model, Limits.of(loaded.profile, goal.max_batch))
        self.goal = goal
        self.loaded = loaded
        self.contract = Contract.of(model.signature, goal.max_batch)
        self.answered = 0
        self.failed = 0
        self._first_ms: list[float] = []

    def learn(self, outcome: Outcome) -> None:
        """Profile from the first requests where profiling found no input of its own."""
        self._first_ms.append(outcome.seconds * 1000)
        if len(self._first_ms) >= FIRST_REQUESTS:
            profile = fit([(1, statistics.median(self._first_ms))])
            self.loaded = replace(self.loaded, profile=profile, note="")
            self.limits = Limits.of(profile, 1)


class InferenceService:
    """Serves the models of one device. Everything but compute happens on the event loop.

    `accelerator` runs the models (default: a thread), `run_blocking` loads them, `clock` and
    `resident_bytes` measure; `max_depth` bounds the requests that wait for one model.
    """

    def __init__(
        self,
        registry: RuntimeRegistry,
        *,
        clock: Clock = time.monotonic,
        accelerator: Compute | None = None,
        run_blocking: RunBlocking = asyncio.to_thread,
        resident_bytes: Callable[[], int] | None = None,
        max_depth: int = MAX_DEPTH,
        drain_s: float = DRAIN_S,
        profile_budget_s: float = profiling.BUDGET_S,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._accelerator = accelerator or ComputeThread()
        self._run_blocking = run_blocking
        self._resident_bytes = resident_bytes or _resident_bytes
        self._max_depth = max_depth
        self._drain_s = drain_s
        self._profile_budget_s = profile_budget_s
        self._scheduler = Scheduler(self._accelerator, clock, self._done, self._expired)
        self._number = arrivals()
        self._models: dict[str, _Resident] = {}
        # One at a time: a device has little memory to spare, and its growth is measured.
        self._loading = asyncio.Lock()

    async def load(
        self, goal: ModelGoal, path: Path, on_state: Callable[[ReplicaState], None]
    ) -> Loaded:
        """Load, warm up and profile a model, then serve it. Raises `ServingError`.

        A model of the same name and version that is served already is replaced once the new one
        is ready; if nothing about it differs, it stays.
        """
        key = f"{goal.model}:{goal.version}"
        async with self._loading:
            old = self._models.get(key)
            if old is not None and _same(old.goal, goal):
                old.goal = goal
                return old.loaded
            try:
                new = await self._load(goal, path, on_state)
            except ServingError:
                raise
            except RuntimeLoadError as error:
                raise ServingError(str(error)) from error
            except Exception as error:
                logger.exception("Loading %s failed", key)
                raise ServingError(f"loading failed: {type(error).__name__}") from error
            self._models[key] = new
            if old is not None:
                new.answered, new.failed = old.answered, old.failed
                await self._retire(old)
            return new.loaded

    async def unload(self, model: str, version: str) -> None:
        """Stop serving a model: what was accepted is answered first, for a bounded time."""
        async with self._loading:
            resident = self._models.pop(f"{model}:{version}", None)
            if resident is not None:
                await self._retire(resident)

    def handle(
        self, payload: bytes, header_length: int | None, expires_at: float | None, reply: Reply
    ) -> None:
        """Take a request: an Open Inference Protocol request with the model in its header.

        `expires_at` is a reading of the clock. `reply` is called once, now or later, on the
        event loop. Nothing in `payload` makes this raise.
        """
        now = self._clock()
        try:
            request = oip.decode_request(payload, header_length)
        except OipError as error:
            refuse(None, reply, InferCode.INVALID, str(error), self._scheduler.depth)
            return
        key = f"{request.model_name}:{request.model_version}"
        resident = self._models.get(key)
        if resident is None:
            error_text = f"this device does not serve {key[:140]}"
            refuse(request, reply, InferCode.NOT_FOUND, error_text, self._scheduler.depth)
            return
        try:
            deadline = deadline_of(request.parameters, now, expires_at)
            pending = accept(
                request,
                resident.contract,
                number=self._number(),
                now=now,
                deadline=deadline,
                reply=reply,
            )
        except OipError as error:
            self._fail(resident, request, reply, InferCode.INVALID, str(error))
            return
        if len(resident.waiting) >= self._max_depth:
            text = f"{self._max_depth} requests to {key} are waiting on this device already"
            self._fail(resident, request, reply, InferCode.OVERLOADED, text)
            return
        self._scheduler.add(resident, pending)

    def stats(self) -> dict[str, tuple[int, int, int]]:
        """Requests answered, failed, and waiting or running, by "model:version"."""
        return {
            key: (resident.answered, resident.failed, resident.depth)
            for key, resident in self._models.items()
        }

    def resident(self) -> list[tuple[ModelGoal, Loaded]]:
        """What is served now."""
        return [(resident.goal, resident.loaded) for resident in self._models.values()]

    async def close(self) -> None:
        """Unload everything and stop computing."""
        async with self._loading:
            residents = list(self._models.values())
            self._models.clear()
            await asyncio.gather(*map(self._retire, residents))
            self._accelerator.close()

    async def _load(
        self, goal: ModelGoal, path: Path, on_state: Callable[[ReplicaState], None]
    ) -> _Resident:
        runtime = self._registry.for_format(goal.format)
        on_state(ReplicaState.LOADING)
        before = self._resident_bytes()
        model = await self._run_blocking(lambda: runtime.load(path, goal.options))
        try:
            on_state(ReplicaState.PROFILING)
            measured = await self._profile(model, goal)
        except BaseException:
            model.close()
            raise
        if measured.note:
            logger.warning("%s:%s: %s", goal.model, goal.version, measured.note)
        grown = self._resident_bytes() - before
        loaded = Loaded(
            providers=model.providers,
            memory_bytes=max(grown, path.stat().st_size),
            profile=measured.profile,
            note=measured.note,
        )
        return _Resident(goal, model, loaded)

    async def _profile(self, model: LoadedModel, goal: ModelGoal) -> profiling.Measured:
        def timed(inputs: Mapping[str, Array]) -> tuple[float, Mapping[str, Array]]:
            started = self._clock()
            outputs = model.run(inputs)
            return self._clock() - started, outputs

        option = goal.options.get("profile_shapes")
        try:
            shapes = profiling.checked_shapes(model.signature, option)
        except ValueError as error:
            raise ServingError(str(error)) from None
        return await profiling.measure(
            model.signature,
            goal.max_batch,
            shapes,
            lambda inputs: compute(self._accelerator, lambda: timed(inputs)),
            self._clock,
            self._profile_budget_s,
        )

    async def _retire(self, resident: _Resident) -> None:
        try:
            await asyncio.wait_for(resident.empty.wait(), self._drain_s)
        except asyncio.TimeoutError:
            for pending in self._scheduler.withdraw(resident):
                text = "this device stopped serving the model"
                self._fail(resident, pending.request, pending.reply, InferCode.NOT_FOUND, text)
        await self._run_blocking(resident.model.close)

    def _done(self, resident: _Resident, pending: Pending, outcome: Outcome) -> None:
        error = outcome.error
        if not error:
            if resident.loaded.note:
                resident.learn(outcome)
            parameters: dict[str, Any] = {
                "queue_depth": self._scheduler.depth,
                "service_us": round(outcome.seconds * 1e6),
                "batch": outcome.batch,
            }
            try:
                answer(pending, resident.contract, outcome.outputs, parameters)
            except TensorError as wrong:
                error = str(wrong)
        if error:
            code = InferCode.INVALID if outcome.invalid else InferCode.INTERNAL
            self._fail(resident, pending.request, pending.reply, code, error)
        else:
            resident.answered += 1

    def _expired(self, resident: _Resident, pending: Pending) -> None:
        text = "the deadline passed before compute began"
        self._fail(resident, pending.request, pending.reply, InferCode.EXPIRED, text)

    def _fail(
        self, resident: _Resident, request: InferRequest, reply: Reply, code: InferCode, text: str
    ) -> None:
        resident.failed += 1
        refuse(request, reply, code, text, self._scheduler.depth)


def _same(a: ModelGoal, b: ModelGoal) -> bool:
    return (a.digest, a.format, a.max_batch, a.options) == (
        b.digest,
        b.format,
        b.max_batch,
        b.options,
    )


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
