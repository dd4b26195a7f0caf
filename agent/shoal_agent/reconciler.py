"""From goal to reported: a pure plan of what to do next, and the loop that does it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from shoal_agent.connectivity.backoff import pause_top
from shoal_agent.service.logs import fields
from shoal_agent.serving.resident import Loaded
from shoal_agent.serving.service import ServingError
from shoal_agent.updates.fetch import Artifacts, FetchError
from shoal_agent.updates.goals import Key, Slot, check_desired, digests_of, key_of, same_settings
from shoal_agent.updates.journal import Entry, Journal
from shoal_agent.updates.reports import reports
from shoal_shared.clock import Clock
from shoal_shared.messages import Desired, ModelGoal, ReplicaReport, RoleGoal, VariantGoal
from shoal_shared.status import ReplicaState

log = logging.getLogger("reconciler")

_RETRY_BASE_S = 60.0
_RETRY_CAP_S = 3600.0


@dataclass(frozen=True)
class Plan:
    """What to do now. At most one fetch and one load or unload are under way at a time."""

    add: tuple[ModelGoal, ...] = ()
    change: tuple[ModelGoal, ...] = ()
    drop: tuple[Key, ...] = ()
    cancel: tuple[Key, ...] = ()
    fetch: Key | None = None
    load: Key | None = None
    unload: Key | None = None
    wake_at: float | None = None


def plan(wanted: Sequence[ModelGoal], slots: Mapping[Key, Slot], now: float) -> Plan:
    """Decide the next steps from the goal to what is there; nothing where all is as wanted."""
    goals: dict[Key, ModelGoal] = {}
    for goal in wanted:
        goals.setdefault(key_of(goal), goal)
    kept = {k for k, s in slots.items() if k in goals and same_settings(s.goal, goals[k])}
    change = [
        k for k, s in slots.items() if k in goals and k not in kept and _may_stay(s, goals[k])
    ]
    gone = [k for k in slots if k not in kept and k not in change]
    # A version makes way only when its successor serves.
    arriving = {k[0] for k in goals if k not in kept or slots[k].loaded is None}

    def expendable(key: Key) -> bool:
        return key in goals or key[0] not in arriving

    idle = [k for k in slots if not slots[k].busy]
    due = [k for k in goals if k in kept and k in idle and _is_due(slots[k], now)]
    fetch = unload = load = None
    if not any(s.busy and s.files is None for s in slots.values()):
        ready_to_fetch = [k for k in due if slots[k].files is None]
        # What is here already comes first: it needs no network, which may be away.
        fetch = min(ready_to_fetch, key=lambda k: not slots[k].local, default=None)
    if not any(s.busy and s.files is not None for s in slots.values()):
        leaving = (k for k in gone if k in idle and slots[k].loaded is not None and expendable(k))
        unload = next(leaving, None)
        if unload is None:
            load = next((k for k in due if slots[k].files is not None), None)
    later = [s.retry_at for k, s in slots.items() if k in kept and s.retry_at > now]
    return Plan(
        add=tuple(g for k, g in goals.items() if k not in slots),
        change=tuple(goals[k] for k in change),
        drop=tuple(k for k in gone if k in idle and slots[k].loaded is None),
        cancel=tuple(k for k in gone if slots[k].busy and slots[k].files is None),
        fetch=fetch,
        load=load,
        unload=unload,
        wake_at=min(later, default=None),
    )


def _is_due(slot: Slot, now: float) -> bool:
    return (slot.loaded is None or slot.stale) and slot.retry_at <= now


def _may_stay(slot: Slot, goal: ModelGoal) -> bool:
    """Whether a model goes on serving while it is made ready with other settings: the same
    version, with another variant or option."""
    return slot.loaded is not None and not slot.busy and slot.goal.digest == goal.digest


class Serving(Protocol):
    """What the reconciler asks of the serving side; see `InferenceService`."""

    def needed_files(self, goal: ModelGoal) -> tuple[VariantGoal, ...]: ...

    async def load(
        self,
        goal: ModelGoal,
        files: Mapping[str, Path],
        on_state: Callable[[ReplicaState], None],
    ) -> Loaded: ...

    async def unload(self, model: str, version: str) -> None: ...

    async def collect(self, keep: Collection[str]) -> None: ...


class Reconciler:
    """Brings what runs to what is wanted, and goes on trying.

    `on_change` is called whenever `goal` or `reports` may have changed, and `on_roles` with the
    roles of each goal before it is reported: whoever reads the report may send to their topics.
    """

    def __init__(
        self,
        serving: Serving,
        artifacts: Artifacts,
        journal: Journal,
        *,
        clock: Clock,
        rng: random.Random,
        on_change: Callable[[], None],
        on_roles: Callable[[tuple[RoleGoal, ...]], None],
    ) -> None:
        self._serving = serving
        self._artifacts = artifacts
        self._journal = journal
        self._clock = clock
        self._rng = rng
        self._on_change = on_change
        self._on_roles = on_roles
        self._desired: Desired | None = None
        self._previous: tuple[str, ...] = ()
        self._offered: Desired | None = None
        self._slots: dict[Key, Slot] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._untidy = True

    @property
    def goal(self) -> int:
        """Number of the goal that is worked on; 0 before there is one."""
        return self._desired.goal if self._desired else 0

    def reports(self) -> tuple[ReplicaReport, ...]:
        return reports(self._wanted, self._slots)

    def offer(self, desired: Desired) -> None:
        """Take a goal document from outside; one that is unusable, late or known is ignored."""
        try:
            check_desired(desired)
        except ValueError as error:
            log.warning("ignored a goal document", extra=fields(reason=error))
            return
        known = self._offered or self._desired
        if known is not None and desired == known:
            return
        if known is not None and desired.goal <= known.goal:
            log.warning(
                "ignored a goal document",
                extra=fields(
                    reason="its number is not higher than that of the goal at work",
                    goal=desired.goal,
                    at_work=known.goal,
                ),
            )
            return
        self._offered = desired
        self._wake.set()

    def refresh(self, resident: Iterable[tuple[ModelGoal, Loaded]]) -> None:
        """Take over what the serving side has learnt since it loaded its models."""
        for goal, loaded in resident:
            slot = self._slots.get(key_of(goal))
            if slot is not None and slot.loaded is not None and slot.loaded != loaded:
                slot.loaded = loaded
                self._on_change()

    async def restore(self) -> None:
        """Take up the goal of the journal; called before `run` and before any `offer`."""
        entry = await self._journal.read()
        if entry is not None:
            self._desired, self._previous = entry.desired, entry.previous
            log.info("goal restored", extra=fields(goal=self.goal))
            self._on_roles(entry.desired.roles)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                self._wake.clear()
                await self._accept()
                step = plan(self._wanted, self._slots, self._clock())
                if self._start(step):
                    continue
                await self._tidy()
                await self._sleep(step.wake_at)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _wanted(self) -> tuple[ModelGoal, ...]:
        return self._desired.models if self._desired else ()

    def _needed(self) -> set[str]:
        """Digests of artifacts that are wanted or in use."""
        goals = (*self._wanted, *(slot.goal for slot in self._slots.values()))
        return set().union(*map(digests_of, goals))

    async def _accept(self) -> None:
        desired = self._offered
        if desired is None:
            return
        needed: set[str] = set().union(*map(digests_of, desired.models))
        # What only the goal before needed is kept for the way back to it.
        self._previous = tuple(sorted(self._needed() - needed)) or tuple(
            d for d in self._previous if d not in needed
        )
        # Written before anything is done, so that a power cut at any point comes back to this.
        await self._journal.write(Entry(desired=desired, previous=self._previous))
        self._desired = desired
        if self._offered is desired:
            self._offered = None
        for slot in self._slots.values():
            slot.failures, slot.retry_at = 0, 0.0
        self._untidy = True
        log.info("goal accepted", extra=fields(goal=desired.goal, models=len(desired.models)))
        self._on_roles(desired.roles)
        self._on_change()

    def _start(self, step: Plan) -> bool:
        """Begin what is planned; whether that calls for another plan."""
        for key in step.cancel:
            self._tasks[key].cancel()
        for key in step.drop:
            del self._slots[key]
        for goal in step.change:
            slot = self._slots[key_of(goal)]
            slot.goal, slot.local, slot.files = goal, self._is_local(goal), None
            slot.stale, slot.failures, slot.retry_at = True, 0, 0.0
        for goal in step.add:
            self._slots[key_of(goal)] = Slot(goal, self._is_local(goal))
        if step.fetch:
            self._begin(step.fetch, self._fetch)
        if step.load:
            self._begin(step.load, self._load)
        if step.unload:
            self._begin(step.unload, self._unload)
        return bool(step.drop or step.add or step.change)

    def _begin(self, key: Key, effect: Callable[[Slot], Coroutine[Any, Any, None]]) -> None:
        slot = self._slots[key]
        slot.busy = True

        async def work() -> None:
            try:
                await effect(slot)
            except Exception as error:
                log.exception("effect failed", extra=_names(slot.goal))
                self._fail(slot, f"internal error: {type(error).__name__}: {error}")
            finally:
                slot.busy = False
                del self._tasks[key]
                self._wake.set()
                self._on_change()

        self._tasks[key] = asyncio.get_running_loop().create_task(work())

    async def _fetch(self, slot: Slot) -> None:
        goal = slot.goal
        self._advance(slot, ReplicaState.FETCHING)
        try:
            files = {
                digest: await self._artifacts.obtain(digest, size, self._needed())
                for digest, size in self._artifacts_of(goal)
            }
        except FetchError as error:
            self._fail(slot, str(error))
        except ServingError as error:
            await self._end_stale(slot)
            self._fail(slot, str(error))
        else:
            slot.files = files

    def _is_local(self, goal: ModelGoal) -> bool:
        try:
            return all(itertools.starmap(self._artifacts.has, self._artifacts_of(goal)))
        except ServingError:
            return True  # Fetching has nothing to fetch: it will say what is wrong.

    def _artifacts_of(self, goal: ModelGoal) -> list[tuple[str, int]]:
        """Digests and sizes of what this device needs of a goal. Raises `ServingError`."""
        files = [(file.digest, file.size) for file in self._serving.needed_files(goal)]
        golden = [(goal.golden.digest, goal.golden.size)] if goal.golden else []
        return files + golden

    async def _load(self, slot: Slot) -> None:
        files = cast(Mapping[str, Path], slot.files)
        self._advance(slot, ReplicaState.LOADING)
        try:
            slot.loaded = await self._serving.load(slot.goal, files, partial(self._advance, slot))
        except ServingError as error:
            if slot.stale:
                # Maybe there was not enough memory for both: once more without the old one.
                log.warning("change failed, trying anew", extra=_names(slot.goal, reason=error))
                await self._end_stale(slot)
            else:
                self._fail(slot, str(error))
        else:
            slot.failures, slot.stale = 0, False
            self._advance(slot, ReplicaState.READY)

    async def _end_stale(self, slot: Slot) -> None:
        """Stop what still serves with settings that are no longer wanted."""
        if slot.stale:
            slot.stale, slot.loaded = False, None
            await self._serving.unload(slot.goal.model, slot.goal.version)

    async def _unload(self, slot: Slot) -> None:
        slot.loaded, slot.stale = None, False
        await self._serving.unload(slot.goal.model, slot.goal.version)
        log.info("model removed", extra=_names(slot.goal))

    def _advance(self, slot: Slot, state: ReplicaState) -> None:
        # What serves with its old settings meanwhile is ready all the time.
        if slot.state is not state and not slot.stale:
            slot.state, slot.reason = state, ""
            log.info("model " + state.value, extra=_names(slot.goal))
            self._on_change()

    def _fail(self, slot: Slot, reason: str) -> None:
        top = pause_top(slot.failures, base_s=_RETRY_BASE_S, cap_s=_RETRY_CAP_S)
        pause = self._rng.uniform(top / 2, top)
        slot.failures += 1
        slot.retry_at = self._clock() + pause
        if not slot.stale:
            slot.state, slot.reason = ReplicaState.FAILED, reason
        log.error("model failed", extra=_names(slot.goal, reason=reason, retry_in_s=round(pause)))

    async def _tidy(self) -> None:
        """Remove artifacts that no goal needs, once all is as wanted."""
        settled = all(
            s.loaded is not None and not s.busy and not s.stale for s in self._slots.values()
        )
        if self._untidy and settled and self._offered is None:
            self._untidy = False
            keep = self._needed() | set(self._previous)
            await self._artifacts.collect(keep)
            await self._serving.collect(keep)

    async def _sleep(self, wake_at: float | None) -> None:
        # Not `wait_for`, which before Python 3.12 may lose a cancellation to the event.
        timer = None
        if wake_at is not None:
            pause = max(0.0, wake_at - self._clock())
            timer = asyncio.get_running_loop().call_later(pause, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()


def _names(goal: ModelGoal, **more: object) -> Mapping[str, Any]:
    return fields(model=goal.model, version=goal.version, deployment=goal.deployment, **more)
