"""The rooms of deployments and plans, real but for the fleet, the clock, and what computes plans.

Every step is asked for. Devices are of types of their own, so that plans are easy to foretell; the
real planner places four segments of a model on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.fleet import (
    MB,
    OFFLINE,
    FakeClock,
    FakeLink,
    FakeModels,
    capabilities,
    model_version,
    replica,
    reported,
    status,
)

from shoal_controlplane.database import Database
from shoal_controlplane.deployments.controller import DeploymentController
from shoal_controlplane.deployments.service import DeploymentService, NewDeployment
from shoal_controlplane.deployments.store import DeploymentStore
from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.errors import ConflictError
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.gateway.table import Pipeline, Replica, ServingTable
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.mqtt.publisher import GoalPublisher
from shoal_controlplane.planner.cuts.analysis import Analysis, BoundaryTensor, StageFile
from shoal_controlplane.planner.partition.problem import (
    DeviceType,
    Link,
    Objective,
    Problem,
    Segment,
)
from shoal_controlplane.planner.partition.solve import solve
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.candidates import free_memory
from shoal_controlplane.plans.draft import Basis, Draft
from shoal_controlplane.plans.entry import Entry
from shoal_controlplane.plans.keeper import PlanKeeper
from shoal_controlplane.plans.measuring import Pulse
from shoal_controlplane.plans.parts import Parts
from shoal_controlplane.plans.shaping import Shaper
from shoal_controlplane.plans.store import PlanStore
from shoal_shared.messages import Board, Desired, decode_document
from shoal_shared.status import ReplicaState
from shoal_shared.topics import Topics

SEGMENTS = 4
FAST = Link(1e12)


def digest_of(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hexdigest()


def analysis(count: int = SEGMENTS, weight_bytes: int = 10 * MB) -> Analysis:
    """A chain of equal segments with one tensor between them."""
    return Analysis(
        segments=tuple(Segment(f"node{n}", weight_bytes, MB, 400, 1e6, 1000) for n in range(count)),
        cuts=tuple((BoundaryTensor(f"t{n}", "FP32", (1, 100), 400),) for n in range(1, count)),
        inputs=(BoundaryTensor("x", "FP32", (1, 4), 16),),
        outputs=(BoundaryTensor("y", "FP32", (1, 2), 8),),
        shapes={"x": (1, 4)},
    )


class FakeCutter:
    """Cuts by writing down what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.folders: list[Path] = []
        self.error: Exception | None = None
        self.flavour = ""

    async def __call__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        bounds: Sequence[int],
        folder: Path,
    ) -> tuple[StageFile, ...]:
        self.asked.append(tuple(bounds))
        self.folders.append(folder)
        if self.error is not None:
            raise self.error
        found = []
        for first, last in pairwise(bounds):
            text = f"{path.name} {sorted(shapes.items())} {first} {last} {self.flavour}"
            name = f"{first}-{last}.onnx"
            (folder / name).write_text(text)
            tensor = BoundaryTensor(f"t{first}" if first else "x", "FP32", (1, 4), 16)
            outputs = (f"t{last}" if last < SEGMENTS else "y",)
            passes = ("skip",) if first == 1 else ()
            found.append(
                StageFile(first, last, name, digest_of(text), len(text), (tensor,), outputs, passes)
            )
        return tuple(found)


