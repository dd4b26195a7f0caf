"""Inference on this device: load and unload models, answer requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from shoal_agent.runtimes.base import LoadedModel, RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.trial import try_in_child
from shoal_agent.serving import profile as profiling
from shoal_agent.serving.batch import Fault, Outcome
from shoal_agent.serving.compiled import CompiledCode, NoCompiledCode
from shoal_agent.serving.compute import Compute, ComputeThread, compute
from shoal_agent.serving.prepare import (
    Prepared,
    Preparer,
    RunBlocking,
    Trial,
)
from shoal_agent.serving.probe import answer_probe
from shoal_agent.serving.records import NoRecords, Records
from shoal_agent.serving.request import (
    Answer,
    Done,
    Key,
    Pending,
    Refusal,
    Reply,
    accept,
    answer,
    deadline_of,
    refuse,
)
from shoal_agent.serving.resident import Loaded, Resident
from shoal_agent.serving.scheduler import Scheduler, arrivals
from shoal_shared import oip
from shoal_shared.clock import Clock
from shoal_shared.linkprobe import LINK_MODEL
from shoal_shared.messages import ModelGoal, VariantGoal
from shoal_shared.oip import InferRequest, OipError, Tensor
from shoal_shared.signature import ModelSignature
from shoal_shared.status import InferCode, ReplicaState
from shoal_shared.tensors import Array, TensorError

logger = logging.getLogger(__name__)

MAX_DEPTH = 256
DRAIN_S = 10.0
REMEASURE_S = 0.25
"""Time for measuring one model anew, taken from the requests that wait."""

_CODES = {
    Fault.DEVICE: InferCode.INTERNAL,
    Fault.REQUEST: InferCode.INVALID,
    # Another device may have compiled the model for this shape, or take any.
    Fault.SHAPE: InferCode.NOT_FOUND,
}


class ServingError(Exception):
    """A model cannot be served; the text is one plain sentence."""


class InferenceService:
    """Serves the models of one device. Everything but compute happens on the event loop.

    `accelerator` runs the models (default: a thread), `run_blocking` loads them, `clock` and
    `resident_bytes` measure; `max_depth` bounds the requests that wait for one model. `trial`
    tries accelerators, `compiled` keeps their code, and `records` what was found out; `target`
    and `driver` are the board's chip and driver versions.
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
        trial: Trial = try_in_child,
        compiled: CompiledCode | None = None,
        records: Records | None = None,
        target: str = "",
        driver: str = "",
    ) -> None:
        self._preparer = Preparer(
            registry,
            trial,
            compiled or NoCompiledCode(),
            records or NoRecords(),
            target=target,
            driver=driver,
            run_blocking=run_blocking,
            clock=clock,
        )
        self._clock = clock
        self._accelerator = accelerator or ComputeThread()
        self._run_blocking = run_blocking
        self._resident_bytes = resident_bytes or _resident_bytes
        self._max_depth = max_depth
        self._drain_s = drain_s
        self._profile_budget_s = profile_budget_s
        self._scheduler = Scheduler(self._accelerator, clock, self._done, self._expired)
        self._number = arrivals()
        self._models: dict[str, Resident] = {}
        # One at a time: a device has little memory to spare, and its growth is measured.
        self._loading = asyncio.Lock()

    def needed_files(self, goal: ModelGoal) -> tuple[VariantGoal, ...]:
        """The files of a goal that this device may serve. Raises `ServingError` if none."""
        try:
            return self._preparer.needed_files(goal)
        except RuntimeLoadError as error:
            raise ServingError(str(error)) from None

    async def load(
        self,
        goal: ModelGoal,
        files: Mapping[str, Path],
        on_state: Callable[[ReplicaState], None],
    ) -> Loaded:
        """Load, check and profile a model, then serve it. Raises `ServingError`.

        `files` maps the digests of what `needed_files` named, and of the golden outputs, to
        verified artifacts. A model of the same name and version that is served already is
        replaced once the new one is ready; if nothing about it differs, it stays.
        """
        key = f"{goal.model}:{goal.version}"
        async with self._loading:
            old = self._models.get(key)
            if old is not None and old.goal.settings == goal.settings:
                old.goal = goal
                return old.loaded
            try:
                new = await self._load(goal, files, on_state)
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

    async def collect(self, keep: Collection[str]) -> None:
        """Drop compiled code of files whose digests are not in `keep`."""
        await self._preparer.collect(keep)

    async def unload(self, model: str, version: str) -> None:
        """Stop serving a model: what was accepted is answered first, for a bounded time."""
        async with self._loading:
            resident = self._models.pop(f"{model}:{version}", None)
            if resident is not None:
                await self._retire(resident)

    def handle(
        self,
        payload: bytes,
        header_length: int | None,
        expires_at: float | None,
        reply: Reply,
        key: Key | None = None,
    ) -> None:
        """Take a request: an Open Inference Protocol request with the model in its header.

        `expires_at` is a reading of the clock. `reply` is called once, now or later, on the
        event loop, unless the request is cancelled by its `key`. Nothing in `payload` makes this
        raise.
        """
        try:
            request = oip.decode_request(payload, header_length)
        except OipError as error:
            refusal = Refusal(InferCode.INVALID, str(error))
            refuse(None, reply, refusal, {"queue_depth": self.depth})
            return
        if request.model_name == LINK_MODEL:
            answer_probe(request, reply, len(payload), self.depth)
        else:
            self.submit(request, expires_at, partial(self._reply, request, reply), key)

    def cancel(self, key: Key) -> None:
        """Do not compute a request, nor answer it, if it has not begun; else nothing changes."""
        self._scheduler.cancel(key)

    def submit(
        self,
        request: InferRequest,
        expires_at: float | None,
        done: Done,
        key: Key | None = None,
    ) -> None:
        """Compute a request of the model that it names; `done` is called now or later.

        It expires at the earlier of `expires_at`, a reading of the clock, and its `timeout`.
        """
        now = self._clock()
        name = f"{request.model_name}:{request.model_version}"
        resident = self._models.get(name)
        if resident is None:
            done(Refusal(InferCode.NOT_FOUND, f"this device does not serve {name[:140]}"))
            return
        try:
            deadline = deadline_of(request.parameters, now, expires_at)
            pending = accept(
                request,
                resident.contract,
                number=self._number(),
                now=now,
                deadline=deadline,
                done=done,
                key=key,
            )
        except OipError as error:
            self._fail(resident, done, InferCode.INVALID, str(error))
            return
        if len(resident.waiting) >= self._max_depth:
            text = f"{self._max_depth} requests to {name} are waiting on this device already"
            self._fail(resident, done, InferCode.OVERLOADED, text)
            return
        self._scheduler.add(resident, pending)

    def signature(self, model: str, version: str) -> ModelSignature | None:
        """Inputs and outputs of a model that is served now, else None."""
        resident = self._models.get(f"{model}:{version}")
        return resident.contract.signature if resident else None

    @property
    def depth(self) -> int:
        """Requests that wait or run, of all models."""
        return self._scheduler.depth

    def stats(self) -> dict[str, tuple[int, int, int]]:
        """Requests answered, failed, and waiting or running, by "model:version"."""
        return {
            key: (resident.answered, resident.failed, resident.depth)
            for key, resident in self._models.items()
        }

    def resident(self) -> list[tuple[ModelGoal, Loaded]]:
        """What is served now."""
        return [(resident.goal, resident.loaded) for resident in self._models.values()]

    async def measure_anew(self) -> None:
        """Measure the profiles of all models again, between their batches: the board became
        slower or faster. Those whose time comes from requests are left to them."""
        for resident in list(self._models.values()):
            if resident.loaded.measured:
                measured = await self._profile(
                    resident.model, resident.goal, resident.shapes, REMEASURE_S
                )
                if not measured.note:
                    resident.measured_anew(measured.profile)

    async def close(self) -> None:
        """Unload everything and stop computing."""
        async with self._loading:
            residents = list(self._models.values())
            self._models.clear()
            await asyncio.gather(*map(self._retire, residents))
            await self._preparer.close()
            self._accelerator.close()

    async def _load(
        self,
        goal: ModelGoal,
        files: Mapping[str, Path],
        on_state: Callable[[ReplicaState], None],
    ) -> Resident:
        on_state(ReplicaState.LOADING)
        before = self._resident_bytes()
        prepared = await self._preparer.prepare(goal, files, self._run_once)
        model, file = prepared.model, prepared.candidate.file
        try:
            on_state(ReplicaState.PROFILING)
            measured = await self._measured(goal, prepared)
        except BaseException:
            model.close()
            raise
        if measured.note:
            logger.warning("%s:%s: %s", goal.model, goal.version, measured.note)
        grown = self._resident_bytes() - before
        loaded = Loaded(
            providers=model.providers,
            memory_bytes=max(grown, files[file.digest].stat().st_size),
            profile=measured.profile,
            variant=file.name,
            runtime=self._preparer.describe(prepared.candidate),
            placement=prepared.placement,
            golden_error=prepared.golden_error,
            compiled=prepared.compiled,
            load_s=round(prepared.load_s, 3),
            notes=(*prepared.notes, *filter(None, [measured.note])),
            measured=not measured.note,
        )
        return Resident(goal, prepared, loaded)

    async def _run_once(
        self, model: LoadedModel, inputs: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        return await compute(self._accelerator, lambda: model.run(inputs))

    async def _measured(self, goal: ModelGoal, prepared: Prepared) -> profiling.Measured:
        """The profile, from the record of an earlier start if there is one."""
        if prepared.record is not None:
            return profiling.Measured(prepared.record.profile)
        measured = await self._profile(
            prepared.model, goal, prepared.shapes, self._profile_budget_s
        )
        if not measured.note:
            await self._preparer.remember(goal, prepared, measured.profile)
        return measured

    async def _profile(
        self,
        model: LoadedModel,
        goal: ModelGoal,
        known: Mapping[str, tuple[int, ...]],
        budget_s: float,
    ) -> profiling.Measured:
        def timed(inputs: Mapping[str, Array]) -> tuple[float, Mapping[str, Array]]:
            started = self._clock()
            outputs = model.run(inputs)
            return self._clock() - started, outputs

        option = goal.options.get("profile_shapes")
        try:
            shapes = profiling.checked_shapes(model.signature, option) or known
        except ValueError as error:
            raise ServingError(str(error)) from None
        return await profiling.measure(
            model.signature,
            goal.max_batch,
            shapes,
            lambda inputs: compute(self._accelerator, lambda: timed(inputs)),
            self._clock,
            budget_s,
        )

    async def _retire(self, resident: Resident) -> None:
        try:
            await asyncio.wait_for(resident.empty.wait(), self._drain_s)
        except asyncio.TimeoutError:
            for pending in self._scheduler.withdraw(resident):
                text = "this device stopped serving the model"
                self._fail(resident, pending.done, InferCode.NOT_FOUND, text)
        await self._run_blocking(resident.model.close)

    def _done(self, resident: Resident, pending: Pending, outcome: Outcome) -> None:
        if outcome.error:
            self._fail(resident, pending.done, _CODES[outcome.fault], outcome.error)
            return
        if not resident.loaded.measured:
            resident.learn(outcome)
        datatypes = resident.contract.datatypes
        names = [output.name for output in pending.request.outputs] or datatypes
        tensors = [Tensor(name, datatypes[name], outcome.outputs[name]) for name in names]
        try:
            pending.done(Answer(tensors, outcome.seconds, outcome.batch))
        except TensorError as error:
            self._fail(resident, pending.done, InferCode.INTERNAL, str(error))
        else:
            resident.answered += 1

    def _expired(self, resident: Resident, pending: Pending) -> None:
        text = "the deadline passed before compute began"
        self._fail(resident, pending.done, InferCode.EXPIRED, text)

    def _fail(self, resident: Resident, done: Done, code: InferCode, text: str) -> None:
        resident.failed += 1
        done(Refusal(code, text))

    def _reply(self, request: InferRequest, reply: Reply, result: Answer | Refusal) -> None:
        parameters: dict[str, Any] = {"queue_depth": self.depth}
        if isinstance(result, Refusal):
            refuse(request, reply, result, parameters)
            return
        parameters["service_us"] = round(result.seconds * 1e6)
        parameters["batch"] = result.batch
        answer(request, reply, result.outputs, parameters)


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
