"""The loop of one model on one target: deploy, scale, check, warm up, remove, again after failures.

Every call ends in time, and none touches another model or target.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from shoal_controlplane.gateway.clouds import Level
from shoal_controlplane.offload.pool import CloudPool, where_of
from shoal_controlplane.offload.scaling import Scale
from shoal_controlplane.offload.state import Placed
from shoal_controlplane.offload.target import CloudTarget, Fault, Health, TargetError
from shoal_controlplane.offload.warmup import blank_request
from shoal_shared.clock import Clock

log = structlog.get_logger("offload")

T = TypeVar("T")
_IDLE_S = 3600.0
_SHORTEST_S = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: the longest that a deployment, another call and a warm-up request may take; between
    health checks of replicas that are ready, growing, getting warm, and of none; after which a
    figure is measured anew under pressure; until a replica must be ready; until a replica count
    that somebody else changed is set again."""

    deploy_s: float = 600.0
    call_s: float = 30.0
    warm_up_s: float = 10.0
    ready_s: float = 5.0
    growing_s: float = 2.0
    warming_s: float = 0.5
    cold_s: float = 30.0
    stale_s: float = 10.0
    patience_s: float = 600.0
    drift_s: float = 60.0
    removals: int = 5
    """Attempts to take a model away from a target that was removed."""


async def bounded(call: Awaitable[T], limit_s: float, what: str) -> T:
    """What a call to a target gives. Raises `TargetError` and nothing else, in time."""
    try:
        async with asyncio.timeout(limit_s):
            return await call
    except TimeoutError:
        raise TargetError(Fault.TIMEOUT, f"{what} did not end within {limit_s:.0f} s") from None
    except (TargetError, asyncio.CancelledError):
        raise
    except Exception as error:
        # A fault of ours or of an SDK must not end the loop.
        log.error("a target failed", call=what, error=type(error).__name__, at=where_of(error))
        raise TargetError(Fault.BROKEN, f"{what} failed: {type(error).__name__}") from error


async def sleep_until_woken(event: asyncio.Event, longest_s: float) -> None:
    """Wait for `event`, but no longer than that."""
    try:
        async with asyncio.timeout(longest_s):
            await event.wait()
    except TimeoutError:
        pass


