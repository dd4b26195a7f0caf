"""A real Ray cluster: what goes wrong there, and what else runs there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import signal
import time
import zipfile
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import psutil
import pytest
import pytest_asyncio
from clouds.models import Shelf, Weights
from clouds.rig import Rig, eventually, fault_of, healthy, only
from clouds.rigs import ray as place
from support.relay import Relay

from shoal_controlplane.offload.ray import cluster as ray_cluster
from shoal_controlplane.offload.ray import declaration as declarations
from shoal_controlplane.offload.ray import kind
from shoal_controlplane.offload.target import CloudModel, CloudTarget, Fault, TargetError

pytestmark = [only("ray"), pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

TIMEOUT_S = 30.0


@pytest_asyncio.fixture(loop_scope="session")
async def dashboard(rig: Rig) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=str(rig.settings.options["address"]),
        headers={"authorization": f"Bearer {rig.secrets[0]}"},
        timeout=60,
        trust_env=False,
    ) as client:
        yield client


@pytest.fixture
def url(rig: Rig, deployed: CloudModel) -> str:
    route = declarations.route_prefix(deployed.key)
    return f"{rig.settings.options['serve_url']}{route}"


@pytest.fixture
def headers(rig: Rig) -> dict[str, str]:
    return {"authorization": f"Bearer {declarations.serving_token(rig.secrets[0])}"}


@contextlib.asynccontextmanager
async def another(rig: Rig, **options: Any) -> AsyncIterator[CloudTarget]:
    """A target for the same cluster with other options."""
    settings = dataclasses.replace(rig.settings, options={**rig.settings.options, **options})
    target = kind.open_target(settings)
    try:
        yield target
    finally:
        await target.close()


async def state(dashboard: httpx.AsyncClient) -> dict[str, Any]:
    answer = await dashboard.get("/api/serve/applications/")
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


async def test_the_cluster_demands_the_token(dashboard: httpx.AsyncClient) -> None:
    for value, status in (("", 401), ("Bearer wrong", 403)):
        answer = await dashboard.get("/api/serve/applications/", headers={"authorization": value})
        assert answer.status_code == status


async def test_it_says_which_ray_it_is(rig: Rig) -> None:
    description = await rig.target.describe()
    assert description.where.startswith("Ray 2.")
    assert description.facts["cpus"] == 4
    assert description.facts["authentication"] == "token"


async def test_ports_between_replicas_demand_the_token(rig: Rig, deployed: CloudModel) -> None:
    replicas = [p for p in place.family(os.getpid()) if "ServeReplica:shoal" in place.title(p)]
    assert replicas
    ports = {
        connection.laddr.port
        for process in replicas
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in ("::", "0.0.0.0")
    }
    assert ports
    for port in ports:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_replicas_demand_the_token(
    url: str, headers: dict[str, str], deployed: CloudModel
) -> None:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        for path in ("/v2", f"/v2/models/{deployed.name}", f"/v2/models/{deployed.name}/ready"):
            assert (await client.get(url + path, headers=headers)).status_code == 200
            for wrong in ({}, {"authorization": "Bearer wrong"}):
                assert (await client.get(url + path, headers=wrong)).status_code == 401
        infer = f"{url}/v2/models/{deployed.name}/infer"
        assert (await client.post(infer, content=b"{}")).status_code == 401


async def test_replicas_speak_the_protocol(
    url: str, headers: dict[str, str], deployed: CloudModel
) -> None:
    model = f"{url}/v2/models/{deployed.name}/versions/{deployed.version}"
    async with httpx.AsyncClient(timeout=30, trust_env=False, headers=headers) as client:
        assert (await client.get(f"{url}/v2/health/live")).json() == {"live": True}
        assert (await client.get(f"{url}/v2/health/ready")).json() == {"ready": True}
        metadata = (await client.get(model)).json()
        assert [spec["name"] for spec in metadata["inputs"]] == ["a", "b"]
        assert (await client.get(f"{model}/ready")).status_code == 200
        body = {
            "id": "7",
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [1, 8], "data": [0.0] * 8},
                {"name": "b", "datatype": "FP32", "shape": [1, 4], "data": [1.0, -1.0, 0.0, 2.0]},
            ],
            "outputs": [{"name": "y"}],
        }
        answer = (await client.post(f"{model}/infer", json=body)).json()
        assert answer["id"] == "7"
        assert answer["outputs"][0]["data"] == [1.0, 0.0, 0.0, 2.0]


async def test_bad_requests_are_refused_by_the_replica(
    url: str, headers: dict[str, str], deployed: CloudModel
) -> None:
    infer = f"{url}/v2/models/{deployed.name}/infer"
    async with httpx.AsyncClient(timeout=30, trust_env=False, headers=headers) as client:
        for content, extra, status in (
            (b"", {}, 400),
            (b"{", {}, 400),
            (b"\xff" * 100, {}, 400),
            (b'{"inputs": []}', {}, 400),
            (b"{}", {"inference-header-content-length": "99999"}, 400),
            (b"{}", {"inference-header-content-length": "one"}, 400),
        ):
            answer = await client.post(infer, content=content, headers=extra)
            assert answer.status_code == status, content
            assert "\n" not in answer.json()["error"]
        for path in ("/v2/models/other", f"/v2/models/{deployed.name}/versions/99/ready"):
            assert (await client.get(url + path)).status_code == 404


async def test_other_applications_stay_through_everything(
    rig: Rig, models: Shelf, dashboard: httpx.AsyncClient
) -> None:
    # Somebody else's application: declared in the same place, by the same means.
    before = await state(dashboard)
    theirs = {
        "name": "theirs",
        "route_prefix": "/theirs",
        "import_path": "theirs:app",
        "runtime_env": {"py_modules": [await _package(dashboard)]},
        "args": {"greeting": "hello"},
    }
    declared = [
        app["deployed_app_config"]
        for app in before["applications"].values()
        if app["deployed_app_config"]
    ]
    answer = await dashboard.put(
        "/api/serve/applications/",
        json={
            "applications": [*declared, theirs],
            "http_options": before["http_options"],
        },
    )
    assert answer.status_code == 200, answer.text
    url = f"{rig.settings.options['serve_url']}/theirs"

    async def greets() -> bool:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            try:
                return (await client.get(url)).text == "hello"
            except httpx.HTTPError:
                return False

    async def replica() -> list[str]:
        apps = (await state(dashboard))["applications"]
        return [r["replica_id"] for r in apps["theirs"]["deployments"]["Greeter"]["replicas"]]

    try:
        await eventually("their application answers", greets, rig.patience_s)
        their_replicas = await replica()
        model = models.model("beside", Weights(21))
        await rig.target.deploy(model)
        await rig.target.scale(model.key, 1)
        await healthy(rig, model.key, 1)
        assert await greets()
        await rig.target.scale(model.key, 0)
        await rig.target.remove(model.key)
        assert await greets()
        assert await replica() == their_replicas, "their replicas were started anew"
    finally:
        after = await state(dashboard)
        left = [
            app["deployed_app_config"]
            for name, app in after["applications"].items()
            if app["deployed_app_config"] and name != "theirs" and app["status"] != "DELETING"
        ]
        await dashboard.put(
            "/api/serve/applications/",
            json={"applications": left, "http_options": after["http_options"]},
        )


async def _package(dashboard: httpx.AsyncClient) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(
            "theirs.py",
            "from ray import serve\n"
            "@serve.deployment(ray_actor_options={'num_cpus': 0})\n"
            "class Greeter:\n"
            "    def __init__(self, greeting): self.greeting = greeting\n"
            "    def __call__(self, request): return self.greeting\n"
            "def app(args): return Greeter.bind(args['greeting'])\n",
        )
    name = "_ray_pkg_theirs.zip"
    answer = await dashboard.put(f"/api/packages/gcs/{name}", content=buffer.getvalue())
    assert answer.status_code == 200
    return f"gcs://{name}"


async def test_a_replica_killed_in_mid_request(
    rig: Rig, models: Shelf, dashboard: httpx.AsyncClient
) -> None:
    own = Weights(22)
    model, question = models.model("killed", own), own.question(2)
    await rig.target.deploy(model)
    try:
        await rig.target.scale(model.key, 1)
        await healthy(rig, model.key, 1)
        apps = (await state(dashboard))["applications"]
        (replica,) = apps[declarations.application_name(model.key)]["deployments"]["Model"][
            "replicas"
        ]
        os.kill(replica["pid"], signal.SIGSTOP)
        call = asyncio.ensure_future(rig.target.infer(model.key, question.request, TIMEOUT_S))
        await asyncio.wait({call}, timeout=0.05)
        assert not call.done()
        os.kill(replica["pid"], signal.SIGKILL)
        start = time.monotonic()
        try:
            question.check(await call)
        except TargetError as error:
            assert error.fault in (Fault.BROKEN, Fault.UNREACHABLE, Fault.NOT_DEPLOYED)
        assert time.monotonic() - start < 15
        # Ray starts another.
        await healthy(rig, model.key, 1)

        async def answers() -> bool:
            try:
                question.check(await rig.target.infer(model.key, question.request, 5))
            except TargetError:
                return False
            return True

        await eventually("another replica answers", answers, rig.patience_s)
    finally:
        await rig.target.remove(model.key)


@pytest.mark.parametrize(
    ("num_cpus", "replicas", "said"),
    [
        (64, 1, "quota: no node of the cluster is as large as a replica, which needs 64 CPU"),
        (3, 2, "quota: the cluster has no room now for a replica, which needs 3 CPU"),
    ],
)
async def test_a_cluster_without_room_says_so(
    rig: Rig, models: Shelf, weights: Weights, num_cpus: int, replicas: int, said: str
) -> None:
    model = models.model("large", weights)
    async with another(rig, num_cpus=num_cpus) as target:
        await target.deploy(model)
        try:
            await target.scale(model.key, replicas)

            async def told() -> bool:
                health = await target.health(model.key)
                assert health.wanted == replicas
                return health.reason == said

            await eventually("the reason is the quota", told, rig.patience_s)
        finally:
            await target.remove(model.key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "sha256:" + "0" * 64}, "its digest is"),
        ({"url": "http://127.0.0.1:1/nothing"}, "cannot be fetched"),
    ],
)
async def test_other_bytes_are_never_served(
    rig: Rig, models: Shelf, change: dict[str, str], said: str
) -> None:
    own = Weights(25)
    model = dataclasses.replace(models.model("digest", own), **change)  # type: ignore[arg-type]
    await rig.target.deploy(model)
    try:
        await rig.target.scale(model.key, 1)

        async def told() -> bool:
            health = await rig.target.health(model.key)
            assert health.ready == 0
            return said in health.reason

        await eventually("the reason is told", told, rig.patience_s)
        error = await fault_of(rig, rig.target.infer(model.key, own.question().request, TIMEOUT_S))
        assert error.fault is Fault.NOT_DEPLOYED
    finally:
        await rig.target.remove(model.key)


async def test_an_application_of_another_target_is_not_touched(
    rig: Rig, deployed: CloudModel, weights: Weights
) -> None:
    stranger = kind.open_target(dataclasses.replace(rig.settings, name="stranger"))
    try:
        for call in (
            stranger.deploy(deployed),
            stranger.scale(deployed.key, 0),
            stranger.health(deployed.key),
        ):
            assert (await fault_of(rig, call)).fault is Fault.CONFLICT
        await stranger.remove(deployed.key)
    finally:
        await stranger.close()
    question = weights.question()
    question.check(await rig.target.infer(deployed.key, question.request, TIMEOUT_S))


async def test_a_cluster_that_is_silent(
    rig: Rig, deployed: CloudModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "TIMEOUT_S", 0.3)
    dashboard = [p for p in place.family(os.getpid()) if "dashboard.py" in place.title(p)]
    assert dashboard
    for process in dashboard:
        process.suspend()
    try:
        for call in (
            rig.target.describe(),
            rig.target.deploy(deployed),
            rig.target.scale(deployed.key, 2),
            rig.target.health(deployed.key),
            rig.target.remove(deployed.key),
        ):
            assert (await fault_of(rig, call, within_s=5)).fault is Fault.TIMEOUT
    finally:
        for process in dashboard:
            process.resume()


async def test_a_cluster_that_goes_away(rig: Rig, deployed: CloudModel, weights: Weights) -> None:
    given = rig.settings.options
    relays = {key: Relay(urlsplit(given[key]).port or 0) for key in ("address", "serve_url")}
    question = weights.question()
    async with another(
        rig, **{key: f"http://127.0.0.1:{relay.port}" for key, relay in relays.items()}
    ) as target:
        question.check(await target.infer(deployed.key, question.request, TIMEOUT_S))
        for relay in relays.values():
            await asyncio.to_thread(relay.close)
        for call in (
            target.infer(deployed.key, question.request, TIMEOUT_S),
            target.describe(),
            target.deploy(deployed),
            target.scale(deployed.key, 2),
            target.health(deployed.key),
            target.remove(deployed.key),
        ):
            assert (await fault_of(rig, call, within_s=5)).fault is Fault.UNREACHABLE
    assert (await rig.target.health(deployed.key)).ready == 1


async def test_nothing_of_ours_stays(rig: Rig, models: Shelf, dashboard: httpx.AsyncClient) -> None:
    model = models.model("gone", Weights(26))
    await rig.target.deploy(model)
    await rig.target.scale(model.key, 1)
    await healthy(rig, model.key, 1)
    await rig.target.remove(model.key)

    async def gone() -> bool:
        return "gone" not in json.dumps((await state(dashboard))["applications"])

    await eventually("the application is gone", gone, rig.patience_s)
