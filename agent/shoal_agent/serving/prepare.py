"""From a goal to a model in memory: the fastest way that loads, is placed and computes right."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from shoal_agent.runtimes.base import LoadedModel, RuntimeLoadError, RuntimeRunError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.trial import TrialOutcome, TrialTask
from shoal_agent.serving.compiled import CompiledCode
from shoal_agent.serving.records import Record, Records, record_key
from shoal_agent.serving.variants import Candidate, Choice, choose, described
from shoal_shared.clock import Clock
from shoal_shared.compiled import MAX_FIELD, CompileKey
from shoal_shared.golden import Golden, GoldenError, agrees, decode
from shoal_shared.messages import REFERENCE, ModelGoal, VariantGoal
from shoal_shared.placement import Placement, Proof
from shoal_shared.profiles import Profile
from shoal_shared.tensors import Array

logger = logging.getLogger(__name__)

T = TypeVar("T")

Run = Callable[[LoadedModel, Mapping[str, Array]], Awaitable[Mapping[str, Array]]]
"""Runs a model once on its accelerator. Raises `RuntimeRunError`."""


class RunBlocking(Protocol):
    """Runs blocking work off the event loop, as `asyncio.to_thread` does."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


class Trial(Protocol):
    """Tries a way to run a model where a crash hurts nobody; see `try_in_child`."""

    async def __call__(self, task: TrialTask) -> TrialOutcome:
        """Raises `RuntimeLoadError`."""


@dataclass(frozen=True)
class Prepared:
    """A model in memory that passed, how it runs, and `record` if it was known from before.

    `shapes` are inputs that the model takes for certain, empty where none are known.
    """

    model: LoadedModel
    candidate: Candidate
    placement: Placement
    golden_error: float | None
    compiled: str
    load_s: float
    shapes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()
    record: Record | None = None


@dataclass(frozen=True)
class _Job:
    """One goal on its way, with what stays the same for all candidates."""

    goal: ModelGoal
    files: Mapping[str, Path]
    golden: Golden | None
    shapes: Mapping[str, tuple[int, ...]]
    run: Run


@dataclass(frozen=True)
class _Passed:
    """A candidate that passed its trial (None where there was none), with its compiled code."""

    candidate: Candidate
    outcome: TrialOutcome | None = None
    compiled: Path | None = None
    origin: str = ""