class FakeDrafter:
    """The real planner over the live fleet: `ms` for a segment by device (10 unless told, and a
    little more the higher the number in its name), a fifth more for the first one. What is measured
    is up to `basis`, by board."""

    def __init__(self, fleet: LiveFleet, reserved: Callable[[], Mapping[str, int]]) -> None:
        self.ms: dict[str, float] = {}
        self.basis: dict[str, Basis] = {}
        self.analyses: dict[str, Analysis] = {}
        self.replicate = False
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []
        self._fleet = fleet
        self._reserved = reserved

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
        self.asked.append(
            {"model": (model.name, model.version), "exclude": set(exclude), "own": own}
        )
        if self.error is not None:
            raise self.error
        devices = [
            d
            for d in self._fleet
            if d.online
            and not d.cordoned
            and d.capabilities is not None
            and d.id not in exclude
            and select.items() <= d.labels.items()
        ]
        if len(devices) < (stages or 1):
            raise ConflictError(f"There is no plan: needs {stages or 1} devices.")
        reserved, given = self._reserved(), own or {}
        boards: dict[str, list[str]] = {}
        for device in devices:
            boards.setdefault(device.board, []).append(device.id)
        found = self.analyses.get(model.digest, analysis())
        count = len(found.segments)
        types = []
        for board, names in sorted(boards.items()):
            memory = []
            for name in names:
                known = self._fleet.get(name)
                assert known is not None
                left = max(0, reserved.get(name, 0) - given.get(name, 0))
                memory.append(free_memory(known, left))
            each = self.ms.get(names[0], 9.9 + 0.1 * int(names[0].lstrip("d")))
            times = (1.2 * each, *(each,) * (count - 1))
            types.append(DeviceType(board, tuple(names), min(memory), times))
        kinds = len(types)
        problem = Problem(
            found.segments,
            tuple(types),
            ((FAST,) * kinds,) * kinds,
            (FAST,) * kinds,
            (FAST,) * kinds,
            16,
            objective=objective,
            stages=stages,
            replicate=self.replicate,
        )
        return Draft(
            model=model,
            select=dict(select),
            analysis=found,
            problem=problem,
            outcome=solve(problem),
            basis=tuple(self.basis.get(kind.name, Basis.MEASURED) for kind in types),
            boards=tuple(kind.name for kind in types),
        )


