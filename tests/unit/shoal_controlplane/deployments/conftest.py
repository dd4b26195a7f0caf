"""A control plane without broker, loops and real time: every step is asked for."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from support.fleet import (
    ONLINE,
    FakeClock,
    FakeLink,
    FakeModels,
    capabilities,
    model_version,
    open_database,
    replica,
    reported,
    status,
)

from shoal_controlplane.api import problem
from shoal_controlplane.api.idempotency import Idempotency
from shoal_controlplane.database import Database
from shoal_controlplane.deployments.controller import DeploymentController
from shoal_controlplane.deployments.repository import DeployedRepository
from shoal_controlplane.deployments.routes import deployment_routes
from shoal_controlplane.deployments.service import DeploymentService
from shoal_controlplane.deployments.store import DeploymentStore
from shoal_controlplane.devices.keeper import FleetKeeper
from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.gateway.saturation import Picture
from shoal_controlplane.gateway.table import ServingTable
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.mqtt.publisher import GoalPublisher
from shoal_controlplane.planner.cuts.analysis import StageFile
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.plans.draft import Draft
from shoal_controlplane.plans.keeper import PlanKeeper
from shoal_controlplane.plans.measuring import Pulse
from shoal_controlplane.plans.parts import Parts
from shoal_controlplane.plans.shaping import Shaper
from shoal_controlplane.plans.store import PlanStore
from shoal_shared.messages import Desired, decode_document
from shoal_shared.status import ReplicaState
from shoal_shared.topics import Topics


class NoDrafter:
    """Nothing of these tests is sharded."""

    async def draft(self, model: ModelVersion, **asked: object) -> Draft:
        raise AssertionError(f"{model.name} is not to be planned")


async def cut_nothing(*_: object) -> tuple[StageFile, ...]:
    raise AssertionError("nothing is to be cut")


def plan_keeper(
    database: Database,
    fleet: LiveFleet,
    models: FakeModels,
    store: DeploymentStore,
    events: EventLog,
    clock: FakeClock,
) -> PlanKeeper:
    """The real keeper of plans, for deployments that have none."""
    plans = PlanStore(database)
    folder = Path(tempfile.mkdtemp(prefix="shoal-test-"))
    parts = Parts(plans, ArtifactStore(folder), cut_nothing)
    shaper = Shaper(NoDrafter(), parts, models, fleet, Pulse(), lambda: None, clock, clock.wall)
    return PlanKeeper(
        plans, parts, shaper, fleet, store.measured, events, clock, clock.wall, lambda: None
    )


class Plane:
    """The deployments room with real collaborators over fakes of clock, link and models."""

    def __init__(self, database: Database, clock: FakeClock, models: FakeModels) -> None:
        self.clock = clock
        self.models = models
        self.link = FakeLink()
        self.fleet = LiveFleet(clock, clock.wall)
        self.keeper = FleetKeeper(self.fleet, database)
        self.events = EventLog(database, clock.wall)
        self.table = ServingTable()
        self.store = DeploymentStore(database)
        self.publisher = GoalPublisher(self.link, Topics("test"))
        self.plans = plan_keeper(database, self.fleet, models, self.store, self.events, clock)
        self.controller = DeploymentController(
            self.store,
            self.fleet,
            models,
            self.publisher,
            self.table,
            self.events,
            clock,
            self.plans,
        )
        self.targets: set[str] = set()
        self.full: dict[ModelKey, Picture] = {}
        self.service = DeploymentService(
            self.store,
            self.controller,
            models,
            self.events,
            clock.wall,
            lambda: self.targets,
            self,
        )
        self.repository = DeployedRepository(
            self.service, self.store, self.controller, models, self.table, load_timeout_s=5
        )
        self.link.on_connection(self.controller.connection_changed)
        app = FastAPI()
        app.include_router(deployment_routes(self.service, Idempotency(database, clock.wall)))
        problem.install(app)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test/api/v1"
        )

    def of(self, model: str, version: str) -> Picture:
        """How full the devices of a model are."""
        return self.full.get((model, version), Picture())

    async def start(self) -> None:
        """Load everything, but let only the tests step."""
        await self.keeper.start()
        await self.controller.start()
        await self.controller.stop()

    async def stop(self) -> None:
        await self.controller.stop()
        await self.keeper.stop()
        await self.http.aclose()

    async def connect(self) -> None:
        self.link.connect()
        for _ in range(5):
            await asyncio.sleep(0)

    def join(self, *names: str, site: str = "", boot: str = "b1") -> None:
        """Devices appear, able to run ONNX."""
        labels = {"site": site} if site else {}
        for name in names:
            self.fleet.observe(name, status(boot=boot))
            self.fleet.observe(name, capabilities(labels=labels))

    def leave(self, name: str) -> None:
        device = self.fleet.get(name)
        assert device is not None
        self.fleet.observe(name, status(type(ONLINE).OFFLINE, device.boot_id))

    def desired(self, device: str) -> Desired | None:
        """What the broker retains as a device's goal."""
        for topic, payload, _, _ in reversed(self.link.published):
            if topic == f"shoal/v1/test/devices/{device}/desired" and payload:
                return decode_document(Desired, payload)
        return None

    def goals(self, device: str) -> set[str]:
        desired = self.desired(device)
        return {f"{m.model}:{m.version}" for m in desired.models} if desired else set()

    def obey(
        self, *devices: str, state: ReplicaState = ReplicaState.READY, reason: str = ""
    ) -> None:
        """Devices report that they did what their goal says."""
        for name in devices:
            desired, device = self.desired(name), self.fleet.get(name)
            assert desired is not None
            assert device is not None
            models = [
                replica(state, m.model, m.version, digest=m.digest, reason=reason)
                for m in desired.models
            ]
            self.fleet.observe(name, reported(*models, goal=desired.goal, boot=device.boot_id))

    def serving(self, model: str = "cat", version: str = "") -> list[str]:
        found = self.table.find(model, version)
        return [r.device for r in found.replicas] if found else []

    def told(self) -> list[str]:
        """Kinds of the deployment events, oldest first."""
        return [e.kind for e in reversed(list(self.events.newest_first()))]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def models() -> FakeModels:
    other = "sha256:" + "cd" * 32
    return FakeModels(
        model_version("cat"),
        model_version("cat", "2", digest=other),
        model_version("dog"),
        model_version("face", format="tflite", max_batch=0),
    )


@pytest.fixture
async def plane(database: Database, clock: FakeClock, models: FakeModels) -> AsyncIterator[Plane]:
    made = Plane(database, clock, models)
    await made.start()
    await made.connect()
    yield made
    await made.stop()


@pytest.fixture
def restart(database: Database, clock: FakeClock, models: FakeModels) -> type[Plane]:
    """Makes the plane that comes up after a kill -9 of the one before."""

    class Restarted(Plane):
        def __init__(self) -> None:
            super().__init__(database, clock, models)

    return Restarted