class Preparer:
    """Finds the fastest way to run a goal's model on this device, and loads it.

    `target` is the board's chip and `driver` the versions of its drivers, on which compiled code
    and records depend.
    """

    def __init__(
        self,
        registry: RuntimeRegistry,
        trial: Trial,
        compiled: CompiledCode,
        records: Records,
        *,
        target: str = "",
        driver: str = "",
        run_blocking: RunBlocking,
        clock: Clock = time.monotonic,
    ) -> None:
        self._registry = registry
        self._trial = trial
        self._compiled = compiled
        self._records = records
        self._target = target
        self._driver = driver
        self._run_blocking = run_blocking
        self._clock = clock

    def needed_files(self, goal: ModelGoal) -> tuple[VariantGoal, ...]:
        """The files that this device may try. Raises `RuntimeLoadError` if there is none."""
        choice = self._choose(goal)
        if not choice.all:
            raise RuntimeLoadError("; ".join(choice.refused))
        return choice.files

    async def prepare(self, goal: ModelGoal, files: Mapping[str, Path], run: Run) -> Prepared:
        """Load the fastest candidate that passes. `files` maps digests to artifacts.

        Accelerators come first; the CPU is used if none of them passes and the goal allows it,
        and then `notes` say why. Raises `RuntimeLoadError` naming every reason.
        """
        choice = self._choose(goal)
        golden, problem = await self._run_blocking(lambda: _read_golden(goal, files))
        job = _Job(goal, files, golden, _shapes(goal, golden), run)
        known = await self._from_record(job, choice)
        if known is not None:
            return known
        notes = [*choice.refused, *problem]
        for group in (choice.fast, choice.slow):
            for passed in await self._ranked(job, group, notes):
                try:
                    prepared = await self._load(job, passed)
                except RuntimeLoadError as error:
                    notes.append(described(goal, passed.candidate, str(error)))
                    continue
                unchecked = _unchecked(job, passed.candidate)
                return replace(prepared, notes=(*notes, *unchecked))
        raise RuntimeLoadError("; ".join(notes))

    async def remember(self, goal: ModelGoal, prepared: Prepared, profile: Profile) -> None:
        """Keep what was found out about a goal for the next start."""
        record = Record(
            variant=prepared.candidate.file.name,
            provider_set=prepared.candidate.provider_set.name,
            placement=prepared.placement,
            profile=profile,
            compiled=bool(prepared.compiled),
            notes=prepared.notes,
        )
        await self._records.put(self._record_key(goal), record)

    async def collect(self, keep: Collection[str]) -> None:
        """Drop compiled code of files whose digests are not in `keep`."""
        await self._compiled.collect(keep)

    async def close(self) -> None:
        """End what goes on in the background."""
        await self._compiled.close()

    def describe(self, candidate: Candidate) -> str:
        """What runs a candidate, as "onnxruntime 1.32.0 qnn-htp"."""
        version = self._registry.runtime_version(candidate.file.format)
        return f"{version} {candidate.provider_set.name}"

    def _choose(self, goal: ModelGoal) -> Choice:
        return choose(goal, self._registry.provider_sets)

    def _record_key(self, goal: ModelGoal) -> str:
        runtimes = {self._registry.runtime_version(file.format) for file in goal.files}
        return record_key(goal, " ".join([*sorted(runtimes), self._target, self._driver]))

    async def _from_record(self, job: _Job, choice: Choice) -> Prepared | None:
        """What passed before needs no trial, only the golden check of the session that serves."""
        key = self._record_key(job.goal)
        record = self._records.get(key)
        if record is None:
            return None
        names = (record.variant, record.provider_set)
        for candidate in choice.all:
            if (candidate.file.name, candidate.provider_set.name) == names:
                break
        else:
            return None
        if choice.fast and not candidate.provider_set.accelerated:
            return None  # What kept it from the accelerator may be over: a driver came late.
        folder, origin = await self._obtain(job, candidate)
        if record.compiled and not origin:
            return None  # It must be compiled again, which is the child's work.
        # Should it crash this process, the next start tries it in a child.
        await self._records.forget(key)
        try:
            prepared = await self._load(job, _Passed(candidate, None, folder, origin))
        except RuntimeLoadError as error:
            logger.warning("what served before does not load any more, trying anew: %s", error)
            return None
        await self._records.put(key, record)
        placement = prepared.placement
        if placement.proof is Proof.LISTED:
            placement = record.placement
        return replace(prepared, placement=placement, notes=record.notes, record=record)

    async def _ranked(
        self, job: _Job, group: Sequence[Candidate], notes: list[str]
    ) -> list[_Passed]:
        """Those of a group that pass their trials, the fastest first; reasons go to `notes`."""
        if len(group) == 1 and not group[0].provider_set.accelerated:
            # Nothing to compare and no strange library: loading it is the trial.
            return [_Passed(group[0])]
        passed: list[tuple[float, int, _Passed]] = []
        for number, candidate in enumerate(group):
            try:
                result = await self._try(job, candidate)
            except RuntimeLoadError as error:
                notes.append(described(job.goal, candidate, str(error)))
                continue
            ms = result.outcome.milliseconds if result.outcome else None
            passed.append((float("inf") if ms is None else ms, number, result))
        return [result for *_, result in sorted(passed, key=lambda item: item[:2])]

    async def _try(self, job: _Job, candidate: Candidate) -> _Passed:
        """Try a candidate in a child; compiled code that turns out bad is made anew once."""
        folder, origin = await self._obtain(job, candidate)
        try:
            outcome = await self._verdict(job, candidate, folder)
        except RuntimeLoadError as error:
            if not origin:
                raise
            logger.warning("compiled code is bad, compiling anew: %s", error)
            await self._compiled.reject(self._compile_key(job, candidate), str(error))
            origin = ""
            outcome = await self._verdict(job, candidate, folder)
        if folder is not None and outcome.compiled_here:
            origin = "here"
            await self._compiled.offer(self._compile_key(job, candidate))
        return _Passed(candidate, outcome, folder, origin)

    async def _verdict(self, job: _Job, candidate: Candidate, folder: Path | None) -> TrialOutcome:
        golden = job.goal.golden
        outcome = await self._trial(
            TrialTask(
                format=candidate.file.format,
                path=str(job.files[candidate.file.digest]),
                options=job.goal.options,
                provider_set=candidate.provider_set,
                compiled=str(folder or ""),
                shapes=dict(job.shapes),
                golden=str(job.files[golden.digest]) if golden and job.golden else "",
                absolute=golden.absolute if golden else 0.0,
                relative=golden.relative if golden else 0.0,
            )
        )
        if candidate.provider_set.accelerated and not outcome.placement.is_accelerated:
            raise RuntimeLoadError(_not_placed(outcome.placement, outcome.complaint))
        if not outcome.agrees:
            raise RuntimeLoadError(_disagrees(outcome.golden_error))
        return outcome

    async def _load(self, job: _Job, passed: _Passed) -> Prepared:
        """Load what passed into this process, and check it there, too."""
        candidate = passed.candidate
        runtime = self._registry.for_format(candidate.file.format)
        path = job.files[candidate.file.digest]
        started = self._clock()
        model = await self._run_blocking(
            lambda: runtime.load(
                path, job.goal.options, candidate.provider_set, passed.compiled, job.shapes
            )
        )
        load_s = self._clock() - started
        outcome = passed.outcome
        placement = model.placement
        try:
            if placement.proof is Proof.LISTED and outcome is not None:
                placement = outcome.placement
            elif candidate.provider_set.accelerated and not placement.is_accelerated:
                raise RuntimeLoadError(_not_placed(placement))
            error = await self._check(job, model)
        except BaseException:
            model.close()
            raise
        if outcome is not None and outcome.compiled_here:
            load_s = outcome.load_s
        return Prepared(model, candidate, placement, error, passed.origin, load_s, job.shapes)

    async def _check(self, job: _Job, model: LoadedModel) -> float | None:
        """Largest golden difference of the session that is going to serve."""
        if job.golden is None or job.goal.golden is None:
            return None
        largest = 0.0
        halves = [spec.name for spec in model.signature.outputs if spec.datatype == "BF16"]
        for case in job.golden.cases:
            try:
                outputs = await job.run(model, case.inputs)
            except RuntimeRunError as error:
                raise RuntimeLoadError(f"the golden inputs cannot be run: {error}") from error
            limits = (job.goal.golden.absolute, job.goal.golden.relative)
            fine, difference = agrees(case.outputs, outputs, *limits, bfloat16=halves)
            largest = max(largest, difference)
            if not fine:
                raise RuntimeLoadError(_disagrees(difference))
        return largest

    async def _obtain(self, job: _Job, candidate: Candidate) -> tuple[Path | None, str]:
        if not candidate.provider_set.compiles:
            return None, ""
        return await self._compiled.obtain(self._compile_key(job, candidate))

    def _compile_key(self, job: _Job, candidate: Candidate) -> CompileKey:
        providers = candidate.provider_set
        settings = (job.goal.options, providers.providers, job.shapes)
        return CompileKey(
            digest=candidate.file.digest,
            target=providers.target or self._target,
            provider_set=providers.name,
            runtime=self._registry.runtime_version(candidate.file.format),
            driver=_bounded(self._driver),
            settings=hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest(),
        )


