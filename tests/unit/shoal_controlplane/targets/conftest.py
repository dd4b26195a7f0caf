"""The targets room over its real store; the clouds and the kinds are fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from support.fleet import FakeClock, FakeModels, model_version, open_database

from shoal_controlplane.api import problem
from shoal_controlplane.api.idempotency import Idempotency
from shoal_controlplane.database import Database
from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.store import DeploymentStore
from shoal_controlplane.errors import InvalidError
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.gateway.table import ServedModel, ServingTable
from shoal_controlplane.offload.kinds import Kind, kind_of
from shoal_controlplane.offload.manager import TargetPlan, WantedModel
from shoal_controlplane.offload.state import ModelOnTarget, State, TargetPicture
from shoal_controlplane.offload.target import Description, Price, TargetError, TargetSettings
from shoal_controlplane.targets.keeper import TargetKeeper
from shoal_controlplane.targets.manual import ManualService
from shoal_controlplane.targets.routes import target_routes
from shoal_controlplane.targets.service import TargetService
from shoal_controlplane.targets.store import TargetStore
from shoal_controlplane.targets.target import Place
from shoal_shared.oip import InferReply, InferRequest, Tensor


@dataclass
class FakeClouds:
    """Manager and pool: what they were told, pictures as they are set, answers of twos."""

    clock: FakeClock
    plans: list[TargetPlan] = field(default_factory=list)
    wanted: list[WantedModel] = field(default_factory=list)
    pinned: dict[Place, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    shown: list[TargetPicture] = field(default_factory=list)
    asked: list[tuple[str, ServedModel, InferRequest, int, float]] = field(default_factory=list)
    fault: TargetError | None = None

    def set_targets(self, targets: Iterable[TargetPlan]) -> None:
        self.calls.append("targets")
        self.plans = list(targets)

    def set_pins(self, pins: Mapping[Place, int]) -> None:
        self.calls.append("pins")
        self.pinned = dict(pins)

    def set_wanted(self, wanted: Iterable[WantedModel]) -> None:
        self.calls.append("wanted")
        self.wanted = list(wanted)

    def pictures(self) -> tuple[TargetPicture, ...]:
        return tuple(self.shown)

    async def infer(
        self, target: str, model: ServedModel, request: InferRequest, items: int, deadline: float
    ) -> InferReply:
        self.asked.append((target, model, request, items, deadline))
        self.clock.advance(0.012)
        if self.fault is not None:
            raise self.fault
        return InferReply([Tensor("y", "FP32", np.full((items, 2), 2, np.float32))])


@dataclass
class FakeKind:
    """A kind whose only option is `namespace`; its targets do what `describing` says."""

    describing: Callable[[], Any] | None = None
    opened: list[TargetSettings] = field(default_factory=list)
    closed: int = 0

    def check_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        unknown = sorted(options.keys() - {"namespace"})
        if unknown:
            raise InvalidError(f"option {unknown[0]}: there is none of that name")
        return {"namespace": "shoal", **options}

    def open_target(self, settings: TargetSettings) -> Any:
        self.opened.append(settings)
        return self

    async def describe(self) -> Description:
        if self.describing is not None:
            await self.describing()
        return Description("Kubernetes v1.31 at https://10.0.0.4", {"version": "v1.31"})

    async def close(self) -> None:
        self.closed += 1


class Room:
    """Everything of the room, and how to ask it."""

    def __init__(self, database: Database) -> None:
        self.clock = FakeClock()
        self.clouds = FakeClouds(self.clock)
        self.kind = FakeKind()
        self.store = TargetStore(database)
        self.deployments = DeploymentStore(database)
        self.models = FakeModels(model_version())
        self.events = EventLog(database, self.clock.wall)
        self.table = ServingTable()
        self.changes = 0
        self.keeper = self.make_keeper()
        self.service = TargetService(
            self.store,
            self.clouds,
            self.deployments,
            self.events,
            self.changed,
            self.clock.wall,
            self.kinds,
        )
        self.manual = ManualService(
            self.store,
            self.service,
            self.deployments,
            self.models,
            self.clouds,
            self.changed,
            self.clock,
            self.kinds,
        )
        app = FastAPI()
        app.include_router(
            target_routes(self.service, self.manual, Idempotency(database, self.clock.wall))
        )
        problem.install(app)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test/api/v1"
        )

    def make_keeper(self) -> TargetKeeper:
        def path(digest: str) -> Path:
            return Path("/artifacts") / digest

        return TargetKeeper(
            self.store, self.table, self.models, self.clouds, path, lambda d: f"http://s/{d}"
        )

    def kinds(self, name: str) -> Kind:
        return self.kind if name == "kserve" else kind_of(name)

    def changed(self) -> None:
        self.changes += 1

    async def add(self, name: str = "aks", **body: Any) -> httpx.Response:
        return await self.http.post("/targets", json={"name": name, "kind": "kserve", **body})

    async def deploy(self, name: str, *targets: str, model: str = "cat") -> None:
        """Have a deployment that offloads."""
        deployment = Deployment(name, model, "1", 1, {}, self.clock.wall(), offload=targets)
        await self.deployments.put(deployment)


def on_target(state: State = State.READY, **changes: Any) -> ModelOnTarget:
    """cat:1 on a target."""
    facts: dict[str, Any] = {
        "model": "cat",
        "version": "1",
        "state": state,
        "sentence": "1 ready",
        "ready": 1,
        "wanted": 1,
        "mean_ms": 40.0,
        "p95_ms": 80.0,
        "concurrent": 4.0,
        "items_per_s": 60.0,
        "price_per_request": 0.25,
        "in_flight": 0,
        "requests": 12,
        "items": 20,
        "failures": 2,
    }
    return ModelOnTarget(**facts | changes)


def picture(name: str = "aks", *models: ModelOnTarget, **changes: Any) -> TargetPicture:
    """A target that works."""
    facts: dict[str, Any] = {
        "name": name,
        "kind": "kserve",
        "where": "Kubernetes v1.31",
        "facts": {"version": "v1.31"},
        "trouble": "",
        "price": Price(0.9, 0.0),
        "max_replicas": 3,
        "cap_per_hour": 2.5,
        "left": 1.5,
        "spent": 3.25,
        "spent_last_hour": 0.75,
        "affordable_in_s": 0.0,
        "models": models,
    }
    return TargetPicture(**facts | changes)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    database = open_database(tmp_path)
    made = Room(database)
    await made.deployments.load()
    await made.store.load()
    yield made
    await made.http.aclose()
    database.close()


@pytest.fixture
def pictures() -> Any:
    """How to make pictures: `picture` and `on_target`, which tests cannot import from here."""

    return SimpleNamespace(target=picture, model=on_target)
