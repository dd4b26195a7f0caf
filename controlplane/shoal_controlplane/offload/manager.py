"""The targets and what should be on them; who has how many replicas, and what that costs.

A thin loop a target and one for each model on it (`placing`), so that none waits for another. They
converge: nothing is remembered of what was deployed before a restart, since deploying what is there
does nothing, and replicas that run are adopted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from shoal_controlplane.errors import DomainError
from shoal_controlplane.offload.allotment import Allotment
from shoal_controlplane.offload.breaker import Breaker, BreakerSettings
from shoal_controlplane.offload.budget import Budget
from shoal_controlplane.offload.kinds import kind_of
from shoal_controlplane.offload.learning import Learner
from shoal_controlplane.offload.placing import Placing, Timing, bounded, sleep_until_woken
from shoal_controlplane.offload.pool import CloudPool
from shoal_controlplane.offload.scaling import ScalingSettings
from shoal_controlplane.offload.state import (
    Placed,
    Retry,
    State,
    TargetPicture,
    TargetState,
    judge,
    picture,
)
from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Fault,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.clock import Clock

log = structlog.get_logger("offload")

Opener = Callable[[TargetSettings], Awaitable[CloudTarget]]
"""Builds a target without reaching it. Raises `InvalidError` or `TargetError`."""
Changed = Callable[[str, ModelKey, State, str], None]
"""Told of each change of state: target, model, its state now, and why in a sentence."""

_TICK_S = 1.0
_DESCRIBE_S = 60.0
_LINGER_S = 30.0
"""Requests under way may end before a target that was replaced is closed."""


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """A target that should be there; `cap_per_hour` bounds what it may cost, None does not."""

    settings: TargetSettings
    cap_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A model and the targets that its deployment names."""

    model: CloudModel
    targets: tuple[str, ...]


async def open_target(settings: TargetSettings) -> CloudTarget:
    """Open a target by its kind, whose SDK may take seconds to import."""
    kind = await asyncio.to_thread(kind_of, settings.kind)
    return kind.open_target(settings)