def _read_golden(
    goal: ModelGoal, files: Mapping[str, Path]
) -> tuple[Golden | None, tuple[str, ...]]:
    """The golden cases of a goal, and a sentence where there are none that can be used."""
    if goal.golden is None:
        return None, ()
    try:
        return decode(files[goal.golden.digest].read_bytes()), ()
    except (OSError, GoldenError) as error:
        return None, (f"the golden outputs cannot be used, so nothing was compared: {error}",)


def _bounded(text: str) -> str:
    """`text`, or a digest of it where it is too long for a key."""
    return text if len(text) <= MAX_FIELD else hashlib.sha256(text.encode()).hexdigest()


def _unchecked(job: _Job, candidate: Candidate) -> tuple[str, ...]:
    """Says so where something else than the reference on the CPU serves without a check."""
    plain = candidate.file.name == REFERENCE and not candidate.provider_set.accelerated
    if plain or job.goal.golden is not None:
        return ()
    return ("no golden outputs were recorded, so nobody knows whether the answers are right",)


def _shapes(goal: ModelGoal, golden: Golden | None) -> dict[str, tuple[int, ...]]:
    """Shapes to compile for where an accelerator needs fixed ones: those of the first golden
    case, else of the option `profile_shapes`."""
    if golden is not None:
        return {name: array.shape for name, array in golden.cases[0].inputs.items()}
    given: Any = goal.options.get("profile_shapes", {})
    try:
        return msgspec.convert(given, dict[str, tuple[int, ...]])
    except msgspec.ValidationError:
        return {}  # Profiling says what is wrong with the option.


def _not_placed(placement: Placement, complaint: str = "") -> str:
    text = "the model does not run on the accelerator: it is as slow as on the CPU"
    if placement.nodes:
        total = sum(placement.nodes.values())
        fast = round(placement.accelerated * total)
        text = f"{fast or 'none'} of {total} nodes run on the accelerator"
    return f"{text}: {complaint}" if complaint else text


def _disagrees(error: float | None) -> str:
    difference = "are not finite numbers or have another shape"
    if error is not None and error < float("inf"):
        difference = f"differ by {error:.3g}, more than the model allows"
    return f"its outputs {difference}"
