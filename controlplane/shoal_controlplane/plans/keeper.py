"""Keeps the plans of sharded deployments: made, wired, switched, mended.

The controller of deployments calls `step` whenever something changed, publishes what `loads`
asks of devices, and lists what `replicas` offers to the gateway. A plan is replaced only by one
that is ready; where a device goes, a fallback that is wired already takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

import structlog
from msgspec.structs import replace

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.measured import Measurements
from shoal_controlplane.devices.live import Device, LiveFleet
from shoal_controlplane.errors import DomainError
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.gateway.table import Pipeline, Replica
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.plans.active import ActivePlan, PlanState
from shoal_controlplane.plans.entry import Entry, asked_anew
from shoal_controlplane.plans.measuring import measured_parts
from shoal_controlplane.plans.parts import Parts
from shoal_controlplane.plans.plan import Plan, Wiring
from shoal_controlplane.plans.shaping import Shaper
from shoal_controlplane.plans.shown import shown
from shoal_controlplane.plans.store import PlanStore
from shoal_controlplane.plans.wiring import Load, RoleKey, is_ready, loads, replica, stage_report
from shoal_shared.clock import Clock
from shoal_shared.messages import Desired
from shoal_shared.status import ReplicaState

log = structlog.get_logger("plans")

RETRY_S = 5.0
"""After a plan could not be made; a change of the fleet has it tried at once."""
SETTLE_S = 2.0
"""After a change of the fleet, before a plan that works is compared with a new one."""
AVOID_S = 120.0
"""How long a device that failed a plan is left out of the next ones."""
LOADING_S = 120.0
"""For a candidate to become ready."""
DRAIN_S = 5.0
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
        self._events = events
        self._clock = clock
        self._wall = wall
        self._wake = wake
        self._entries: dict[str, Entry] = {}
        self._wired: dict[tuple[str, RoleKey], int] = {}

    async def start(self) -> None:
        """Load the plans that were made before."""
        await self._store.load()
        self._fleet.listen(self._fleet_changed)

    async def stop(self) -> None:
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self, deployments: Iterable[Deployment]) -> None:
        """Bring the plans in step with deployments and devices once."""
        wanted = {d.name: d for d in deployments if d.shards is not None}
        for name in self._entries.keys() - wanted.keys():
            await self._end(name)
        now = self._clock()
        for name, deployment in wanted.items():
            entry = self._entries.get(name)
            if entry is None:
                entry = self._entries[name] = self._begin(deployment, now)
            elif asked_anew(entry.deployment, deployment):
                entry.again, entry.retry_at = True, now
            entry.deployment = deployment
            await self._advance(entry, now)
            if entry.again and entry.retry_at <= now and entry.task is None:
                entry.again = False
                entry.task = asyncio.create_task(self._shape(entry))

    def due_in(self, now: float) -> float | None:
        """Seconds until something is to be done by the mere passing of time."""
        due: list[float] = []
        for entry in self._entries.values():
            if entry.again and entry.task is None:
                due.append(entry.retry_at - now)
            if entry.draining is not None:
                due.append(entry.drained_at - now)
            if entry.candidate is not None:
                due.append(entry.loading_since + LOADING_S - now)
        return max(0.0, min(due)) if due else None

    def loads(self) -> dict[str, Load]:
        """What devices are asked for, jobs of measuring among it."""
        entries = self._entries
        found = loads(
            (plan for entry in entries.values() for plan in entry.plans),
            lambda name: (
                entries[name].deployment.options,
                entries[name].deployment.require_accelerator,
            ),
        )
        for entry in entries.values():
            for device, goals in entry.jobs.items():
                load = found.setdefault(device, Load())
                for goal in goals:
                    load.models.setdefault((goal.model, goal.version), goal)
        return found

    def goal_set(self, device: str, goal: Desired) -> None:
        """A device has a new goal: its epochs may be used once the device has seen it."""
        wired = {(device, (role.plan, role.epoch)) for role in goal.roles}
        for key in [key for key in self._wired if key[0] == device and key not in wired]:
            del self._wired[key]
        for key in wired:
            self._wired.setdefault(key, goal.goal)

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
                        replica(plan, wiring) for wiring in self._ready(entry, plan)
                    )
        return found

    async def keep_parts(self, model_digests: Collection[str]) -> set[str]:
        """Drop the parts of all other models; the digests of those that are left."""
        await self._parts.keep(model_digests)
        return self._store.digests()

    def abandoned(self, pipeline: Pipeline, device: str, reason: str) -> None:
        """The gateway uses an epoch no more."""
        entry = self._entries.get(pipeline.plan)
        if entry is None:
            return
        entry.abandoned.add(pipeline.epoch)
        known = self._fleet.get(device)
        if known is not None and known.online:
            entry.avoid[device] = self._clock() + AVOID_S
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
        if plan is not None:
            entry.epoch = plan.last_epoch + EPOCH_GAP
            entry.state = PlanState.LOADING
            entry.again = False
            entry.loading_since = now
        return entry

    async def _end(self, name: str) -> None:
        entry = self._entries.pop(name)
        if entry.task is not None:
            entry.task.cancel()
            await asyncio.gather(entry.task, return_exceptions=True)
        await self._store.delete(name)

    async def _shape(self, entry: Entry) -> None:
        """Make a candidate, in the background."""
        serving = self._serves(entry)
        try:
            await self._shaper.shape(entry, serving)
        except DomainError as error:
            self._unshaped(entry, str(error), serving)
        except Exception:
            # One plan that cannot be made must not end the others: in full into the log.
            log.exception("planning failed", deployment=entry.deployment.name)
            self._unshaped(entry, "planning failed: see the log of the control plane", serving)
        finally:
            entry.task = None
            self._wake()

    def _unshaped(self, entry: Entry, reason: str, serving: bool) -> None:
        now = self._clock()
        entry.again, entry.retry_at = True, now + RETRY_S
        if serving:
            log.warning("no new plan", deployment=entry.deployment.name, reason=reason)
        else:
            entry.turn(PlanState.PENDING, self._wall(), reason.rstrip("."))
            if entry.told != "plan.pending":
                self._tell(entry, "plan.pending", f"cannot be made: {entry.reason}")

    async def _advance(self, entry: Entry, now: float) -> None:
        """Switch epochs and plans as devices come, go and get ready."""
        if entry.draining is not None and now >= entry.drained_at:
            entry.draining = None
        for plan in entry.plans:
            self._abandon_broken(entry, plan)
        if entry.candidate is not None:
            await self._try_candidate(entry, entry.candidate, now)
        if entry.plan is None:
            return
        ready = self._ready(entry, entry.plan)
        current = entry.plan.current
        if current in ready:
            entry.turn(PlanState.READY, self._wall())
            if entry.told in ("", "plan.pending", "plan.lost"):
                self._tell(entry, "plan.ready", f"is ready in epoch {current.epoch}")
        elif current.epoch in entry.abandoned:
            if ready:
                await self._fall_back(entry, entry.plan, ready[0], now)
            elif entry.told != "plan.lost":
                entry.turn(PlanState.DEGRADED, self._wall(), "requests wait for a new plan")
                self._tell(entry, "plan.lost", "serves nothing until there is a new one")
                entry.again, entry.retry_at = True, now

    def _abandon_broken(self, entry: Entry, plan: Plan) -> None:
        """An epoch that has served, or could, is lost once one of its devices is gone."""
        for wiring in plan.wirings:
            if wiring.epoch in entry.abandoned:
                continue
            gone = [name for name in sorted(wiring.members) if not self._is_there(name)]
            if gone and (plan is not entry.candidate or wiring is plan.current):
                entry.abandoned.add(wiring.epoch)
                entry.again, entry.retry_at = True, self._clock()

    def _is_there(self, name: str) -> bool:
        device = self._fleet.get(name)
        return device is not None and device.online and not device.cordoned

    async def _try_candidate(self, entry: Entry, candidate: Plan, now: float) -> None:
        failed = self._failure(candidate)
        if failed is not None or candidate.current.epoch in entry.abandoned:
            entry.candidate = None
            if failed is not None:
                device, reason = failed
                entry.avoid[device] = now + AVOID_S
                self._tell(entry, "plan.failed", f"could not load on {device}: {reason}")
            entry.again, entry.retry_at = True, now
        elif is_ready(candidate, candidate.current, self._fleet.get, self._wired):
            before = entry.plan
            await self._store.put(candidate)
            entry.plan, entry.candidate = candidate, None
            entry.abandoned = {e for e in entry.abandoned if e >= candidate.current.epoch}
            if before is not None:
                entry.draining, entry.drained_at = before, now + DRAIN_S
                entry.turn(PlanState.READY, self._wall())
                self._tell(entry, "plan.changed", f"switched to epoch {candidate.current.epoch}")
        elif now - entry.loading_since > LOADING_S:
            late = [n for n in sorted(candidate.current.members) if not self._has(candidate, n)]
            entry.avoid |= dict.fromkeys(late, now + AVOID_S)
            entry.candidate = None
            entry.again, entry.retry_at = True, now
        elif entry.plan is None or not self._serves(entry):
            entry.turn(PlanState.LOADING, self._wall(), _loading(candidate, self._has))

    def _failure(self, plan: Plan) -> tuple[str, str] | None:
        """A device of the current epoch that cannot load its stage, and why."""
        for stage, devices in enumerate(plan.current.devices):
            for name in devices:
                device = self._fleet.get(name)
                report = stage_report(plan, stage, device) if device is not None else None
                if report is not None and report.state is ReplicaState.FAILED:
                    return name, report.reason
        return None

    def _has(self, plan: Plan, name: str) -> bool:
        """Whether a device has loaded what the current epoch asks of it."""
        device = self._fleet.get(name)
        if device is None:
            return False
        reports = (
            stage_report(plan, stage, device)
            for stage, devices in enumerate(plan.current.devices)
            if name in devices
        )
        return all(r is not None and r.state is ReplicaState.READY for r in reports)

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
        reason = f"{', '.join(lost)} lost: epoch {wiring.epoch} took over" if lost else ""
        entry.turn(PlanState.READY, self._wall())
        self._tell(entry, "plan.degraded", reason or f"went on in epoch {wiring.epoch}")
        entry.again, entry.retry_at = True, now + SETTLE_S

    def _serves(self, entry: Entry) -> bool:
        return entry.plan is not None and bool(self._ready(entry, entry.plan))

    def _ready(self, entry: Entry, plan: Plan) -> list[Wiring]:
        """Epochs of a plan that the gateway may use, in the order in which it does."""
        return [
            wiring
            for wiring in entry.usable(plan)
            if is_ready(plan, wiring, self._fleet.get, self._wired)
        ]

    def _fleet_changed(self, before: Device | None, after: Device | None) -> None:
        if after is not None and (before is None or before.reported is not after.reported):
            held = {
                p.digest for e in self._entries.values() for plan in e.plans for p in plan.parts
            }
            for measured in measured_parts(after, self._store.digests() | held):
                self._measured.note(measured)
        if _counts(before) != _counts(after):
            now = self._clock()
            for entry in self._entries.values():
                entry.again = True
                entry.retry_at = now + SETTLE_S if entry.state is PlanState.READY else now
            self._wake()

    def _tell(self, entry: Entry, kind: str, what: str) -> None:
        name, entry.told = entry.deployment.name, kind
        self._events.append(kind, name, f"The plan of deployment {name} {what}.", {})


def _counts(device: Device | None) -> tuple[object, ...]:
    """What of a device may make another plan better."""
    if device is None:
        return ()
    return (device.online, device.cordoned, device.capabilities, device.slowed, device.boot_id)


def _loading(plan: Plan, has: Callable[[Plan, str], bool]) -> str:
    missing = [name for name in sorted(plan.current.members) if not has(plan, name)]
    return f"{', '.join(missing)} load their stages" if missing else ""