class Rooms:
    """One control plane; another one over the same database is what comes up after a kill."""

    def __init__(
        self, database: Database, folder: Path, clock: FakeClock, models: FakeModels
    ) -> None:
        self.clock = clock
        self.models = models
        self.link = FakeLink()
        self.fleet = LiveFleet(clock, clock.wall)
        self.events = EventLog(database, clock.wall)
        self.table = ServingTable()
        self.store = DeploymentStore(database)
        self.artifacts = ArtifactStore(folder)
        self.plan_store = PlanStore(database)
        self.cutter = FakeCutter()
        self.parts = Parts(self.plan_store, self.artifacts, self.cutter)
        self.drafter = FakeDrafter(self.fleet, self._reserved)
        self.wakes = 0
        pulse = Pulse()
        self.fleet.listen(lambda *_: pulse.beat())
        shaper = Shaper(
            self.drafter, self.parts, models, self.fleet, pulse, self._wake, clock, clock.wall
        )
        self.plans = PlanKeeper(
            self.plan_store,
            self.parts,
            shaper,
            self.fleet,
            self.store.measured,
            self.events,
            clock,
            clock.wall,
            self._wake,
        )
        self.controller = DeploymentController(
            self.store,
            self.fleet,
            models,
            GoalPublisher(self.link, Topics("test")),
            self.table,
            self.events,
            clock,
            self.plans,
        )
        self.service = DeploymentService(
            self.store, self.controller, models, self.events, clock.wall
        )
        self.link.on_connection(self.controller.connection_changed)
        self.states: dict[str, ReplicaState] = {}
        self.deaf: set[str] = set()
        for model in models.stored.values():
            path = folder / "sha256" / model.digest.removeprefix("sha256:")
            path.write_text(model.digest)

    async def start(self) -> None:
        """Load everything; only the tests step."""
        await self.controller.start()
        await self.controller.stop()
        self.link.connect()
        for _ in range(5):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        await self.controller.stop()

    def join(self, *names: str, memory: int = 1000 * MB, board: str = "", **labels: str) -> None:
        """Devices appear, each a type of board of its own, or of that `board`."""
        for name in names:
            able = capabilities(
                board=Board(family="jetson", model=board or name),
                memory_bytes=memory,
                labels=labels,
            )
            self.fleet.observe(name, able)
            self.fleet.observe(name, status())

    def leave(self, *names: str) -> None:
        for name in names:
            self.fleet.observe(name, status(OFFLINE))

    def desired(self, device: str) -> Desired:
        """What the broker retains as a device's goal."""
        for topic, payload, _, _ in reversed(self.link.published):
            if topic == f"shoal/v1/test/devices/{device}/desired" and payload:
                return decode_document(Desired, payload)
        return Desired(goal=0)

    def epochs(self, device: str) -> set[int]:
        return {role.epoch for role in self.desired(device).roles}

    def obey(self, *names: str) -> None:
        """Online devices, or those named, report that they did what their goals say; those in
        `states` report that instead."""
        for device in list(self.fleet):
            if not device.online or device.id in self.deaf or (names and device.id not in names):
                continue
            goal = self.desired(device.id)
            state = self.states.get(device.id, ReplicaState.READY)
            reason = "out of memory." if state is ReplicaState.FAILED else ""
            models = [
                replica(
                    state,
                    m.model,
                    m.version,
                    digest=m.digest,
                    deployment=m.deployment,
                    reason=reason,
                    **({"memory_bytes": 20 * MB} if state is ReplicaState.READY else {}),
                )
                for m in goal.models
            ]
            self.fleet.observe(device.id, reported(*models, goal=goal.goal, boot=device.boot_id))

    async def step(self) -> None:
        """One step, and the making of plans that it began, as far as it waits for nothing."""
        await self.controller.step()
        await self.made()

    async def made(self) -> None:
        """Until no plan is being made."""
        tasks = [e.task for e in self.entries.values() if e.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    async def run(self, steps: int = 4) -> None:
        """Steps with devices that do what they are told in between."""
        for _ in range(steps):
            await self.step()
            self.obey()
        await self.controller.step()

    async def create(self, name: str = "cat", model: str = "cat", **asked: Any) -> None:
        facts: dict[str, Any] = {"version": "1", "shards": 2}
        await self.service.create(NewDeployment(model=model, name=name, **facts | asked))

    @property
    def entries(self) -> dict[str, Entry]:
        found = {name: self.plans.entry(name) for name in self.store.deployments}
        return {name: entry for name, entry in found.items() if entry is not None}

    def entry(self, name: str = "cat") -> Entry:
        entry = self.plans.entry(name)
        assert entry is not None
        return entry

    def current(self, name: str = "cat") -> tuple[int, tuple[tuple[str, ...], ...]]:
        """The current epoch and its devices."""
        plan = self.entry(name).plan
        assert plan is not None
        return plan.current.epoch, plan.current.devices

    def offered(self, model: str = "cat", version: str = "") -> list[int]:
        """Epochs that the gateway may use, in its order."""
        found = self.table.find(model, version)
        replicas: tuple[Replica, ...] = found.replicas if found is not None else ()
        return [r.pipeline.epoch for r in replicas if r.pipeline is not None]

    def pipeline(self, model: str = "cat") -> Pipeline:
        """The one that the gateway uses now."""
        return self.table.pipelines()[0]

    def told(self, prefix: str = "plan.") -> list[str]:
        """Kinds of events, oldest first."""
        kinds = [e.kind for e in reversed(list(self.events.newest_first()))]
        return [kind for kind in kinds if kind.startswith(prefix)]

    def _reserved(self) -> Mapping[str, int]:
        return self.controller.reserved()

    def _wake(self) -> None:
        self.wakes += 1


def some_models() -> FakeModels:
    """Models of four segments each."""
    return FakeModels(
        *(
            model_version(name, version, digest=digest_of(f"{name}:{version}"))
            for name, version in (("cat", "1"), ("cat", "2"), ("dog", "1"), ("cow", "1"))
        )
    )


async def until(condition: Callable[[], object], rooms: Rooms) -> None:
    """Steps until something that happens beside them is there."""
    for _ in range(500):
        if condition():
            return
        await rooms.controller.step()
        await asyncio.sleep(0.002)
    raise AssertionError("it did not happen")


async def served(rooms: Rooms, *devices: str) -> None:
    """`cat` in two stages on the first two of some devices."""
    rooms.join(*(devices or ("d1", "d2", "d3")))
    await rooms.create()
    await rooms.run()
    assert rooms.entry().state is PlanState.READY
    assert rooms.current()[1] == (("d1",), ("d2",))
