"""Models on AKS or any Kubernetes.

Where the cluster has KServe, a model is an InferenceService; else a Deployment and a Service that
run KServe's own model server (`server`). Either way a Secret holds a random token that the
pods demand of who asks them. Names follow from model and version; what has such a name but is not
Shoal's is left alone.

Source: Kubernetes API reference, KServe `serving.kserve.io/v1beta1`.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shoal_controlplane.offload.credentials import IDENTITY
from shoal_controlplane.offload.kserve import health as kserve_health
from shoal_controlplane.offload.kserve import objects as kserve_objects
from shoal_controlplane.offload.kserve.kind import check_runs
from shoal_controlplane.offload.kserve.kubeapi import KubeApi
from shoal_controlplane.offload.kserve.nodepools import NodePool
from shoal_controlplane.offload.kserve.objects import Json, object_name
from shoal_controlplane.offload.kserve.options import KserveOptions
from shoal_controlplane.offload.oipclient import OipClient
from shoal_controlplane.offload.target import (
    CloudModel,
    Description,
    Fault,
    Health,
    Price,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.oip import InferReply, InferRequest

KSERVE = "/apis/serving.kserve.io/v1beta1"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model answers, and what its pods want to see."""

    url: str
    headers: Mapping[str, str]


class KserveTarget:
    """A namespace of a cluster."""

    def __init__(
        self, settings: TargetSettings, options: KserveOptions, pool: NodePool | None = None
    ) -> None:
        self._settings = settings
        self._options = options
        self._pool = pool
        self._api = KubeApi(settings.credential, options.kubeconfig, options.context)
        self._oip = OipClient()
        self._inference_services: bool | None = None
        self._models: dict[ModelKey, CloudModel] = {}
        self._wanted: dict[ModelKey, int] = {}
        self._places: dict[ModelKey, _Place] = {}

    async def describe(self) -> Description:
        """Reach the API server and say what it is. Raises `TargetError` CREDENTIALS where it may
        not deploy."""
        self._inference_services = None
        version = str((await self._api.get("/version")).get("gitVersion", "of unknown version"))
        through = await self._through_kserve()
        group = "serving.kserve.io" if through else "apps"
        resource = "inferenceservices" if through else "deployments"
        await self._check_allowed(group, resource)
        facts: dict[str, Any] = {
            "version": version,
            "namespace": self._options.namespace,
            "runs": "InferenceService" if through else "Deployment",
        }
        if self._pool is not None:
            state = await self._pool.state()
            facts["nodes"] = state.count
            facts["node_pool"] = state.provisioning
        host = await self._api.host()
        return Description(
            f"Kubernetes {version} at {host}, namespace {self._options.namespace}", facts
        )

    async def deploy(self, model: CloudModel) -> None:
        """Make the model's objects, with no replica; or bring what is there up to date."""
        await check_runs(model)
        through = await self._through_kserve()
        if not through and not self._options.image:
            raise TargetError(
                Fault.UNSUPPORTED,
                "this cluster has no KServe, so pods run Shoal's server: name its image by the "
                "option image",
            )
        key, name = model.key, object_name(model.key)
        owner = await self._owner(key)
        secret = await self._ours(self._in("secrets", name), key)
        service = None if through else await self._ours(self._in("services", name), key)
        # All three were looked at: nothing is written beside what is not ours.
        if secret is None:
            await self._create("secrets", kserve_objects.secret(model))
        if not through:
            await self._put("services", service, kserve_objects.service(model, self._options))
        replicas = kserve_objects.replicas_of(owner) if owner else 0
        if through:
            made = kserve_objects.inference_service(model, self._options, replicas)
            await self._put("inferenceservices", owner, made)
        else:
            made = kserve_objects.deployment(model, self._options, replicas)
            await self._put("deployments", owner, made)
        self._models[key] = model
        self._wanted[key] = replicas
        self._places.pop(key, None)

    async def scale(self, model: ModelKey, replicas: int) -> None:
        """Ask for so many replicas, and for the nodes that they need."""
        owner = await self._deployed(model)
        nodes = None
        if self._pool is not None:
            others = await self._replicas_beside(model)
            nodes = self._pool.nodes_for(others + replicas)
        path = await self._owner_path(model)
        if await self._through_kserve():
            scaled = kserve_objects.with_replicas(owner, replicas)
            await self._api.replace(path, scaled)
        else:
            await self._api.merge(f"{path}/scale", {"spec": {"replicas": replicas}})
        self._wanted[model] = replicas
        if self._pool is not None and nodes is not None:
            await self._pool.resize(nodes)

    async def infer(self, model: ModelKey, request: InferRequest, timeout_s: float) -> InferReply:
        """Answer a request by one of the model's pods."""
        known = self._models.get(model)
        if known is None or not self._wanted.get(model, 0):
            why = "was not deployed there" if known is None else "has no replica there"
            raise TargetError(Fault.NOT_DEPLOYED, f"{model[0]}:{model[1]} {why}")
        end = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                place = await self._place(model)
        except TimeoutError:
            raise TargetError(
                Fault.TIMEOUT, f"the address was not found within {timeout_s * 1e3:.0f} ms"
            ) from None
        left_s = max(0.0, end - time.monotonic())
        try:
            return await self._oip.infer(place.url, request, known.signature, left_s, place.headers)
        except TargetError as error:
            if error.fault in (Fault.CREDENTIALS, Fault.UNREACHABLE, Fault.NOT_DEPLOYED):
                # The address or the token may have changed: both are looked up for the next one.
                self._places.pop(model, None)
            if error.fault is Fault.UNREACHABLE:
                await self._no_replica(model, end)
            raise

    async def health(self, model: ModelKey) -> Health:
        """How the model's pods fare."""
        owner = await self._deployed(model)
        wanted = kserve_objects.replicas_of(owner)
        self._wanted[model] = wanted
        pods = await self._pods(model)
        address = True
        if wanted and any(map(kserve_health.is_ready, pods)):
            try:
                await self._address(model)
            except TargetError as error:
                if error.fault is not Fault.NOT_DEPLOYED:
                    raise
                address = False
        events: list[Json] = []
        pool = ""
        if stuck := kserve_health.waiting_pod(pods):
            events = await self._events(stuck)
            pool = await self._pool.explain() if self._pool is not None else ""
        return kserve_health.judge(owner, wanted, pods, events, pool, address)

    async def remove(self, model: ModelKey) -> None:
        """Delete the model's objects; what is not ours stays."""
        # A cluster may have got KServe since the model was deployed.
        owners = {
            "auto": ("inferenceservices", "deployments"),
            "inferenceservice": ("inferenceservices",),
            "deployment": ("deployments",),
        }[self._options.mode]
        for kind in (*owners, "services", "secrets"):
            path = self._in(kind, object_name(model))
            found = await self._api.find(path)
            if found is not None and kserve_objects.is_ours(found, model):
                await self._api.delete(path)
        for known in (self._models, self._wanted, self._places):
            known.pop(model, None)

    def price(self) -> Price:
        """What the operator said."""
        return self._settings.price

    async def close(self) -> None:
        """End sessions and threads."""
        await self._oip.close()
        await self._api.close()
        if self._pool is not None:
            await self._pool.close()

    async def _through_kserve(self) -> bool:
        """Whether models are InferenceServices here."""
        if self._options.mode != "auto":
            return self._options.mode == "inferenceservice"
        if self._inference_services is None:
            found = await self._api.find(KSERVE)
            names = [r.get("name") for r in (found or {}).get("resources", ())]
            self._inference_services = "inferenceservices" in names
        return self._inference_services

    async def _check_allowed(self, group: str, resource: str) -> None:
        attributes = {
            "namespace": self._options.namespace,
            "verb": "create",
            "group": group,
            "resource": resource,
        }
        review = await self._api.create(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        if not review.get("status", {}).get("allowed"):
            raise TargetError(
                Fault.CREDENTIALS,
                f"these credentials may not create {resource} in namespace "
                f"{self._options.namespace}",
            )

    def _in(self, kind: str, name: str = "") -> str:
        groups = {"deployments": "/apis/apps/v1", "inferenceservices": KSERVE}
        path = f"{groups.get(kind, '/api/v1')}/namespaces/{self._options.namespace}/{kind}"
        return f"{path}/{name}" if name else path

    async def _owner_path(self, model: ModelKey) -> str:
        kind = "inferenceservices" if await self._through_kserve() else "deployments"
        return self._in(kind, object_name(model))

    async def _owner(self, model: ModelKey) -> Json | None:
        """The Deployment or InferenceService of a model, None where there is none."""
        return await self._ours(await self._owner_path(model), model)

    async def _deployed(self, model: ModelKey) -> Json:
        owner = await self._owner(model)
        if owner is None:
            raise TargetError(Fault.NOT_DEPLOYED, f"{model[0]}:{model[1]} is not deployed there")
        return owner

    async def _ours(self, path: str, model: ModelKey) -> Json | None:
        """The object at `path`, None where there is none or it is being deleted. Raises CONFLICT
        where it is not ours."""
        found = await self._api.find(path)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return None
        if not kserve_objects.is_ours(found, model):
            kind, name = path.rsplit("/", 2)[1:]
            raise TargetError(
                Fault.CONFLICT,
                f"{kind}/{name} in namespace {self._options.namespace} is not Shoal's: remove it "
                "or use another namespace",
            )
        return found

    async def _put(self, kind: str, found: Json | None, made: Json) -> None:
        """Have the object be as `made`, where `found` is what is there."""
        if found is None:
            await self._create(kind, made)
        elif (replacement := kserve_objects.updated(found, made)) is not None:
            await self._api.replace(self._in(kind, made["metadata"]["name"]), replacement)

    async def _create(self, kind: str, made: Json) -> None:
        try:
            await self._api.create(self._in(kind), made)
        except TargetError as error:
            # A list is always there, its namespace may not be.
            if error.fault is not Fault.NOT_DEPLOYED:
                raise
            metadata = {"name": self._options.namespace, "labels": kserve_objects.MANAGED}
            await self._api.create(
                "/api/v1/namespaces",
                {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata},
            )
            await self._api.create(self._in(kind), made)

    async def _pods(self, model: ModelKey) -> list[Json]:
        through = await self._through_kserve()
        label = kserve_objects.ISVC_LABEL if through else kserve_objects.INSTANCE
        selector = f"{label}={object_name(model)}"
        found = await self._api.get(self._in("pods"), labelSelector=selector)
        return list(found.get("items", ()))

    async def _events(self, pod: str) -> list[Json]:
        found = await self._api.get(
            self._in("events"), fieldSelector=f"involvedObject.name={pod}", limit="50"
        )
        return list(found.get("items", ()))

    async def _replicas_beside(self, model: ModelKey) -> int:
        """Replicas that all other models of Shoal ask for in this namespace."""
        kind = "inferenceservices" if await self._through_kserve() else "deployments"
        selector = ",".join(f"{k}={v}" for k, v in kserve_objects.MANAGED.items())
        found = await self._api.get(self._in(kind), labelSelector=selector)
        own = object_name(model)
        return sum(
            kserve_objects.replicas_of(item)
            for item in found.get("items", ())
            if item["metadata"]["name"] != own
        )

    async def _no_replica(self, model: ModelKey, end: float) -> None:
        """Raises NOT_DEPLOYED if no pod of the model is ready, as far as can be told in time."""
        try:
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                pods = await self._pods(model)
        except (TargetError, TimeoutError):
            return
        if not any(map(kserve_health.is_ready, pods)):
            raise TargetError(
                Fault.NOT_DEPLOYED, f"no replica of {model[0]}:{model[1]} is ready"
            ) from None

    async def _place(self, model: ModelKey) -> _Place:
        place = self._places.get(model)
        if place is None:
            base, headers = await self._address(model)
            token = await self._token(model)
            place = _Place(
                f"{base}/v2/models/{object_name(model)}",
                {**headers, "authorization": f"Bearer {token}"},
            )
            self._places[model] = place
        return place

    async def _address(self, model: ModelKey) -> tuple[str, dict[str, str]]:
        """Where a model is reached, and a Host header where that differs. Raises NOT_DEPLOYED as
        long as it has no address."""
        name, options = object_name(model), self._options
        fixed = options.endpoint_of(name)
        if await self._through_kserve():
            status = (await self._deployed(model)).get("status", {})
            inside = status.get("address", {}).get("url", "")
            url = str(status.get("url", ""))
            if self._settings.credential == IDENTITY and inside:
                url = str(inside)
            if fixed:
                # An ingress tells models apart by the host that the request names.
                host = urlsplit(url).netloc
                return fixed, {"host": host} if host else {}
            if not url:
                raise TargetError(Fault.NOT_DEPLOYED, f"KServe gave {name} no address yet")
            return url.rstrip("/"), {}
        if fixed:
            return fixed, {}
        if options.service_type == "ClusterIP":
            return f"http://{name}.{options.namespace}.svc:{options.port}", {}
        service = await self._ours(self._in("services", name), model)
        status = (service or {}).get("status", {}).get("loadBalancer", {})
        for ingress in status.get("ingress", ()):
            host = ingress.get("ip") or ingress.get("hostname")
            if host:
                host = f"[{host}]" if ":" in host else host
                return f"http://{host}:{options.port}", {}
        raise TargetError(Fault.NOT_DEPLOYED, f"the load balancer of {name} has no address yet")

    async def _token(self, model: ModelKey) -> str:
        found = await self._ours(self._in("secrets", object_name(model)), model)
        encoded = str((found or {}).get("data", {}).get(kserve_objects.TOKEN, ""))
        try:
            token = base64.b64decode(encoded, validate=True).decode("ascii").strip()
        except ValueError:
            token = ""
        if not token or not token.isprintable():
            raise TargetError(
                Fault.CREDENTIALS, f"the secret {object_name(model)} in the cluster has no token"
            )
        return token
