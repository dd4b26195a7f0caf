"""The control plane put together: `build` reads as its inventory."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal_controlplane.api import problem
from shoal_controlplane.api.idempotency import Idempotency
from shoal_controlplane.api.limits import BodyLimit
from shoal_controlplane.compiled.routes import compiled_routes
from shoal_controlplane.compiled.service import CompiledService
from shoal_controlplane.config import ServerConfig
from shoal_controlplane.dashboard.routes import routes as dashboard_routes
from shoal_controlplane.database import Database
from shoal_controlplane.deployments.controller import DeploymentController
from shoal_controlplane.deployments.repository import DeployedRepository
from shoal_controlplane.deployments.routes import deployment_routes
from shoal_controlplane.deployments.service import DeploymentService
from shoal_controlplane.deployments.store import DeploymentStore
from shoal_controlplane.devices.changes import announce
from shoal_controlplane.devices.keeper import FleetKeeper
from shoal_controlplane.devices.live import Device, Listener, LiveFleet
from shoal_controlplane.devices.routes import device_routes
from shoal_controlplane.devices.service import DeviceService
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.events.routes import event_routes
from shoal_controlplane.gateway.admission import Admission
from shoal_controlplane.gateway.batch import BatchRunner
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.http import InferenceApp
from shoal_controlplane.gateway.overflow import Overflow
from shoal_controlplane.gateway.pressure import Pressures
from shoal_controlplane.gateway.router import Router
from shoal_controlplane.gateway.service import Gateway
from shoal_controlplane.gateway.table import Pipeline, ServingTable
from shoal_controlplane.metrics import FleetCollector, OffloadSources, registry
from shoal_controlplane.models.artifact_routes import artifact_routes
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.routes import routes as model_routes
from shoal_controlplane.models.service import ModelService
from shoal_controlplane.mqtt.ingress import Ingress
from shoal_controlplane.mqtt.link import Link
from shoal_controlplane.mqtt.publisher import GoalPublisher
from shoal_controlplane.offload.manager import CloudManager
from shoal_controlplane.offload.pool import CloudPool
from shoal_controlplane.planner.cuts import cutter
from shoal_controlplane.planner.partition.solve import solve
from shoal_controlplane.plans.analyses import Analyses
from shoal_controlplane.plans.drafting import Drafter
from shoal_controlplane.plans.keeper import PlanKeeper
from shoal_controlplane.plans.links import LinkBook, LinkProber
from shoal_controlplane.plans.measuring import Pulse
from shoal_controlplane.plans.parts import Parts
from shoal_controlplane.plans.planning import Planner
from shoal_controlplane.plans.routes import plan_routes
from shoal_controlplane.plans.shaping import Shaper
from shoal_controlplane.plans.store import PlanStore
from shoal_controlplane.targets.changes import announce as announce_targets
from shoal_controlplane.targets.keeper import TargetKeeper
from shoal_controlplane.targets.manual import ManualService
from shoal_controlplane.targets.routes import target_routes
from shoal_controlplane.targets.service import TargetService
from shoal_controlplane.targets.store import TargetStore
from shoal_shared.clock import Clock
from shoal_shared.topics import Topics


@dataclass(frozen=True)
class ControlPlane:
    """All rooms, wired. `start` and `stop` follow the order in which they need one another."""

    app: ASGIApp
    gateway: Gateway
    events: EventLog
    keeper: FleetKeeper
    controller: DeploymentController
    publisher: GoalPublisher
    ingress: Ingress
    compiled: CompiledService
    analyses: Analyses
    prober: LinkProber
    targets: TargetKeeper
    clouds: CloudManager
    pressures: Pressures

    async def start(self) -> None:
        await self.events.start()
        await self.keeper.start()
        await self.controller.start()
        await self.compiled.start()
        await self.targets.start()
        await self.clouds.start()
        self.pressures.start()
        self.ingress.start()

    async def stop(self) -> None:
        self.publisher.stop()
        await self.pressures.stop()
        await self.targets.stop()
        await self.clouds.stop()
        await self.compiled.stop()
        await self.controller.stop()
        await self.analyses.stop()
        await self.prober.stop()
        await self.keeper.stop()
        await self.events.stop()


def build(
    config: ServerConfig,
    database: Database,
    link: Link,
    *,
    gateway_id: str,
    url: str,
    clock: Clock = time.monotonic,
    rng: random.Random | None = None,
) -> ControlPlane:
    """Build a control plane over a migrated database and a link that is started afterwards.

    `url` is where machines elsewhere reach it.
    """
    topics = Topics(config.fleet)
    events = EventLog(database, time.time)

    fleet = LiveFleet(clock, time.time, max_devices=config.max_devices)
    announce(fleet, events)
    keeper = FleetKeeper(fleet, database)
    link.on_connection(keeper.connection_changed)
    ingress = Ingress(link, topics, fleet, clock)
    publisher = GoalPublisher(link, topics)

    store = DeploymentStore(database)
    artifacts = ArtifactStore(config.folder / "artifacts", config.max_model_bytes)

    async def in_use(name: str, version: str) -> str | None:
        return next(iter(store.using(name, version)), None)

    models = ModelService(database, artifacts, in_use)
    compiled = CompiledService(database, artifacts, models, time.time)
    table = ServingTable()

    def wake() -> None:
        controller.wake()

    def reserved() -> Mapping[str, int]:
        return controller.reserved()

    plan_store = PlanStore(database)
    parts = Parts(plan_store, artifacts, cutter.extract)
    analyses = Analyses(artifacts.path, cutter.analyse)
    prober = LinkProber(link, topics, gateway_id, LinkBook(), clock)
    drafter = Drafter(
        fleet,
        store.measured,
        analyses,
        prober,
        reserved=reserved,
        ranges=plan_store.ranges,
        solve=solve,
    )
    pulse = Pulse()
    fleet.listen(lambda *_: pulse.beat())
    shaper = Shaper(drafter, parts, models, fleet, pulse, wake, clock, time.time)
    plans = PlanKeeper(
        plan_store,
        parts,
        shaper,
        fleet,
        store.measured,
        events,
        clock,
        time.time,
        wake,
    )
    controller = DeploymentController(
        store,
        fleet,
        models,
        publisher,
        table,
        events,
        clock,
        plans,
        grace_s=config.offline_grace_s,
        startup_s=config.startup_grace_s,
    )
    link.on_connection(controller.connection_changed)
    models.subscribe(controller.wake)
    devices = DeviceService(fleet, database, publisher, store.goal_of)
    router = Router(rng=rng)

    pool = CloudPool(clock)
    clouds = CloudManager(pool, clock, changed=announce_targets(events), rng=rng)
    pressures = Pressures(router, table.all, pool, clock, record=events.append)
    target_store = TargetStore(database)

    def artifact_url(digest: str) -> str:
        return f"{url}/artifacts/{digest.replace(':', '/')}"

    targets = TargetKeeper(target_store, table, models, clouds, artifacts.path, artifact_url)
    table.subscribe(targets.wake)
    models.subscribe(targets.wake)
    target_service = TargetService(target_store, clouds, store, events, targets.wake, time.time)
    by_hand = ManualService(target_store, target_service, store, models, pool, targets.wake, clock)
    deployments = DeploymentService(
        store, controller, models, events, time.time, target_service.names, pressures
    )

    dispatcher = Dispatcher(link, topics, gateway_id, router, clock, prober.alive, table.pipelines)
    dispatcher.pipelines.listeners.append(plans.abandoned)
    dispatcher.pipelines.listeners.append(lambda _, device, __: prober.book.forget(device))
    dispatcher.pipelines.doubters.append(partial(_measure_links_anew, prober, plans))
    table.subscribe(dispatcher.table_changed)
    fleet.listen(_route_presence(dispatcher, router, prober))
    gateway = Gateway(
        table,
        dispatcher,
        DeployedRepository(deployments, store, controller, models, table),
        clock=clock,
        default_timeout_s=config.default_timeout_s,
        batches=BatchRunner(dispatcher, router, clock, prober.book.down_bytes_per_s),
        overflow=Overflow(dispatcher, Admission(), pool, pressures, clock),
    )
    collector = FleetCollector(
        gateway.statistics,
        fleet.conditions,
        lambda: dispatcher.in_flight,
        ingress.rejected.total,
        OffloadSources(clouds.pictures, pressures.all, dispatcher.hedges),
    )

    idempotency = Idempotency(database)
    api = FastAPI(
        title="Shoal",
        version=version("shoal"),
        summary="One inference endpoint out of many small devices.",
    )
    problem.install(api)
    api.add_middleware(BodyLimit, exempt="/artifacts/sha256/")
    api.include_router(device_routes(devices))
    api.include_router(model_routes(models, idempotency))
    api.include_router(artifact_routes(artifacts))
    api.include_router(compiled_routes(compiled))
    api.include_router(deployment_routes(deployments, idempotency))
    api.include_router(plan_routes(Planner(models, drafter), plans))
    api.include_router(target_routes(target_service, by_hand, idempotency))
    api.include_router(event_routes(events))
    api.include_router(dashboard_routes())
    _add_health(api, link, registry(collector))
    app = _front(InferenceApp(gateway, max_body=config.max_body_bytes), api)
    return ControlPlane(
        app,
        gateway,
        events,
        keeper,
        controller,
        publisher,
        ingress,
        compiled,
        analyses,
        prober,
        targets,
        clouds,
        pressures,
    )


def _route_presence(dispatcher: Dispatcher, router: Router, prober: LinkProber) -> Listener:
    """What the gateway must know at once: who left, and who is back with a clean slate."""

    def listener(before: Device | None, after: Device | None) -> None:
        was = before is not None and before.online
        now = after is not None and after.online
        device = after or before
        if device is None:
            return
        rebooted = before is not None and after is not None and before.boot_id != after.boot_id
        if was and (not now or rebooted):
            dispatcher.device_gone(device.id)
        if now and (not was or rebooted):
            router.returned(device.id)
            dispatcher.device_back(device.id)
            prober.book.forget(device.id)

    return listener


def _measure_links_anew(prober: LinkProber, plans: PlanKeeper, pipeline: Pipeline) -> None:
    """The links of a plan seem slow: forget them, so that its next draft probes them."""
    for device in pipeline.devices:
        prober.book.forget(device)
    plans.reconsider(pipeline.plan)


def _front(inference: InferenceApp, api: FastAPI) -> ASGIApp:
    """Inference takes the short way; everything else is FastAPI's."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (path.startswith("/v2/") or path == "/v2"):
            await inference(scope, receive, send)
        else:
            await api(scope, receive, send)

    return app


def _add_health(api: FastAPI, link: Link, metrics: CollectorRegistry) -> None:
    @api.get("/livez", tags=["health"])
    async def livez() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @api.get("/readyz", tags=["health"], responses={503: {"description": "Not ready"}})
    async def readyz(response: Response) -> dict[str, str]:
        """The process has a session with the broker."""
        if link.connected:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "no session with the broker"}

    @api.get("/metrics", tags=["health"], response_class=Response)
    async def metrics_page() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)
