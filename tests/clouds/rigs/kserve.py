"""Kubernetes for targets of kind `kserve`: a real control plane, pods that are real processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from clouds.rig import Rig, eventually
from support.kserve_controller import KserveController, definitions
from support.kubelet import Machines
from support.kubernetes import CONTROL_PLANE, Api, ApiError, ControlPlane, Json

import shoal_controlplane.offload
from shoal_controlplane.offload.kserve.kind import open_target
from shoal_controlplane.offload.kserve.objects import TOKEN_VARIABLE
from shoal_controlplane.offload.target import Price, TargetSettings

MANIFESTS = Path(shoal_controlplane.offload.__file__).parent / "manifests"
IMAGE = "registry.example.com/shoal/kserve-server:0.1.0"
WRONG = "wrong-token-of-the-cluster-0123456789"
WRONG_OF_PODS = "wrong-token-of-the-pods-0123456789"


def manifest(name: str) -> list[Json]:
    """The objects in one of the package's files."""
    return [o for o in yaml.safe_load_all((MANIFESTS / name).read_text()) if o]


@dataclass
class Cluster:
    """A cluster with one node; `options` reach it with the rights that the manifests give."""

    plane: ControlPlane
    machines: Machines
    api: Api
    options: dict[str, Any]

    def settings(self, **options: Any) -> TargetSettings:
        return TargetSettings(
            name="cluster",
            kind="kserve",
            options={**self.options, **options},
            price=Price(per_replica_hour=0.5, per_request=1e-6),
            max_replicas=2,
        )


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and end it whatever happened."""
    with contextlib.ExitStack() as stack:
        plane = ControlPlane(folder)
        stack.callback(plane.close)
        api = plane.api()
        machines = Machines(api, folder)
        stack.callback(machines.close)
        machines.add_node("node-1", {"agentpool": "cpu"}, {"cpu": 8})
        for made in manifest("access.yaml"):
            api.apply(made)
        machines.start()
        kubeconfig = plane.kubeconfig("kubeconfig.json", plane.tokens[CONTROL_PLANE])
        options = {"kubeconfig": str(kubeconfig), "image": IMAGE, "cpu": "500m"}
        yield Cluster(plane, machines, api, options)


@contextlib.contextmanager
def with_kserve(found: Cluster) -> Iterator[None]:
    """Have KServe in the cluster."""
    for made in definitions():
        found.api.apply(made)
    controller = KserveController(found.api)
    runtime = manifest("serving-runtime.yaml")[0]
    created = False
    while not created:
        # A new kind is served a moment after its definition was accepted.
        with contextlib.suppress(ApiError):
            found.api.apply(runtime)
            created = True
    controller.start()
    try:
        yield
    finally:
        controller.close()


@contextlib.asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """See `clouds.rig`."""
    with contextlib.ExitStack() as stack:
        found = await asyncio.to_thread(stack.enter_context, cluster(folder))
        settings = found.settings()
        wrong = found.plane.kubeconfig("wrong.json", WRONG)
        target = open_target(settings)
        refused = open_target(found.settings(kubeconfig=str(wrong)))

        @contextlib.asynccontextmanager
        async def stalled() -> AsyncIterator[None]:
            with found.machines.frozen():
                yield

        @contextlib.asynccontextmanager
        async def revoked() -> AsyncIterator[None]:
            # Pods that were started anew with another token than the secret holds.
            await _restarted(found.machines, {TOKEN_VARIABLE: WRONG_OF_PODS})
            try:
                yield
            finally:
                await _restarted(found.machines, {})

        try:
            yield Rig(
                settings=settings,
                target=target,
                refused=refused,
                secrets=(*found.plane.tokens.values(), WRONG, WRONG_OF_PODS),
                stalled=stalled,
                revoked=revoked,
            )
        finally:
            await target.close()
            await refused.close()
            await asyncio.to_thread(stack.close)


async def _restarted(machines: Machines, forced: dict[str, str]) -> None:
    machines.forced = forced
    await asyncio.to_thread(machines.restart)

    async def ready() -> bool:
        return machines.all_ready

    await eventually("the pods are ready again", ready, 60)
