"""The TPU worker on GKE: a Deployment on nodes with TPUs, everything else as for `kserve`.

Pods run as root without privileges: device files of TPUs belong to root. Of root's powers they keep
that to lock memory, which TPUs reach directly.

Source: "Deploy TPU workloads in GKE", cloud.google.com/kubernetes-engine/docs/how-to/tpus.
"""

from __future__ import annotations

import hashlib
import json

from shoal_controlplane.offload.kserve import objects as kserve_objects
from shoal_controlplane.offload.kserve.cluster import KserveTarget
from shoal_controlplane.offload.kserve.objects import Json, object_name
from shoal_controlplane.offload.target import CloudModel, Fault, TargetError, TargetSettings
from shoal_controlplane.offload.tpu.kind import check_runs
from shoal_controlplane.offload.tpu.options import (
    TOKEN_VARIABLE,
    WORKER,
    TpuOptions,
    worker_arguments,
)

_GRACE_S = 25  # a spot TPU is taken away after 30
_COMPILING_S = 1800


class GkeTarget(KserveTarget):
    """A namespace of a GKE cluster."""

    def __init__(self, settings: TargetSettings, options: TpuOptions) -> None:
        super().__init__(settings, options.cluster(), None)
        self._tpu = options
        self._arguments: dict[str, list[str]] = {}

    async def deploy(self, model: CloudModel) -> None:
        """Make the model's objects, once its operators are known to be there."""
        if not self._tpu.image:
            raise TargetError(
                Fault.UNSUPPORTED, "name the image of the TPU worker by the option image"
            )
        await check_runs(model)
        name = object_name(model.key)
        self._arguments[name] = [model.url, f"--name={name}", *worker_arguments(model, self._tpu)]
        await super().deploy(model)

    async def _put(self, kind: str, found: Json | None, made: Json) -> None:
        if kind == "deployments":
            made = worker_deployment(made, self._arguments[made["metadata"]["name"]], self._tpu)
        await super()._put(kind, found, made)


def worker_deployment(made: Json, arguments: list[str], options: TpuOptions) -> Json:
    """The Deployment of a model by `kserve.objects`, with the TPU worker in its pods."""
    pod = made["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    token = next(v for v in server["env"] if v["name"] == kserve_objects.TOKEN_VARIABLE)
    container = {
        **server,
        "name": "tpu-worker",
        "command": ["python", "-m", WORKER],
        "args": [*arguments, "--host=0.0.0.0", f"--port={options.port}"],
        "env": [{**token, "name": TOKEN_VARIABLE}],
        # It listens at once, and is ready when all is compiled.
        "startupProbe": {
            **server["startupProbe"],
            "httpGet": {"path": "/v2/health/ready", "port": "http"},
            "failureThreshold": _COMPILING_S // server["startupProbe"]["periodSeconds"],
        },
        "readinessProbe": {
            **server["readinessProbe"],
            "httpGet": {"path": "/v2/health/ready", "port": "http"},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  # of the container
    }
    pod = {
        **pod,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],  # JAX and libtpu write logs and locks
        "terminationGracePeriodSeconds": _GRACE_S,
    }
    if options.platform == "tpu":
        pod["securityContext"] = {"seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 0}
        container["securityContext"] = {
            **server["securityContext"],
            "capabilities": {"drop": ["ALL"], "add": ["SYS_RESOURCE"]},
        }
    spec = made["spec"]
    changed = {**spec, "template": {**spec["template"], "spec": pod}}
    # A TPU node pool has no node to spare for a second pod beside the first.
    changed["strategy"] = {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }
    metadata = made["metadata"]
    marked = {key: value for key, value in changed.items() if key != "replicas"}
    mark = hashlib.sha256(json.dumps(marked, sort_keys=True).encode()).hexdigest()[:32]
    notes = {**metadata["annotations"], kserve_objects.SPEC: mark}
    return {**made, "metadata": {**metadata, "annotations": notes}, "spec": changed}
