"""The loop from what changed to where models run: snapshot, placement, goals, serving table."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.goals import (
    files,
    models_by_device,
    next_goal,
    with_plans,
)
from shoal_controlplane.deployments.measured import measured_by
from shoal_controlplane.deployments.picture import assigned_bytes, served_models, snapshot
from shoal_controlplane.deployments.status import Summary, summarise, summarise_plan
from shoal_controlplane.deployments.store import DeploymentStore
from shoal_controlplane.devices.live import Device, LiveFleet
from shoal_controlplane.errors import NotFoundError
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.gateway.table import ServedModel, ServingTable
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.placement import place
from shoal_controlplane.planner.snapshot import Limits, ModelKey, Placed
from shoal_controlplane.plans.keeper import PlanKeeper
from shoal_controlplane.plans.wiring import Load
from shoal_shared.clock import Clock
from shoal_shared.messages import Desired
from shoal_shared.status import DeploymentState, ReplicaState

log = structlog.get_logger("deployments")

DEBOUNCE_S = 0.05
RETRY_S = 10.0
"""How often a deployment that lacks devices is tried again: room may have come."""
FAILURE_PAUSE_S = 1.0
IDLE_SHARE = 5.0
"""Rest after a step, in multiples of the compute that it took, so that a large fleet leaves
time for requests."""

_EVENTS = {
    DeploymentState.READY: "deployment.ready",
    DeploymentState.DEGRADED: "deployment.degraded",
    DeploymentState.FAILED: "deployment.failed",
}


class Models(Protocol):
    """Where model versions are looked up."""

    async def get(self, name: str, version: str | None = None) -> ModelVersion:
        """One version, or the newest. Raises `NotFoundError`."""

    async def all(self) -> tuple[ModelVersion, ...]:
        """Every version of every model."""


class Goals(Protocol):
    """Where goals of devices are published."""

    @property
    def connected(self) -> bool: ...

    def set(self, device: str, desired: Desired) -> None: ...


class DeploymentController:
    """Keeps devices, database and gateway in step with what deployments ask for.

    Nothing is placed until `startup_s` after the link is up for the first time: the retained
    status of the devices must have had a chance to arrive.
    """

    def __init__(
        self,
        store: DeploymentStore,
        fleet: LiveFleet,
        models: Models,
        goals: Goals,
        table: ServingTable,
        events: EventLog,
        clock: Clock,
        plans: PlanKeeper,
        *,
        grace_s: float = 5.0,
        startup_s: float = 5.0,
        cpu_clock: Clock = time.thread_time,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._models = models
        self._goals = goals
        self._table = table
        self._events = events
        self._clock = clock
        self._plans = plans
        self._limits = Limits(grace_s=grace_s)
        self._startup_s = startup_s
        self._cpu_clock = cpu_clock
        self._settled_at: float | None = None
        self._known: dict[ModelKey, ModelVersion] = {}
        self._failures: dict[tuple[str, ModelKey], float] = {}
        self._placed: dict[str, Placed] = {}
        self._states: dict[str, DeploymentState] | None = None
        self._served: list[ServedModel] = []
        self._asked: dict[tuple[str, ModelKey], int] = {}
        self._serving: dict[ModelKey, frozenset[str]] = {}
        self._woken = asyncio.Event()
        self._stepped = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what was decided before and begin. The fleet must have been loaded."""
        await self._store.load()
        await self._plans.start(self._store.deployments.values(), self._store.goals)
        for device, goal in self._store.goals.items():
            self._goals.set(device, goal)
        await self._look_up()
        for known in self._fleet:
            self._note_failures(None, known)
        self._fleet.listen(self._fleet_changed)
        self._woken.set()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._plans.stop()
        await self._store.save_measured()

    def wake(self) -> None:
        """Something changed: decide anew soon."""
        self._woken.set()

    def learn(self, model: ModelVersion) -> None:
        """A deployment of `model` was just stored."""
        self._known[model.name, model.version] = model
        self.wake()

    def connection_changed(self, connected: bool) -> None:
        """For the link: its first session begins the time that devices get to show up."""
        if connected and self._settled_at is None:
            # With nothing assigned there is nothing that could be taken from a late device.
            assigned = self._store.assignment or self._plans.keys
            wait = self._startup_s if assigned else 0.0
            self._settled_at = self._clock() + wait
            self.wake()

    @property
    def settled(self) -> bool:
        """Whether the devices had their chance to show up after the start."""
        return self._settled_at is not None and self._clock() >= self._settled_at

    def summary(self, deployment: Deployment) -> Summary:
        """A deployment as it is at this moment."""
        model = self._known.get(deployment.key)
        if deployment.shards is not None:
            entry = self._plans.entry(deployment.name)
            return summarise_plan(deployment, model is not None, entry, self._fleet.get)
        return summarise(
            deployment,
            model.digest if model is not None else None,
            self._placed.get(deployment.name),
            self._store.assignment.get(deployment.name, frozenset()),
            self._serving.get(deployment.key, frozenset()),
            self._fleet.get,
        )

    def reserved(self) -> dict[str, int]:
        """Memory that deployments and plans take, by device."""
        found = assigned_bytes(
            self._fleet, self._store.deployments, self._store.assignment, self._known
        )
        for device, need in self._plans.reserved().items():
            found[device] = found.get(device, 0) + need
        return found

    def is_placed(self, name: str) -> bool:
        """Whether the planner has looked at a deployment since the start."""
        entry = self._plans.entry(name)
        return name in self._placed or (entry is not None and entry.is_decided)

    async def changed(self, condition: Callable[[], bool]) -> None:
        """Wait until a step has made `condition` true."""
        async with self._stepped:
            await self._stepped.wait_for(condition)

    async def step(self) -> None:
        """Bring everything in step once."""
        await self._look_up()
        if self.settled:
            async with self._store.changing:
                await self._plans.step(self._store.deployments.values())
        self._serve()
        if self.settled:
            async with self._store.changing:
                await self._look_up()
                await self._place()
            self._tell_states()
        await self._keep_measured()
        async with self._stepped:
            self._stepped.notify_all()

    async def _run(self) -> None:
        rest = DEBOUNCE_S
        while True:
            try:
                # Not `wait_for`: up to Python 3.11 it can swallow the cancellation by `stop`.
                async with asyncio.timeout(self._due_in()):
                    await self._woken.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(rest)
            self._woken.clear()
            began = self._cpu_clock()
            try:
                await self.step()
            except Exception:
                # One bad step must not end placement for good: say it in full, try again.
                log.exception("placement failed, trying again")
                await asyncio.sleep(FAILURE_PAUSE_S)
                self._woken.set()
            rest = max(DEBOUNCE_S, IDLE_SHARE * (self._cpu_clock() - began))

    def _due_in(self) -> float | None:
        """Seconds until something changes by the mere passing of time; None for never."""
        now = self._clock()
        if self._settled_at is None:
            return None
        if now < self._settled_at:
            return self._settled_at - now
        due = [RETRY_S] if any(placed.reason for placed in self._placed.values()) else []
        planned = self._plans.due_in(now)
        if planned is not None:
            due.append(planned + DEBOUNCE_S)
        for devices in self._store.assignment.values():
            for name in devices:
                device = self._fleet.get(name)
                if device is not None and not device.online:
                    left = self._limits.grace_s - (now - device.since)
                    if left >= 0:
                        due.append(left + DEBOUNCE_S)
        return min(due, default=None)

    def _fleet_changed(self, before: Device | None, after: Device | None) -> None:
        if before is not None and after is not None and _same_for_placement(before, after):
            return
        self._note_failures(before, after)
        if after is not None:
            for measured in measured_by(after, self._known):
                self._store.measured.note(measured)
        self.wake()

    def _note_failures(self, before: Device | None, after: Device | None) -> None:
        """Remember where a model failed, so that it is not put there again at once."""
        device = after or before
        if device is None:
            return
        if after is None:
            for pair in [pair for pair in self._failures if pair[0] == device.id]:
                del self._failures[pair]
            return
        old = {(r.model, r.version): r.state for r in before.replicas} if before else {}
        for report in after.replicas:
            key = (report.model, report.version)
            if report.state is ReplicaState.READY:
                self._failures.pop((after.id, key), None)
            elif (
                report.state is ReplicaState.FAILED
                and old.get(key) is not ReplicaState.FAILED
                and key in self._known
            ):
                self._failures[after.id, key] = self._clock()

    async def _look_up(self) -> None:
        """Learn the models of all deployments, and what changed of them; one that is gone makes its
        deployment fail."""
        for key in {d.key for d in self._store.deployments.values()} | self._plans.keys:
            with contextlib.suppress(NotFoundError):
                self._known[key] = await self._models.get(*key)

    def _serve(self) -> None:
        served = served_models(
            self._fleet,
            self._store.deployments.values(),
            self._known,
            self._asked,
            self._plans.replicas(),
        )
        if served != self._served:
            self._table.publish(served)
            self._served = served
            self._serving = {
                (m.name, m.version): frozenset(r.device for r in m.replicas) for m in served
            }
        present = {(m.name, m.version) for m in served}
        deployed = {d.key for d in self._store.deployments.values()}
        for key in self._known.keys() - present - deployed:
            del self._known[key]

    async def _keep_measured(self) -> None:
        """Forget what was measured of files that no model has any more, save the rest."""
        measured = self._store.measured
        if len(measured) or self._plans.has_parts:
            models = await self._models.all()
            parts = await self._plans.keep_parts({m.digest for m in models})
            measured.keep({f.digest for m in models for f in files(m)} | parts)
        await self._store.save_measured()

    async def _place(self) -> None:
        """Decide, save, publish: in this order, so that no device ever acts on a goal that a
        restart would not know."""
        store, now = self._store, self._clock()
        memory_s = self._limits.failure_memory_s
        self._failures = {p: at for p, at in self._failures.items() if now - at < memory_s}
        deployments = list(store.deployments.values())
        whole = [d for d in deployments if d.shards is None]
        loads = self._plans.loads()
        placed = place(
            snapshot(
                self._fleet,
                whole,
                store.assignment,
                self._known,
                self._failures,
                store.measured,
                now,
                self._limits,
                self._plans.reserved(),
                {name: load.goal_bytes for name, load in loads.items()},
            )
        )
        assignment = {name: p.devices for name, p in placed.items()}
        changed = {n: d for n, d in assignment.items() if d != store.assignment.get(n)}
        goals = self._next_goals({**store.assignment, **assignment}, loads)
        gone = [device for device in store.goals if self._fleet.get(device) is None]
        self._placed = placed
        completed = [
            d.name
            for d in deployments
            if not d.completed
            and d.name not in changed
            and self.summary(d).state is DeploymentState.READY
        ]
        for device, goal in goals.items():
            before, after = _keys(store.goals.get(device)), _keys(goal)
            self._asked.update(((device, key), goal.goal) for key in after - before)
            for key in before - after:
                self._asked.pop((device, key), None)
        if changed or goals or gone or completed:
            await store.commit(changed, goals, gone, completed)
        for device, goal in goals.items():
            self._plans.goal_set(device, goal)
            self._goals.set(device, goal)
        if goals:
            self._serve()

    def _next_goals(
        self, assignment: dict[str, frozenset[str]], loads: dict[str, Load]
    ) -> dict[str, Desired]:
        wanted = models_by_device(self._store.deployments.values(), assignment, self._known)
        goals: dict[str, Desired] = {}
        for device in self._fleet:
            current = self._store.goals.get(device.id)
            models, roles = with_plans(wanted.get(device.id, ()), loads.get(device.id))
            goal = next_goal(current, models, device.reported, roles)
            if goal is not None:
                goals[device.id] = goal
        return goals

    def _tell_states(self) -> None:
        """Append events for deployments whose state changed; what was so at the start is not
        news."""
        states: dict[str, DeploymentState] = {}
        for deployment in self._store.deployments.values():
            summary = self.summary(deployment)
            states[deployment.name] = summary.state
            kind = _EVENTS.get(summary.state)
            if self._states is None or kind is None:
                continue
            if self._states.get(deployment.name) is not summary.state:
                message = _sentence(deployment, summary)
                data = {"ready": summary.ready, "wanted": summary.wanted}
                self._events.append(kind, deployment.name, message, data)
        self._states = states


def _keys(goal: Desired | None) -> set[ModelKey]:
    return {(m.model, m.version) for m in goal.models} if goal is not None else set()


def _same_for_placement(before: Device, after: Device) -> bool:
    """Whether two pictures of a device differ in nothing but load and time."""
    return (
        before.presence is after.presence
        and before.boot_id == after.boot_id
        and before.capabilities is after.capabilities
        and before.reported is after.reported
        and before.slowed == after.slowed
        and before.cordoned == after.cordoned
        and before.operator_labels is after.operator_labels
    )


def _sentence(deployment: Deployment, summary: Summary) -> str:
    counts = f"{summary.ready} of {summary.wanted} replicas ready"
    text = f"Deployment {deployment.name} is {summary.state.value}: {counts}"
    return f"{text}; {summary.reason}." if summary.reason else f"{text}."