class Placing:
    """Drives models on targets, each in a task of its own."""

    def __init__(
        self,
        pool: CloudPool,
        clock: Clock,
        timing: Timing,
        noted: Callable[[Placed], None],
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._timing = timing
        self._noted = noted

    async def drive(self, placed: Placed) -> None:
        """Run until the model has left."""
        while not placed.gone:
            placed.wake.clear()
            pause_s = await self._step(placed)
            self._noted(placed)
            if not placed.gone:
                await sleep_until_woken(placed.wake, max(_SHORTEST_S, pause_s))

    async def _step(self, placed: Placed) -> float:
        """Do what is due; the seconds until something is again."""
        cloud = placed.owner.cloud
        if cloud is None:
            return _IDLE_S
        if placed.leaving:
            return await self._leave(placed, cloud)
        if not placed.deployed and not await self._deploy(placed, cloud):
            return _IDLE_S if placed.unsupported else placed.deploying.at - self._clock()
        if placed.asked not in (None, placed.scale.replicas) and placed.scaling.due(self._clock()):
            await self._scale(placed, cloud)
        if self._clock() >= placed.next_check:
            await self._check(placed, cloud)
        await self._try_again(placed)
        return self._pause(placed)

    async def _deploy(self, placed: Placed, cloud: CloudTarget) -> bool:
        if placed.unsupported or not placed.deploying.due(self._clock()):
            return False
        model = placed.model
        try:
            await bounded(cloud.deploy(model), self._timing.deploy_s, "the deployment")
        except TargetError as error:
            self._failed(placed, error)
            placed.unsupported = error.fault is Fault.UNSUPPORTED
            placed.deploying.failed(self._clock(), error.retry_after_s)
            return False
        if placed.model is not model or placed.owner.cloud is not cloud:
            return False  # There is another one by now.
        placed.deployed = True
        placed.deploying.worked()
        placed.failure = placed.reason = ""
        placed.asked = None
        placed.next_check = -math.inf
        if placed.warming_since is not None:
            placed.warming_since = self._clock()
        return True

    async def _scale(self, placed: Placed, cloud: CloudTarget) -> None:
        replicas = placed.scale.replicas
        try:
            await bounded(
                cloud.scale(placed.model.key, replicas), self._timing.call_s, "the scaling"
            )
        except TargetError as error:
            self._failed(placed, error)
            if error.fault is Fault.QUOTA:
                placed.quota = placed.running
            placed.scaling.failed(self._clock(), error.retry_after_s)
            return
        placed.scaling.worked()
        placed.quota = None
        placed.asked, placed.asked_at = replicas, self._clock()
        placed.next_check = self._clock()

    async def _check(self, placed: Placed, cloud: CloudTarget) -> None:
        try:
            health = await bounded(
                cloud.health(placed.model.key), self._timing.call_s, "the health check"
            )
        except TargetError as error:
            self._failed(placed, error)
            placed.reason = str(error)
            placed.checking.failed(self._clock(), error.retry_after_s)
            placed.next_check = placed.checking.at
            return
        now = self._clock()
        placed.checking.worked()
        placed.owner.refused = ""
        placed.reason = health.reason
        placed.running = max(health.ready, health.wanted)
        self._adopt(placed, health, now)
        if health.ready and not placed.healthy:
            placed.breaker.succeeded()  # These are new ones.
            await self._warm_up(placed)
        elif not placed.running and now >= placed.breaker.until:
            placed.breaker.succeeded()  # Nothing is left that failed.
        placed.healthy = health.ready
        placed.ready = health.ready
        self._wait_for_warmth(placed, now)
        placed.next_check = self._clock() + self._until_next(placed)

    def _adopt(self, placed: Placed, health: Health, now: float) -> None:
        """Take over what runs there already, and notice what somebody else changed."""
        if placed.asked is None:
            placed.asked, placed.asked_at = health.wanted, now
            if health.wanted > placed.scale.replicas:
                placed.scale = Scale(health.wanted, now, now)
        elif health.wanted < placed.asked and now - placed.asked_at > self._timing.drift_s:
            placed.asked = health.wanted

    def _wait_for_warmth(self, placed: Placed, now: float) -> None:
        """Give up on replicas that do not get ready, since they cost; try again later."""
        since, patience_s = placed.warming_since, self._timing.patience_s
        if placed.ready:
            placed.warming.worked()
        elif since is not None and now - since > patience_s:
            placed.failure = placed.reason or f"no replica was ready within {patience_s:.0f} s"
            placed.warming.failed(now)
            placed.warming_since = None
            placed.scale = Scale()

    async def _try_again(self, placed: Placed) -> None:
        """A request of our own, so that no client's is the probe of an ejected target, and that
        under pressure the figures are fresh."""
        now = self._clock()
        if not placed.ready or placed.in_flight or placed.owner.refused:
            return
        level = self._pool.pressure(placed.model.key, now).level
        stale = level is not Level.CALM and now - placed.learner.seen_at > self._timing.stale_s
        half_open = placed.breaker.until > 0 and placed.breaker.admits(now)
        if half_open or (stale and placed.breaker.admits(now)):
            await self._ask(placed, 1, learn=True)

    async def _warm_up(self, placed: Placed) -> None:
        """The first requests to new replicas: the first is slow, the last ones at once tell how
        much one bears."""
        largest = min(placed.model.max_batch, 4)
        rounds = [(1, 1, False), *[(1, 1, True)] * 4, (1, 4, True)]
        if largest > 1:
            rounds.insert(-1, (largest, 1, True))
        for items, at_once, learn in rounds:
            asked = [self._ask(placed, items, learn=learn) for _ in range(at_once)]
            if not all(await asyncio.gather(*asked)):
                return

    async def _ask(self, placed: Placed, items: int, *, learn: bool) -> bool:
        request = blank_request(placed.model, items, placed.shapes)
        if request is None:
            return False
        deadline = self._clock() + self._timing.warm_up_s
        try:
            await self._pool.ask(placed, request, items, deadline, learn=learn, own=True)
        except TargetError:
            return False  # The pool has noted it.
        return True

    async def _leave(self, placed: Placed, cloud: CloudTarget) -> float:
        if not placed.deploying.due(self._clock()):
            return placed.deploying.at - self._clock()
        try:
            await bounded(cloud.remove(placed.model.key), self._timing.deploy_s, "the removal")
        except TargetError as error:
            self._failed(placed, error)
            placed.reason = str(error)
            placed.deploying.failed(self._clock(), error.retry_after_s)
            parted = self._pool.targets.get(placed.owner.settings.name) is not placed.owner
            if parted and placed.deploying.attempts >= self._timing.removals:
                log.warning(
                    "a model stays on a removed target",
                    target=placed.owner.settings.name,
                    model=":".join(placed.model.key),
                    reason=str(error),
                )
                placed.gone = True
            return placed.deploying.at - self._clock()
        if placed.leaving:
            placed.gone = True
        return 0.0

    @staticmethod
    def _failed(placed: Placed, error: TargetError) -> None:
        placed.failure = str(error)
        if error.fault is Fault.CREDENTIALS:
            placed.owner.refused = str(error)
        elif error.fault is Fault.NOT_DEPLOYED:
            placed.deployed = False
            placed.ready = placed.healthy = placed.running = 0

    def _until_next(self, placed: Placed) -> float:
        t, replicas = self._timing, placed.scale.replicas
        if not placed.ready:
            return t.warming_s if replicas else t.cold_s
        return t.ready_s if placed.ready == replicas else t.growing_s

    def _pause(self, placed: Placed) -> float:
        now = self._clock()
        if not placed.deployed:
            return placed.deploying.at - now
        pause = placed.next_check - now
        if placed.asked not in (None, placed.scale.replicas):
            pause = min(pause, placed.scaling.at - now)
        if placed.breaker.until > now:
            pause = min(pause, placed.breaker.until - now)
        return pause
