"""Keeps the plans of sharded deployments: made, wired, switched, mended.

The controller of deployments calls `step` whenever something changed, publishes what `loads`
asks of devices, and lists what `replicas` offers to the gateway. A plan is replaced only by one
that is ready; where a device goes, a fallback that is wired already takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from itertools import chain

import structlog

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.measured import Measurements
from shoal_controlplane.devices.live import Device, LiveFleet
from shoal_controlplane.errors import DomainError, InvalidError
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.gateway.table import Pipeline, Replica
from shoal_controlplane.planner.snapshot import ModelKey, memory_estimate
from shoal_controlplane.plans.active import ActivePlan, PlanState
from shoal_controlplane.plans.entry import Entry, asked
from shoal_controlplane.plans.measuring import measured_parts
from shoal_controlplane.plans.parts import Parts
from shoal_controlplane.plans.shaping import Shaper
from shoal_controlplane.plans.shown import shown
from shoal_controlplane.plans.store import PlanStore
from shoal_controlplane.plans.switching import (
    AVOID_S,
    LOADING_S,
    RETRY_S,
    SETTLE_S,
    Switcher,
    cancel,
)
from shoal_controlplane.plans.wiring import Load, RoleKey, loads, replica
from shoal_shared.clock import Clock
from shoal_shared.messages import Desired

log = structlog.get_logger("plans")

EPOCH_GAP = 1000
"""After a restart: what was wired but not stored yet must not be met again."""


class PlanKeeper:
    """All sharded deployments. Everything happens on the event loop."""

    def __init__(
        self,
        store: PlanStore,
        parts: Parts,
        shaper: Shaper,
        fleet: LiveFleet,
        measured: Measurements,
        events: EventLog,
        clock: Clock,
        wall: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._parts = parts
        self._shaper = shaper
        self._fleet = fleet
        self._measured = measured
        self._clock = clock
        self._wall = wall
        self._wake = wake
        self._entries: dict[str, Entry] = {}
        self._wired: dict[tuple[str, RoleKey], int] = {}
        self._epochs: dict[str, int] = {}
        self._deployed: Set[str] = frozenset()
        self._switcher = Switcher(store, fleet, self._wired, events, clock, wall)

    async def start(self, deployments: Iterable[Deployment], goals: Mapping[str, Desired]) -> None:
        """Go on with the plans that were made before; `goals` are those of the devices."""
        await self._store.load()
        for device, goal in goals.items():
            self.goal_set(device, goal)
        now = self._clock()
        for deployment in deployments:
            if deployment.name in self._store.plans and deployment.shards is not None:
                self._entries[deployment.name] = self._begin(deployment, now)
        self._fleet.listen(self._fleet_changed)

    @property
    def keys(self) -> set[ModelKey]:
        """Models that plans are of: that of the version before, too, until the next is ready."""
        return {plan.key for entry in self._entries.values() for plan in entry.plans}

    async def stop(self) -> None:
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self, deployments: Iterable[Deployment]) -> None:
        """Bring the plans in step with deployments and devices once."""
        everything = {d.name: d for d in deployments}
        wanted = {name: d for name, d in everything.items() if d.shards is not None}
        for name in self._entries.keys() - wanted.keys():
            await self._end(name)
        now = self._clock()
        if self._deployed - everything.keys():
            self._retry_what_waits(now)
        self._deployed = everything.keys()
        for name, deployment in wanted.items():
            entry = self._entries.get(name)
            if entry is not None and entry.deployment.created_at != deployment.created_at:
                await self._end(name)  # It is another one of the same name.
                entry = None
            if entry is None:
                entry = self._entries[name] = self._begin(deployment, now)
            elif asked(entry.deployment) != asked(deployment):
                await cancel(entry)
                entry.candidate = None
                entry.again, entry.retry_at = True, now
            entry.deployment = deployment
            await self._switcher.advance(entry, now)
            if self._is_due(entry) and entry.retry_at <= now:
                entry.again = False
                entry.task = asyncio.create_task(self._shape(entry))

    def due_in(self, now: float) -> float | None:
        """Seconds until something is to be done by the mere passing of time."""
        due: list[float] = []
        for entry in self._entries.values():
            if self._is_due(entry):
                due.append(entry.retry_at - now)
            if entry.unready_since is not None:
                due.append(entry.unready_since + LOADING_S - now)
            if entry.draining is not None:
                due.append(entry.drained_at - now)
            if entry.candidate is not None:
                due.append(entry.loading_since + LOADING_S - now)
        return max(0.0, min(due)) if due else None

    def loads(self) -> dict[str, Load]:
        """What devices are asked for, jobs of measuring among it."""
        entries = self._entries
        # In the order in which they are kept where a goal cannot name them all.
        plans = chain(
            (entry.plan for entry in entries.values()),
            (entry.candidate for entry in entries.values()),
            (entry.draining for entry in entries.values()),
        )
        found = loads(
            (plan for plan in plans if plan is not None),
            lambda name: (
                entries[name].deployment.options,
                entries[name].deployment.require_accelerator,
            ),
        )
        for entry in entries.values():
            for device, goals in entry.jobs.items():
                load = found.setdefault(device, Load())
                for goal in goals:
                    load.add(goal, memory_estimate(goal.size))
        return found

    def goal_set(self, device: str, goal: Desired) -> None:
        """A device has a new goal: its epochs may be used once the device has seen it."""
        wired = {(device, (role.plan, role.epoch)) for role in goal.roles}
        for key in [key for key in self._wired if key[0] == device and key not in wired]:
            del self._wired[key]
        for key in wired:
            self._wired.setdefault(key, goal.goal)
        for role in goal.roles:
            self._epochs[role.plan] = max(role.epoch, self._epochs.get(role.plan, 0))

    def reserved(self) -> dict[str, int]:
        """Memory that plans take, by device: what was measured, else what is thought."""
        found: dict[str, int] = {}
        for name, load in self.loads().items():
            device = self._fleet.get(name)
            reports = (
                {(r.model, r.version): r.memory_bytes for r in device.replicas} if device else {}
            )
            found[name] = sum(max(reports.get(key, 0), need) for key, need in load.memory.items())
        return found

    def replicas(self) -> dict[ModelKey, list[Replica]]:
        """Epochs that are ready, by model: the current one first, then those that take over."""
        found: dict[ModelKey, list[Replica]] = {}
        for entry in self._entries.values():
            for plan in (entry.plan, entry.draining):
                if plan is not None:
                    found.setdefault(plan.key, []).extend(
                        replica(plan, wiring) for wiring in self._switcher.ready(entry, plan)
                    )
        return found

    @property
    def has_parts(self) -> bool:
        """Whether any model was cut."""
        return bool(self._store.digests())

    async def keep_parts(self, model_digests: Collection[str]) -> set[str]:
        """Drop the parts of all other models; the digests of those that are left."""
        await self._parts.keep(model_digests)
        return self._store.digests()

    def abandoned(self, pipeline: Pipeline, device: str, reason: str) -> None:
        """The gateway uses an epoch no more, and so no other one with that device is to be used."""
        entry = self._entries.get(pipeline.plan)
        if entry is None:
            return
        entry.abandoned.add(pipeline.epoch)
        for plan in entry.plans:
            entry.abandoned |= {w.epoch for w in plan.wirings if device in w.members}
        log.info("epoch abandoned", plan=pipeline.plan, epoch=pipeline.epoch, reason=reason)
        known = self._fleet.get(device)
        if known is not None and known.online:
            entry.avoid[device] = self._clock() + AVOID_S
            self._switcher.tell_once(entry, "plan.avoids", f"avoids {device}: {reason}", device)
        entry.again, entry.retry_at = True, self._clock()
        self._wake()

    def reconsider(self, name: str) -> None:
        """Compare a plan with what is possible now: its links may have become slower."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.again, entry.retry_at = True, self._clock()
            self._wake()

    def entry(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def active(self) -> list[ActivePlan]:
        """All plans, for people."""
        return [shown(entry, self._fleet.get) for entry in self._entries.values()]

    def find(self, name: str) -> ActivePlan | None:
        """One plan, for people."""
        entry = self._entries.get(name)
        return shown(entry, self._fleet.get) if entry is not None else None

    def _begin(self, deployment: Deployment, now: float) -> Entry:
        plan = self._store.plans.get(deployment.name)
        entry = Entry(deployment, plan=plan, since=self._wall(), retry_at=now)
        last = self._epochs.get(deployment.name, 0)
        if plan is not None:
            last = max(last, plan.last_epoch)
            entry.state = PlanState.LOADING
            entry.again = not entry.is_current
            entry.up = True  # What was so at the start is not news.
        entry.epoch = last + EPOCH_GAP if last else 0
        return entry

    async def _end(self, name: str) -> None:
        entry = self._entries.pop(name)
        await cancel(entry)
        self._epochs[name] = entry.epoch
        await self._store.delete(name)

    def _retry_what_waits(self, now: float) -> None:
        """A deployment is gone, and its memory with it: who has no plan may have one now."""
        for entry in self._entries.values():
            if entry.again and not self._switcher.serves(entry):
                entry.retry_at = min(entry.retry_at, now)

    def _is_due(self, entry: Entry) -> bool:
        """Whether a plan is to be made, and none is on its way."""
        waiting = entry.unready_since is not None and entry.is_current
        loading = entry.candidate is not None or waiting
        return entry.again and entry.task is None and not loading

    async def _shape(self, entry: Entry) -> None:
        """Make a candidate, in the background."""
        serving = self._switcher.serves(entry)
        try:
            await self._shaper.shape(entry, serving)
            entry.unmet = ""
            if entry.candidate is None:
                entry.degraded = ""  # It is as good as the fleet allows.
        except InvalidError as error:
            self._unshaped(entry, str(error), serving, PlanState.FAILED)
        except DomainError as error:
            self._unshaped(entry, str(error), serving, PlanState.PENDING)
        except Exception:
            # One plan that cannot be made must not end the others: in full into the log.
            log.exception("planning failed", deployment=entry.deployment.name)
            reason = "planning failed: see the log of the control plane"
            self._unshaped(entry, reason, serving, PlanState.PENDING)
        finally:
            entry.task = None
            self._wake()

    def _unshaped(self, entry: Entry, reason: str, serving: bool, state: PlanState) -> None:
        """There is no plan to be had. It is tried again, but where that cannot help: not before
        something changes."""
        if state is not PlanState.FAILED:
            entry.again, entry.retry_at = True, self._clock() + RETRY_S
        reason = reason.rstrip(".")
        if not serving:
            entry.turn(state, self._wall(), reason)
            self._switcher.tell_once(entry, "plan.pending", f"cannot be made: {reason}")
        elif reason != entry.unmet:
            entry.unmet = reason
            log.warning("no new plan", deployment=entry.deployment.name, reason=reason)

    def _fleet_changed(self, before: Device | None, after: Device | None) -> None:
        if after is not None and (before is None or before.reported is not after.reported):
            self._note_measured(after)
        gone = after is None and before is not None and before.id
        for key in [key for key in self._wired if key[0] == gone]:
            del self._wired[key]
        if _counts(before) != _counts(after):
            now = self._clock()
            for entry in self._entries.values():
                entry.again = True
                entry.retry_at = now + SETTLE_S if entry.state is PlanState.READY else now
            self._wake()

    def _note_measured(self, device: Device) -> None:
        """Keep what a device measured of parts; a plan whose stages turn out to take other times
        than was thought is compared with what is possible now."""
        entries = self._entries.values()
        held = {
            part.digest: entry for entry in entries for plan in entry.plans for part in plan.parts
        }
        for measured in measured_parts(device, self._store.digests() | held.keys()):
            entry = held.get(measured.digest)
            if self._measured.note(measured) and entry is not None and entry.plan is not None:
                entry.again = True
                entry.retry_at = max(entry.retry_at, self._clock() + SETTLE_S)


def _counts(device: Device | None) -> tuple[object, ...]:
    """What of a device may make another plan better."""
    if device is None:
        return ()
    return (device.online, device.cordoned, device.capabilities, device.slowed, device.boot_id)