class CloudManager:
    """Keeps the targets of a pool as they should be."""

    def __init__(
        self,
        pool: CloudPool,
        clock: Clock,
        *,
        opener: Opener = open_target,
        changed: Changed = lambda *_: None,
        scaling: ScalingSettings | None = None,
        timing: Timing | None = None,
        breaker: BreakerSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._opener = opener
        self._changed = changed
        self._allotment = Allotment(pool, scaling or ScalingSettings(), clock())
        self._timing = timing or Timing()
        self._breaker = breaker or BreakerSettings()
        self._rng = rng or random.Random()
        self._placing = Placing(pool, clock, self._timing, self._note)
        self._plans: dict[str, TargetPlan] = {}
        self._wanted: dict[tuple[str, ModelKey], CloudModel] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._drives: dict[Placed, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._started = False

    def set_targets(self, targets: Iterable[TargetPlan]) -> None:
        """Have these targets, and no others. Models are taken away from those that go."""
        self._plans = {plan.settings.name: plan for plan in targets}
        self._reconcile()

    def set_wanted(self, wanted: Iterable[WantedModel]) -> None:
        """Have these models on their targets, and no others. Unknown targets are waited for."""
        self._wanted = {
            (name, entry.model.key): entry.model for entry in wanted for name in entry.targets
        }
        self._reconcile()

    def set_pins(self, pins: Mapping[tuple[str, ModelKey], int]) -> None:
        """Have these numbers of replicas by target and model, whatever is needed, as far as limits
        and budgets allow; all others follow the need."""
        self._allotment.pins = dict(pins)
        self._pool.alarm.set()

    async def start(self) -> None:
        """Begin; what was set before counts."""
        self._started = True
        self._allotment.charge((), self._clock())
        self._spawn(self._tick_for_ever())
        self._reconcile()

    async def stop(self) -> None:
        """End all loops and sessions. What is deployed stays so."""
        self._started = False
        tasks = [*self._watches.values(), *self._drives.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        clouds = [owner.cloud for owner in self._pool.targets.values() if owner.cloud is not None]
        await asyncio.gather(*(self._close(cloud) for cloud in clouds))
        self._watches.clear()
        self._drives.clear()
        self._pool.targets.clear()
        self._pool.placed.clear()

    def pictures(self) -> tuple[TargetPicture, ...]:
        """All targets by name, frozen."""
        now = self._clock()
        return tuple(
            picture(owner, tuple(self._pool.on(owner)), now)
            for _, owner in sorted(self._pool.targets.items())
        )

    # What should be there

    def _reconcile(self) -> None:
        if not self._started:
            return
        now = self._clock()
        for name, owner in list(self._pool.targets.items()):
            plan = self._plans.get(name)
            if plan is None or _place(plan.settings) != _place(owner.settings):
                self._part(owner)
        for name, plan in self._plans.items():
            known = self._pool.targets.get(name)
            if known is None:
                owner = TargetState(plan.settings, Budget(plan.cap_per_hour, now))
                self._pool.targets[name] = owner
                self._watches[name] = self._spawn(self._watch(owner))
                continue
            if known.budget.cap != plan.cap_per_hour:
                known.budget.limit(plan.cap_per_hour, now)
            if known.settings != plan.settings:
                self._reopen(known, plan.settings)
        for (name, key), model in self._wanted.items():
            if name in self._pool.targets:
                self._place_model(self._pool.targets[name], key, model)
        for at, placed in self._pool.placed.items():
            if at not in self._wanted and not placed.leaving:
                self._take_away(placed)
        self._pool.keep({key for _, key in self._wanted})
        self._pool.alarm.set()

    def _place_model(self, owner: TargetState, key: ModelKey, model: CloudModel) -> None:
        at = (owner.settings.name, key)
        placed = self._pool.placed.get(at)
        if placed is None:
            placed = Placed(
                owner,
                model,
                Learner(),
                Breaker(self._breaker, self._rng),
                deploying=Retry(1.0, 60.0),
                scaling=Retry(2.0, 120.0),
                checking=Retry(1.0, 30.0),
                warming=Retry(60.0, 900.0),
            )
            self._pool.placed[at] = placed
            self._drives[placed] = self._spawn(self._drive(placed))
        elif placed.leaving or placed.model != model:
            placed.leaving = placed.unsupported = placed.deployed = False
            placed.model = model
            placed.deploying.worked()
            placed.wake.set()

    @staticmethod
    def _take_away(placed: Placed) -> None:
        placed.leaving = True
        placed.ready = 0
        placed.deploying.worked()
        placed.wake.set()

    def _part(self, owner: TargetState) -> None:
        """The target is to go, with what is on it."""
        name = owner.settings.name
        del self._pool.targets[name]
        self._watches.pop(name).cancel()
        parting = list(self._pool.on(owner))
        for placed in parting:
            del self._pool.placed[name, placed.model.key]
            placed.gone = owner.cloud is None
            self._take_away(placed)
        if owner.cloud is not None:
            self._spawn(self._close_after(owner.cloud, [self._drives[p] for p in parting]))

    def _reopen(self, owner: TargetState, settings: TargetSettings) -> None:
        """The same place, reached or paid for in another way."""
        if owner.cloud is not None:
            self._spawn(self._close_after(owner.cloud, [], _LINGER_S))
        owner.settings = settings
        owner.cloud = None
        owner.refused = owner.trouble = ""
        for placed in self._pool.on(owner):
            placed.deployed = placed.unsupported = False
            placed.deploying.worked()
        owner.wake.set()

    # Loops

    async def _watch(self, owner: TargetState) -> None:
        """Open a target, and see now and then whether it can be reached."""
        retry = Retry(2.0, _DESCRIBE_S)
        while True:
            owner.wake.clear()
            pause_s = _DESCRIBE_S
            try:
                cloud = owner.cloud or await self._open(owner)
                said = await bounded(cloud.describe(), self._timing.call_s, "the description")
                owner.where, owner.facts = said.where, said.facts
                owner.trouble = owner.refused = ""
                retry.worked()
            except TargetError as error:
                refused = error.fault is Fault.CREDENTIALS
                owner.refused = str(error) if refused else owner.refused
                owner.trouble = "" if refused else str(error)
                retry.failed(self._clock())
                pause_s = retry.at - self._clock()
            for placed in self._pool.on(owner):
                self._note(placed)
            await sleep_until_woken(owner.wake, pause_s)

    async def _open(self, owner: TargetState) -> CloudTarget:
        settings = owner.settings
        cloud = await bounded(self._opened(settings), self._timing.call_s, "opening it")
        if owner.settings is not settings:
            await self._close(cloud)  # They changed meanwhile.
            return await self._open(owner)
        owner.cloud, owner.price = cloud, cloud.price()
        for placed in self._pool.on(owner):
            placed.wake.set()
        return cloud

    async def _opened(self, settings: TargetSettings) -> CloudTarget:
        try:
            return await self._opener(settings)
        except DomainError as error:
            raise TargetError(Fault.UNSUPPORTED, str(error)) from None

    async def _drive(self, placed: Placed) -> None:
        try:
            await self._placing.drive(placed)
        finally:
            del self._drives[placed]
        at = (placed.owner.settings.name, placed.model.key)
        if self._pool.placed.get(at) is placed:
            del self._pool.placed[at]

    async def _tick_for_ever(self) -> None:
        while True:
            self._pool.alarm.clear()
            now = self._clock()
            self._allotment.charge(self._drives, now)
            self._allotment.decide(now)
            for placed in list(self._drives):
                self._note(placed)
            await sleep_until_woken(self._pool.alarm, _TICK_S)

    # Helpers

    def _note(self, placed: Placed) -> None:
        state, sentence = judge(placed, self._clock())
        if state is not placed.state:
            placed.state = state
            self._changed(placed.owner.settings.name, placed.model.key, state, sentence)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._others.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a loop of the cloud targets ended", exc_info=error)

    async def _close_after(
        self, cloud: CloudTarget, tasks: list[asyncio.Task[None]], linger_s: float = 0.0
    ) -> None:
        try:
            if tasks:
                await asyncio.wait(tasks)
            await asyncio.sleep(linger_s)
        finally:
            await self._close(cloud)

    async def _close(self, cloud: CloudTarget) -> None:
        try:
            await bounded(cloud.close(), self._timing.call_s, "closing it")
        except TargetError as error:
            log.warning("a target did not close", reason=str(error))


def _place(settings: TargetSettings) -> tuple[str, Any]:
    """What makes it another place, where other models are."""
    return settings.kind, settings.options
