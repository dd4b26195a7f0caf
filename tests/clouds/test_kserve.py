"""Targets of kind `kserve` on a real Kubernetes control plane, with and without KServe."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from clouds.models import Shelf, Weights
from clouds.rig import eventually, only
from support.kubernetes import ApiError, Json

from shoal_controlplane.offload.kserve import objects as kserve_objects
from shoal_controlplane.offload.kserve.options import options_of
from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Fault,
    Health,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.planner.snapshot import ModelKey

kubernetes = pytest.importorskip("kubernetes", reason="needs shoal[kserve]: run `make test-clouds`")
pytest.importorskip("azure.core", reason="needs shoal[kserve]: run `make test-clouds`")

from clouds.rigs.aks import Azure  # noqa: E402
from clouds.rigs.aks import opened as opened_pool  # noqa: E402
from clouds.rigs.kserve import Cluster, cluster, manifest, with_kserve  # noqa: E402

from shoal_controlplane.offload.kserve import kubeapi  # noqa: E402
from shoal_controlplane.offload.kserve.cluster import KserveTarget  # noqa: E402
from shoal_controlplane.offload.kserve.kind import open_target  # noqa: E402

pytestmark = [
    only("kserve"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

WAYS = ("deployment", "inferenceservice")
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as running, with_kserve(running):
        yield running


@contextlib.asynccontextmanager
async def opened(settings: TargetSettings) -> AsyncIterator[CloudTarget]:
    target = open_target(settings)
    try:
        yield target
    finally:
        await target.close()


@pytest_asyncio.fixture(loop_scope="module")
async def target(found: Cluster) -> AsyncIterator[CloudTarget]:
    async with opened(found.settings(mode="deployment")) as made:
        yield made


async def until(target: CloudTarget, model: ModelKey, ready: int) -> Health:
    async def there() -> bool:
        return (await target.health(model)).ready == ready

    await eventually(f"{ready} replicas", there, 90)
    return await target.health(model)


async def reason(target: CloudTarget, model: ModelKey, part: str) -> str:
    """Wait until the health of a model says why."""

    async def told() -> bool:
        return part in (await target.health(model)).reason

    await eventually(f"health says {part!r}", told, 60)
    return (await target.health(model)).reason


@contextlib.asynccontextmanager
async def deployed(target: CloudTarget, model: CloudModel) -> AsyncIterator[None]:
    await target.deploy(model)
    try:
        yield
    finally:
        await target.remove(model.key)


async def left(found: Cluster, model: CloudModel) -> list[str]:
    """What is in the namespace for a model."""
    name = kserve_objects.object_name(model.key)
    kinds = ("pods", "secrets", "services")
    paths = [f"/api/v1/namespaces/shoal/{kind}" for kind in kinds]
    paths.append("/apis/apps/v1/namespaces/shoal/deployments")
    paths.append("/apis/serving.kserve.io/v1beta1/namespaces/shoal/inferenceservices")
    items = [i for path in paths for i in await asyncio.to_thread(found.api.items, path)]
    return [i["metadata"]["name"] for i in items if i["metadata"]["name"].startswith(name)]


@pytest.mark.parametrize("way", WAYS)
async def test_from_nothing_and_back(found: Cluster, models: Shelf, way: str) -> None:
    weights = Weights(11)
    model = models.model(f"way-{way}", weights)
    question = weights.question(3)
    async with opened(found.settings(mode=way)) as target:
        assert (await target.describe()).facts["runs"].lower() == way
        async with deployed(target, model):
            assert await target.health(model.key) == Health(0, 0)
            await target.scale(model.key, 2)
            assert await until(target, model.key, 2) == Health(2, 2)
            question.check(await target.infer(model.key, question.request, TIMEOUT_S))
            await target.scale(model.key, 0)
            with pytest.raises(TargetError) as caught:
                await target.infer(model.key, question.request, TIMEOUT_S)
            assert caught.value.fault is Fault.NOT_DEPLOYED

        async def gone() -> bool:
            return not await left(found, model)

        await eventually("nothing of the model stays", gone, 60)


async def test_the_way_is_found(found: Cluster) -> None:
    async with opened(found.settings()) as target:
        description = await target.describe()
    assert description.facts["runs"] == "InferenceService"
    assert description.facts["version"].startswith("v1.")


async def test_without_an_image_there_is_nothing_to_run(found: Cluster, models: Shelf) -> None:
    async with opened(found.settings(mode="deployment", image="")) as target:
        with pytest.raises(TargetError, match="image") as caught:
            await target.deploy(models.model("imageless", Weights(1)))
    assert caught.value.fault is Fault.UNSUPPORTED


async def test_pods_demand_the_token(found: Cluster, target: CloudTarget, models: Shelf) -> None:
    model = models.model("guarded", Weights(12))
    name = kserve_objects.object_name(model.key)
    async with deployed(target, model):
        await target.scale(model.key, 1)
        await until(target, model.key, 1)
        service = found.api.call("GET", f"/api/v1/namespaces/shoal/services/{name}")
        secret = found.api.call("GET", f"/api/v1/namespaces/shoal/secrets/{name}")
        token = base64.b64decode(secret["data"]["token"]).decode()
        ingress = service["status"]["loadBalancer"]["ingress"][0]["ip"]
        base = f"http://{ingress}:8080/v2"
        async with httpx.AsyncClient(trust_env=False) as client:
            for headers, status in (
                ({}, 401),
                ({"authorization": "Bearer x"}, 401),
                ({"authorization": f"Bearer {token}"}, 200),
            ):
                assert (await client.get(f"{base}/models/{name}", headers=headers)).status_code == (
                    status
                )
            assert (await client.get(f"{base}/models/{name}/ready")).status_code == 200


async def test_a_pod_that_never_gets_ready_says_why(target: CloudTarget, models: Shelf) -> None:
    model = dataclasses.replace(models.model("broken", Weights(13)), digest="sha256:" + "0" * 64)
    async with deployed(target, model):
        await target.scale(model.key, 1)
        said = await reason(target, model.key, "digest")
        assert "again and again" in said
        request = Weights(13).question().request
        with pytest.raises(TargetError) as caught:
            await target.infer(model.key, request, TIMEOUT_S)
        assert caught.value.fault is Fault.NOT_DEPLOYED


async def test_no_node_has_room(found: Cluster, models: Shelf) -> None:
    model = models.model("large", Weights(14))
    async with (
        opened(found.settings(mode="deployment", cpu="64")) as target,
        deployed(target, model),
    ):
        await target.scale(model.key, 1)
        said = await reason(target, model.key, "Insufficient cpu")
        assert said.startswith("quota: ")
        [pod] = [
            item
            for item in found.api.items("/api/v1/namespaces/shoal/pods")
            if "large" in item["metadata"]["name"]
        ]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "no-more-nodes", "namespace": "shoal"},
            "involvedObject": {
                "kind": "Pod",
                "namespace": "shoal",
                "name": pod["metadata"]["name"],
            },
            "reason": "NotTriggerScaleUp",
            "message": "pod didn't trigger scale-up: 1 max node group size reached",
            "type": "Normal",
        }
        found.api.apply(event)
        await reason(target, model.key, "max node group size reached")


async def test_a_gpu_goes_where_gpus_are(found: Cluster, models: Shelf) -> None:
    weights = Weights(15)
    model = models.model("gpu", weights)
    labels = {"agentpool": "gpu"}
    await asyncio.to_thread(
        found.machines.add_node, "gpu-1", labels, {"cpu": 4, "nvidia.com/gpu": 1}
    )
    options = {"mode": "deployment", "gpu": 1, "node_selector": labels}
    async with opened(found.settings(**options)) as target, deployed(target, model):
        await target.scale(model.key, 2)
        said = await reason(target, model.key, "nvidia.com/gpu")
        assert said.startswith("quota: ")
        await until(target, model.key, 1)
        question = weights.question(2)
        question.check(await target.infer(model.key, question.request, TIMEOUT_S))


async def test_a_quota_of_the_namespace_is_told(found: Cluster, models: Shelf) -> None:
    model = models.model("bounded", Weights(16))
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "bounded", "namespace": "tight"},
        "spec": {"hard": {"pods": "0"}},
    }
    found.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tight"}})
    found.api.apply(quota)

    async def counted() -> bool:
        live = found.api.call("GET", "/api/v1/namespaces/tight/resourcequotas/bounded")
        return bool(live.get("status", {}).get("hard"))

    await eventually("the quota holds", counted, 30)
    admin = found.plane.kubeconfig("admin.json", found.plane.tokens["admin"])
    settings = found.settings(mode="deployment", namespace="tight", kubeconfig=str(admin))
    async with opened(settings) as target, deployed(target, model):
        await target.scale(model.key, 1)
        said = await reason(target, model.key, "exceeded quota")
        assert said.startswith("quota: ")


async def test_an_image_that_cannot_be_pulled(
    found: Cluster, models: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.model("imageless", Weights(17))
    monkeypatch.setattr(found.machines, "images", set())
    async with (
        opened(found.settings(mode="deployment", image="registry.example.com/gone:1")) as target,
        deployed(target, model),
    ):
        await target.scale(model.key, 1)
        await reason(target, model.key, "registry.example.com/gone:1 cannot be pulled")


async def test_kserve_without_the_runtime_says_so(found: Cluster, models: Shelf) -> None:
    model = models.model("runtimeless", Weights(18))
    settings = found.settings(mode="inferenceservice", runtime="not-there")
    async with opened(settings) as target, deployed(target, model):
        await target.scale(model.key, 1)
        await reason(target, model.key, "no runtime found")


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_not_ours_is_left_alone(found: Cluster, models: Shelf, way: str) -> None:
    model = models.model(f"taken-{way}", Weights(19))
    taken: Json = {
        "deployment": kserve_objects.deployment,
        "inferenceservice": kserve_objects.inference_service,
    }[way](model, options_of(found.options), 1)
    taken["metadata"] |= {"labels": {"owner": "someone"}, "namespace": "shoal"}
    await asyncio.to_thread(found.api.apply, taken)
    async with opened(found.settings(mode=way)) as target:
        for call in (
            target.deploy(model),
            target.scale(model.key, 2),
            target.health(model.key),
        ):
            with pytest.raises(TargetError, match="not Shoal's") as caught:
                await call
            assert caught.value.fault is Fault.CONFLICT
        await target.remove(model.key)
    names = await left(found, model)
    assert kserve_objects.object_name(model.key) in names
    # Not even a secret was written beside it.
    assert not any(
        s["metadata"]["name"] == kserve_objects.object_name(model.key)
        for s in found.api.items("/api/v1/namespaces/shoal/secrets")
    )


async def test_what_is_being_deleted_is_not_deployed(found: Cluster, models: Shelf) -> None:
    model = models.model("lingering", Weights(1))
    name = kserve_objects.object_name(model.key)
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/shoal/inferenceservices/{name}"

    def finalizers(names: list[str]) -> None:
        body = {"metadata": {"finalizers": names}}
        found.api.call("PATCH", path, body, "merge-patch+json")

    async with opened(found.settings(mode="inferenceservice")) as target:
        await target.deploy(model)
        # As KServe's controller has it, which cleans up first.
        await asyncio.to_thread(finalizers, ["tests.example.com/held"])
        await target.remove(model.key)
        for call, fault in (
            (target.health(model.key), Fault.NOT_DEPLOYED),
            (target.deploy(model), Fault.CONFLICT),
        ):
            with pytest.raises(TargetError) as caught:
                await call
            assert caught.value.fault is fault
        await asyncio.to_thread(finalizers, [])
        await target.deploy(model)
        assert await target.health(model.key) == Health(0, 0)
        await target.remove(model.key)


async def test_changed_options_roll_out_and_keep_replicas(found: Cluster, models: Shelf) -> None:
    weights = Weights(20)
    model = models.model("rolled", weights)
    path = f"/apis/apps/v1/namespaces/shoal/deployments/{kserve_objects.object_name(model.key)}"
    async with opened(found.settings(mode="deployment")) as target, deployed(target, model):
        await target.scale(model.key, 1)
        await until(target, model.key, 1)
        before = found.api.call("GET", path)["metadata"]["generation"]
        await target.deploy(model)
        assert found.api.call("GET", path)["metadata"]["generation"] == before
        async with opened(found.settings(mode="deployment", cpu="750m")) as other:
            await other.deploy(model)
            live = found.api.call("GET", path)
            assert live["metadata"]["generation"] > before
            assert live["spec"]["replicas"] == 1
            container = live["spec"]["template"]["spec"]["containers"][0]
            assert container["resources"]["requests"]["cpu"] == "750m"

            async def rolled() -> bool:
                status = found.api.call("GET", path)["status"]
                return status.get("updatedReplicas") == 1 == status.get("replicas")

            await eventually("the new pod alone is there", rolled, 60)
            question = weights.question(2)
            question.check(await other.infer(model.key, question.request, TIMEOUT_S))


async def test_a_namespace_is_made_where_it_is_missing(found: Cluster, models: Shelf) -> None:
    model = models.model("fresh", Weights(21))
    admin = found.plane.kubeconfig("admin2.json", found.plane.tokens["admin"])
    settings = found.settings(mode="deployment", namespace="fresh", kubeconfig=str(admin))
    async with opened(settings) as target, deployed(target, model):
        assert (await target.health(model.key)) == Health(0, 0)
    namespace = found.api.call("GET", "/api/v1/namespaces/fresh")
    assert namespace["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "shoal"


async def test_no_rights_are_told(found: Cluster, models: Shelf) -> None:
    nobody = found.plane.kubeconfig("nobody.json", found.plane.tokens["nobody"])
    model = models.model("forbidden", Weights(1))
    async with opened(found.settings(mode="deployment", kubeconfig=str(nobody))) as target:
        for call in (target.describe(), target.deploy(model), target.health(model.key)):
            with pytest.raises(TargetError) as caught:
                await call
            assert caught.value.fault is Fault.CREDENTIALS
            assert found.plane.tokens["nobody"] not in str(caught.value)


async def test_an_ingress_tells_models_apart_by_host(found: Cluster, models: Shelf) -> None:
    weights = Weights(22)
    model = models.model("hosted", weights)
    name = kserve_objects.object_name(model.key)
    seen: list[bytes] = []

    async def ingress(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(ingress, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = found.settings(mode="inferenceservice", endpoint=f"http://127.0.0.1:{port}")
    async with server, opened(settings) as target, deployed(target, model):
        await target.scale(model.key, 1)
        await until(target, model.key, 1)
        with pytest.raises(TargetError):
            await target.infer(model.key, weights.question().request, TIMEOUT_S)
    path = f"/v2/models/{name}/infer"
    assert seen[0].startswith(f"POST {path} ".encode())
    host = next(line for line in seen[0].lower().split(b"\r\n") if line.startswith(b"host:"))
    assert host.endswith(b":8080")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("apiVersion: v1", 0o644),
        ("apiVersion: v1", 0o600),
        ("{ not yaml", 0o600),
        ("- a\n- b", 0o600),
        ("current-context: gone\ncontexts: []\nclusters: []", 0o600),
        ("", 0o600),
    ],
)
async def test_a_kubeconfig_that_cannot_be_used(
    found: Cluster, tmp_path: Path, text: str, mode: int
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    path.chmod(mode)
    async with opened(found.settings(kubeconfig=str(path))) as target:
        with pytest.raises(TargetError) as caught:
            await target.describe()
    assert caught.value.fault is Fault.CREDENTIALS
    assert "\n" not in str(caught.value)


async def test_credentials_in_clear_are_not_sent(found: Cluster, tmp_path: Path) -> None:
    path = found.plane.kubeconfig("clear.json", "secret-token", url="http://192.0.2.1:80")
    async with opened(found.settings(kubeconfig=str(path))) as target:
        with pytest.raises(TargetError, match="in clear") as caught:
            await target.describe()
    assert caught.value.fault is Fault.CREDENTIALS


async def test_a_kubeconfig_in_a_variable(found: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", Path(found.options["kubeconfig"]).read_text())
    settings = dataclasses.replace(found.settings(kubeconfig=""), credential="env:CLUSTER")
    async with opened(settings) as target:
        await target.describe()
        # It is read anew each time.
        monkeypatch.setenv("CLUSTER", "")
        with pytest.raises(TargetError) as caught:
            await target.describe()
    assert caught.value.fault is Fault.CREDENTIALS


async def test_an_api_server_that_is_gone(found: Cluster) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{free.getsockname()[1]}"
    path = found.plane.kubeconfig("gone.json", "token", url=url)
    async with opened(found.settings(kubeconfig=str(path))) as target:
        with pytest.raises(TargetError) as caught:
            await target.describe()
    assert caught.value.fault is Fault.UNREACHABLE


async def test_an_api_server_that_says_nothing(
    found: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeapi, "CALL_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        path = found.plane.kubeconfig("silent.json", "token", url=url)
        async with opened(found.settings(kubeconfig=str(path))) as target:
            with pytest.raises(TargetError) as caught:
                await target.describe()
    assert caught.value.fault is Fault.TIMEOUT


async def test_nodes_grow_with_the_replicas(found: Cluster, models: Shelf, tmp_path: Path) -> None:
    azure = Azure(tmp_path)
    azure.properties["count"] = 0
    pool = opened_pool(azure.url, azure.certificate)
    settings = found.settings(mode="deployment", cpu="64")
    target = KserveTarget(settings, options_of(settings.options), pool)
    one, other = models.model("pooled", Weights(1)), models.model("pooled-too", Weights(1))
    try:
        assert (await target.describe()).facts["nodes"] == 0
        async with deployed(target, one), deployed(target, other):
            # Two replicas fit onto a node, four nodes are allowed.
            await target.scale(one.key, 3)
            assert azure.properties["count"] == 2
            await target.scale(other.key, 2)
            assert azure.properties["count"] == 3
            await reason(target, one.key, "node pool gpu has 3 of at most 4 nodes")
            with pytest.raises(TargetError, match="may have 4") as caught:
                await target.scale(one.key, 7)
            assert caught.value.fault is Fault.QUOTA
            assert (await target.health(one.key)).wanted == 3
            azure.fails = (400, "InsufficientVCPUQuota", {})
            with pytest.raises(TargetError, match="InsufficientVCPUQuota") as caught:
                await target.scale(one.key, 5)
            assert caught.value.fault is Fault.QUOTA
            azure.fails = None
            await target.scale(one.key, 0)
            await target.scale(other.key, 0)
            assert azure.properties["count"] == 0
    finally:
        await target.close()
        azure.close()


@pytest.mark.parametrize(
    "name", ["access.yaml", "serving-runtime.yaml", "aks-gpu.yaml", "gke-tpu.yaml"]
)
async def test_manifests_are_what_the_api_server_takes(found: Cluster, name: str) -> None:
    for made in manifest(name):
        try:
            # What comes after a namespace needs it for real.
            dry = made["kind"] != "Namespace"
            taken = await asyncio.to_thread(found.api.apply, made, dry)
        except ApiError as error:
            # It is there already.
            assert error.status == 409, error
            continue
        assert not unknown_fields(made, taken), "the API server dropped a field"


async def test_tpus_are_asked_for_where_gke_has_them() -> None:
    [worker] = [o for o in manifest("gke-tpu.yaml") if o["kind"] == "Deployment"]
    pod = worker["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2",
    }
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == "4"


async def test_objects_are_taken_whole(found: Cluster, models: Shelf) -> None:
    model = models.model("whole", Weights(1))
    full = options_of(
        {
            "image": "registry.example.com/x:1",
            "gpu": 1,
            "node_selector": {"agentpool": "gpu"},
            "tolerations": ["sku=gpu:NoSchedule", "dedicated:NoExecute"],
        }
    )
    for made in (
        kserve_objects.secret(model),
        kserve_objects.service(model, full),
        kserve_objects.deployment(model, full, 1),
        kserve_objects.inference_service(model, full, 1),
    ):
        made["metadata"]["namespace"] = "shoal"
        taken = await asyncio.to_thread(found.api.apply, made, True)
        assert not unknown_fields(made, taken) - {"stringData"}


def unknown_fields(made: object, taken: object) -> set[str]:
    """Keys of `made` that are not in `taken`: the API server did not know them."""
    if isinstance(made, dict) and isinstance(taken, dict):
        lost = set(made) - set(taken)
        return lost.union(*(unknown_fields(v, taken[k]) for k, v in made.items() if k in taken))
    if isinstance(made, list) and isinstance(taken, list):
        return set().union(*(unknown_fields(a, b) for a, b in zip(made, taken, strict=False)))
    return set()
