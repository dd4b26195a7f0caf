"""From a sharded deployment to a plan: draft, measure where nothing is known, draft anew, cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import structlog
from msgspec.structs import replace

from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.errors import ConflictError
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.costs import chunks
from shoal_controlplane.planner.credits import credits_for, room_for
from shoal_controlplane.planner.partition.along import solve_along
from shoal_controlplane.planner.partition.problem import Objective, Partition, Problem
from shoal_controlplane.planner.partition.solve import evaluate
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.draft import Basis, Draft
from shoal_controlplane.plans.drafting import compression_of
from shoal_controlplane.plans.entry import Entry, asked
from shoal_controlplane.plans.fallbacks import fallbacks
from shoal_controlplane.plans.measuring import Pulse, as_part, measure
from shoal_controlplane.plans.parts import Parts
from shoal_controlplane.plans.plan import Plan, Wiring
from shoal_shared.clock import Clock
from shoal_shared.messages import ModelGoal

log = structlog.get_logger("plans")

GAIN = 1.10
"""A plan that works is replaced by one that is better by this factor …"""
SUSTAIN_S = 20.0
"""… for so long."""
AT_HAND = 2.0
"""A lost plan is mended with the stages that it had if that is at most so many times worse."""


class Models(Protocol):
    """Where model versions are looked up."""

    async def get(self, name: str, version: str | None = None) -> ModelVersion:
        """Raises `NotFoundError`."""


class Drafting(Protocol):
    """Computes plans for the fleet as it is; see `plans.drafting.Drafter`."""

    async def draft(
        self,
        model: ModelVersion,
        *,
        select: Mapping[str, str],
        objective: Objective,
        stages: int | None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        exclude: Collection[str] = (),
        own: Mapping[str, int] | None = None,
        require_accelerator: bool = False,
    ) -> Draft:
        """Raises a `DomainError`."""


class Shaper:
    """Makes plans, one at a time: each sees the memory that the others took.

    `wake` has the goals of devices computed anew, `pulse` beats at every change of the fleet.
    """

    def __init__(
        self,
        drafter: Drafting,
        parts: Parts,
        models: Models,
        fleet: LiveFleet,
        pulse: Pulse,
        wake: Callable[[], None],
        clock: Clock,
        wall: Clock,
    ) -> None:
        self._drafter = drafter
        self._parts = parts
        self._models = models
        self._fleet = fleet
        self._pulse = pulse
        self._wake = wake
        self._clock = clock
        self._wall = wall
        self._planning = asyncio.Lock()

    async def shape(self, entry: Entry, serving: bool) -> None:
        """Give the entry a candidate, or none where what it has is as good. Raises a
        `DomainError` with the reason where there can be no plan."""
        model = await self._models.get(entry.deployment.model, entry.deployment.version)
        held = held_bytes(entry)
        if serving or entry.plan is None:
            # Where nothing serves any more, there is no time for it.
            draft = await self._draft(entry, model, held)
            if draft.outcome.best is not None:  # Else what is missing is memory, not figures.
                await self._measure(entry, model, draft, serving)
        async with self._planning:
            # Measurements have come in, and others may have taken memory meanwhile. What serves
            # keeps its own until its successor is ready.
            draft = await self._draft(entry, model, dict.fromkeys(held, 0) if serving else held)
            gives_way = serving and not entry.is_current and draft.outcome.best is None
            if gives_way:
                # There is not the room for both, and it is not what is asked for.
                draft = await self._draft(entry, model, held)
            best = draft.outcome.best
            plan = entry.plan if serving and entry.is_current else None
            if plan is not None and (best is None or not self._gains(entry, plan, draft, best)):
                await self._refit(entry, plan, model)
                return
            if best is None:
                raise ConflictError(draft.outcome.reason)
            if not serving:
                best = _at_hand(entry, model, draft, best)
                entry.turn(PlanState.CUTTING, self._wall())
            candidate = await self._cut(entry, model, draft, best)
            if gives_way:
                entry.plan = entry.draining = None
            entry.candidate = candidate
            entry.draft, entry.partition = draft, best
            entry.loading_since = self._clock()

    async def _draft(
        self, entry: Entry, model: ModelVersion, own: Mapping[str, int] | None = None
    ) -> Draft:
        """A draft without the devices that failed the plan, or with them if there is no other."""
        avoided = entry.avoided(self._clock())
        if avoided:
            try:
                draft = await self._draft_without(entry, model, avoided, own)
                if draft.outcome.best is not None:
                    return draft
            except ConflictError:
                pass
        return await self._draft_without(entry, model, (), own)

    async def _draft_without(
        self,
        entry: Entry,
        model: ModelVersion,
        exclude: Collection[str],
        own: Mapping[str, int] | None,
    ) -> Draft:
        deployment = entry.deployment
        return await self._drafter.draft(
            model,
            select=deployment.select,
            objective=deployment.objective,
            stages=entry.stages,
            shapes=deployment.shapes or None,
            exclude=exclude,
            own=own,
            require_accelerator=deployment.require_accelerator,
        )

    async def _measure(
        self, entry: Entry, model: ModelVersion, draft: Draft, serving: bool
    ) -> None:
        """Have one device of each type of board that is not known yet measure the model."""
        unknown: dict[str, tuple[str, int]] = {}
        for kind, basis, board in zip(draft.problem.types, draft.basis, draft.boards, strict=True):
            if basis is not Basis.MEASURED and board not in entry.measured:
                unknown.setdefault(board, (kind.devices[0], kind.memory_bytes))
        if not unknown or len(draft.analysis.segments) < 2:
            return
        if not serving:
            entry.turn(PlanState.MEASURING, self._wall(), _measuring(unknown))
        files = await self._parts.ranges(model, draft.analysis, chunks(draft.analysis.segments))
        entry.measured.update(unknown)

        def ask(device: str, goals: tuple[ModelGoal, ...]) -> None:
            if goals:
                entry.jobs[device] = goals
            else:
                entry.jobs.pop(device, None)
            self._wake()

        await asyncio.gather(
            *(
                measure(
                    self._fleet,
                    device,
                    entry.deployment.name,
                    entry.deployment.key,
                    files,
                    free,
                    entry.deployment.options,
                    ask,
                    self._pulse,
                )
                for device, free in unknown.values()
            )
        )

    async def _cut(self, entry: Entry, model: ModelVersion, draft: Draft, best: Partition) -> Plan:
        bounds = (0, *(stage.last for stage in best.stages))
        files = await self._parts.of(model, draft.analysis, bounds)
        deployment = entry.deployment
        window = min(credits_for(best), room_for(draft.problem, best))
        more = max(0, window - draft.problem.in_flight)
        return self._wired(
            entry,
            Plan(
                name=deployment.name,
                model=deployment.model,
                version=deployment.version,
                digest=model.digest,
                asked=asked(deployment),
                parts=tuple(
                    as_part(file, stage.memory_bytes + more * (stage.in_bytes + stage.out_bytes))
                    for file, stage in zip(files, best.stages, strict=True)
                ),
                current=_wiring(0, best),
                credits=window,
                compression=compression_of(model),
                created_at=self._wall(),
            ),
            draft.problem,
            best,
        )

    def _wired(self, entry: Entry, plan: Plan, problem: Problem, partition: Partition) -> Plan:
        """A plan with epochs of its own: the current one, and a fallback for each device."""
        entry.epoch += 1
        current = _wiring(entry.epoch, partition)
        ahead: dict[str, Wiring] = {}
        for lost, way in sorted(fallbacks(problem, partition).items()):
            entry.epoch += 1
            ahead[lost] = _wiring(entry.epoch, way)
        return replace(plan, current=current, fallbacks=ahead)

    def _gains(self, entry: Entry, plan: Plan, draft: Draft, best: Partition) -> bool:
        """Whether a new plan has been clearly better than the one that works for long enough."""
        now = self._clock()
        # Where it is not among what was weighed, what was thought of it when it was wired counts.
        present = repriced(plan, draft.problem) or plan.current
        if _value(present, draft) <= GAIN * _value(best, draft):
            entry.gain_since = None
            return False
        if entry.gain_since is None:
            entry.gain_since = now
        if now - entry.gain_since < SUSTAIN_S:
            entry.again = True
            entry.retry_at = entry.gain_since + SUSTAIN_S
            return False
        entry.gain_since = None
        return True

    async def _refit(self, entry: Entry, plan: Plan, model: ModelVersion) -> None:
        """Wire new fallbacks for a plan that works but has none for some of its devices."""
        usable = entry.usable(plan)
        covered = {lost for lost, wiring in plan.fallbacks.items() if wiring in usable}
        if plan.current.members <= covered:
            return
        draft = await self._draft(entry, model, held_bytes(entry))
        present = repriced(plan, draft.problem)
        if present is None or not (fallbacks(draft.problem, present).keys() - covered):
            return
        entry.candidate = self._wired(entry, plan, draft.problem, present)
        entry.draft, entry.partition = draft, present
        entry.loading_since = self._clock()


def _at_hand(entry: Entry, model: ModelVersion, draft: Draft, best: Partition) -> Partition:
    """Where a plan was lost: its stages on the devices that are left, if that is not much worse
    than the best plan. The files are cut, and most devices have theirs; a better plan can take
    over later."""
    plan = entry.plan
    if plan is None or not entry.is_current or plan.digest != model.digest:
        return best
    if len(plan.parts) < 2 or plan.bounds[-1] != len(draft.problem.segments):
        return best
    found = solve_along(draft.problem, plan.bounds)
    if found is None or _value(found, draft) > AT_HAND * _value(best, draft):
        return best
    return found


def held_bytes(entry: Entry) -> dict[str, int]:
    """Memory that an entry's plans take, by device."""
    found: dict[str, dict[str, int]] = {}
    for plan in entry.plans:
        for wiring in plan.wirings:
            for part, devices in zip(plan.parts, wiring.devices, strict=True):
                for device in devices:
                    found.setdefault(device, {})[part.digest] = part.memory_bytes
    return {device: sum(parts.values()) for device, parts in found.items()}


