"""Epochs and plans of one deployment as devices come, go and get ready: switch, fall back, tell."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from msgspec.structs import replace

from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.entry import Entry
from shoal_controlplane.plans.plan import Plan, Wiring
from shoal_controlplane.plans.store import PlanStore
from shoal_controlplane.plans.wiring import RoleKey, is_ready, lacking, stage_report
from shoal_shared.clock import Clock
from shoal_shared.status import ReplicaState

RETRY_S = 5.0
"""After a plan could not be made; a change of the fleet has it tried at once."""
SETTLE_S = 2.0
"""After a change of the fleet, before a plan that works is compared with a new one."""
AVOID_S = 120.0
"""How long a device that failed a plan is left out of the next ones."""
LOADING_S = 120.0
"""For a plan to become ready."""
DRAIN_S = 5.0
"""For a plan that was replaced to answer what is under way."""


class Switcher:
    """Decides which epochs of an entry are used.

    `wired` has the numbers of the goals with which devices were told of epochs.
    """

    def __init__(
        self,
        store: PlanStore,
        fleet: LiveFleet,
        wired: Mapping[tuple[str, RoleKey], int],
        events: EventLog,
        clock: Clock,
        wall: Clock,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._wired = wired
        self._events = events
        self._clock = clock
        self._wall = wall

    async def advance(self, entry: Entry, now: float) -> None:
        """Switch epochs and plans as devices come, go and get ready."""
        if entry.draining is not None and now >= entry.drained_at:
            entry.draining = None
        for plan in entry.plans:
            self._abandon_broken(entry, plan)
        if entry.candidate is not None:
            await self._try_candidate(entry, entry.candidate, now)
        if entry.plan is None:
            return
        ready = self.ready(entry, entry.plan)
        if ready and entry.plan.current.epoch in entry.abandoned:
            await self._fall_back(entry, entry.plan, ready[0], now)
        entry.unready_since = None if ready else self._unready_since(entry, entry.plan, now)
        if ready:
            state = PlanState.DEGRADED if entry.degraded else PlanState.READY
            reason = entry.unmet if not entry.is_current else entry.degraded
            entry.turn(state, self._wall(), reason)
            if not entry.up:
                self._tell_service(entry, "plan.ready", f"is ready in epoch {ready[0].epoch}")
        elif entry.plan.current.epoch in entry.abandoned and entry.up:
            entry.up, entry.degraded = False, ""
            entry.turn(PlanState.DEGRADED, self._wall(), "requests wait for a new plan")
            self._tell(entry, "plan.lost", "serves nothing until there is a new one")
            # What was to replace a plan that serves may take its time to measure.
            await cancel(entry)
            entry.again, entry.retry_at = True, now

    def _unready_since(self, entry: Entry, plan: Plan, now: float) -> float | None:
        """Since when a plan is loaded anew; one that takes too long is given up."""
        if plan.current.epoch in entry.abandoned:
            return None
        since = now if entry.unready_since is None else entry.unready_since
        late = lacking(plan, plan.current, self._fleet.get, self._wired)
        if now - since < LOADING_S:
            if entry.candidate is None and entry.task is None:
                entry.turn(PlanState.LOADING, self._wall(), _loading(late))
            return since
        self._give_up(entry, plan, late, now)
        return None

    def _give_up(self, entry: Entry, plan: Plan, late: Collection[str], now: float) -> None:
        """Use no epoch of a plan that cannot be loaded on devices, and try without those."""
        entry.abandoned |= {w.epoch for w in plan.wirings if w.members & set(late)}
        # If there was no way around such a device the last time, there is hardly one now.
        wait = RETRY_S if entry.avoided(now) & set(late) else 0.0
        entry.avoid |= dict.fromkeys(late, now + AVOID_S)
        entry.again, entry.retry_at = True, now + wait

    def _abandon_broken(self, entry: Entry, plan: Plan) -> None:
        """An epoch that has served, or could, is lost once one of its devices is gone, or has lost
        its stage for good."""
        for wiring in plan.wirings:
            if wiring.epoch in entry.abandoned:
                continue
            if not all(map(self._is_there, wiring.members)):
                entry.abandoned.add(wiring.epoch)
                if plan is not entry.draining:
                    entry.again, entry.retry_at = True, self._clock()
        failed = self._failure(plan) if plan is entry.plan else None
        if failed is not None and plan.current.epoch not in entry.abandoned:
            self._tell_failure(entry, *failed)
            self._give_up(entry, plan, failed[:1], self._clock())

    def _is_there(self, name: str) -> bool:
        device = self._fleet.get(name)
        return device is not None and device.online and not device.cordoned

    async def _try_candidate(self, entry: Entry, candidate: Plan, now: float) -> None:
        late = lacking(candidate, candidate.current, self._fleet.get, self._wired)
        failed = self._failure(candidate)
        if candidate.current.epoch in entry.abandoned:
            entry.candidate = None
            entry.again, entry.retry_at = True, now
        elif failed is not None:
            entry.candidate = None
            self._tell_failure(entry, *failed)
            self._give_up(entry, candidate, failed[:1], now)
        elif not late:
            await self._switch(entry, candidate, now)
        elif now - entry.loading_since >= LOADING_S:
            entry.candidate = None
            self.tell_once(entry, "plan.failed", f"took too long to load on {', '.join(late)}")
            self._give_up(entry, candidate, late, now)
        elif not self.serves(entry):
            entry.turn(PlanState.LOADING, self._wall(), _loading(late))

    async def _switch(self, entry: Entry, candidate: Plan, now: float) -> None:
        """Make before break: what served until now answers what is under way."""
        before = entry.plan
        await self._store.put(candidate)
        entry.plan, entry.candidate, entry.draining = candidate, None, before
        entry.drained_at = now + DRAIN_S
        entry.degraded = ""
        entry.abandoned &= {wiring.epoch for plan in entry.plans for wiring in plan.wirings}
        if entry.up and before is not None:
            what = f"switched to epoch {candidate.current.epoch}"
            self._tell_service(entry, "plan.changed", what)

    def _failure(self, plan: Plan) -> tuple[str, str] | None:
        """A device of the current epoch that cannot load its stage, and why."""
        for stage, devices in enumerate(plan.current.devices):
            for name in devices:
                device = self._fleet.get(name)
                wired = self._wired.get((name, (plan.name, plan.current.epoch)))
                if device is None or wired is None or device.goal_seen < wired:
                    continue  # What it says is of another time.
                report = stage_report(plan, stage, device)
                if report is not None and report.state is ReplicaState.FAILED:
                    return name, report.reason
        return None

    async def _fall_back(self, entry: Entry, plan: Plan, wiring: Wiring, now: float) -> None:
        """Make an epoch that was wired ahead the current one."""
        lost = sorted(plan.current.members - wiring.members)
        left = {
            device: other
            for device, other in plan.fallbacks.items()
            if other.epoch > wiring.epoch and other.epoch not in entry.abandoned
        }
        entry.plan = replace(plan, current=wiring, fallbacks=left)
        entry.partition = None
        await self._store.put(entry.plan)
        names = ", ".join(lost)
        entry.degraded = f"{names} lost: epoch {wiring.epoch} took over"
        self._tell_service(entry, "plan.degraded", f"lost {names}: epoch {wiring.epoch} took over")
        entry.again, entry.retry_at = True, now + SETTLE_S

    def serves(self, entry: Entry) -> bool:
        return entry.plan is not None and bool(self.ready(entry, entry.plan))

    def ready(self, entry: Entry, plan: Plan) -> list[Wiring]:
        """Epochs of a plan that the gateway may use, in the order in which it does."""
        return [
            wiring
            for wiring in entry.usable(plan)
            if is_ready(plan, wiring, self._fleet.get, self._wired)
        ]

    def _tell_failure(self, entry: Entry, device: str, reason: str) -> None:
        self.tell_once(entry, "plan.failed", f"could not load on {device}: {reason}", device)

    def _tell_service(self, entry: Entry, kind: str, what: str) -> None:
        """Tell that requests flow: what stood in their way is over."""
        entry.up = True
        entry.told.clear()
        self._tell(entry, kind, what)

    def tell_once(self, entry: Entry, kind: str, what: str, of: str = "") -> None:
        """Tell what is tried again and again only once until requests flow."""
        if f"{kind} {of}" not in entry.told:
            entry.told.add(f"{kind} {of}")
            self._tell(entry, kind, what)

    def _tell(self, entry: Entry, kind: str, what: str) -> None:
        name = entry.deployment.name
        self._events.append(kind, name, f"The plan of deployment {name} {what.rstrip('.')}.", {})


async def cancel(entry: Entry) -> None:
    """End the making of a plan, if one is under way."""
    if entry.task is not None:
        entry.task.cancel()
        await asyncio.gather(entry.task, return_exceptions=True)
        entry.task = None


def _loading(late: Collection[str]) -> str:
    verb = "loads its stage" if len(late) == 1 else "load their stages"
    return f"{', '.join(sorted(late))} {verb}"