def repriced(plan: Plan, problem: Problem) -> Partition | None:
    """What a plan is worth in a fleet as it is now; None where not all its devices are in the
    problem, or those of a stage are no longer of one type."""
    if plan.bounds[-1] != len(problem.segments):
        return None
    kinds = {device: i for i, kind in enumerate(problem.types) for device in kind.devices}
    stages: list[tuple[int, int, int, tuple[str, ...]]] = []
    for part, devices in zip(plan.parts, plan.current.devices, strict=True):
        found = {kinds.get(device) for device in devices}
        [kind] = found if len(found) == 1 else [None]
        if kind is None:
            return None
        stages.append((part.first, part.last, kind, devices))
    return evaluate(problem, stages)


def _value(plan: Partition | Wiring, draft: Draft) -> float:
    if draft.problem.objective is Objective.LATENCY:
        return plan.latency_ms
    return plan.bottleneck_ms


def _wiring(epoch: int, partition: Partition) -> Wiring:
    return Wiring(
        epoch=epoch,
        devices=tuple(stage.devices for stage in partition.stages),
        stage_ms=tuple(stage.compute_ms for stage in partition.stages),
        bottleneck_ms=partition.bottleneck_ms,
        latency_ms=partition.latency_ms,
    )


def _measuring(unknown: Mapping[str, tuple[str, int]]) -> str:
    devices = ", ".join(sorted(device for device, _ in unknown.values()))
    return f"parts of the model are measured on {devices}"
