"""What a model is in a cluster: the Kubernetes objects, as plain JSON.

Source: Kubernetes API reference (apps/v1, v1), KServe `serving.kserve.io/v1beta1`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from shoal_controlplane.offload.kserve.options import KserveOptions
from shoal_controlplane.offload.target import CloudModel
from shoal_controlplane.planner.snapshot import ModelKey

Json = dict[str, Any]

MANAGED = {"app.kubernetes.io/managed-by": "shoal"}
INSTANCE = "app.kubernetes.io/instance"
ISVC_LABEL = "serving.kserve.io/inferenceservice"
MODEL = "shoal.dev/model"
DIGEST = "shoal.dev/digest"
SPEC = "shoal.dev/spec"
STOP = "serving.kserve.io/stop"
TOKEN = "token"  # noqa: S105 - a key
TOKEN_VARIABLE = "SHOAL_SERVER_TOKEN"  # noqa: S105 - a name
SERVER = "shoal_controlplane.offload.kserve.server"

# Load balancers inside the virtual network: of Azure and of Google. Each ignores the other's.
_INTERNAL = {
    "service.beta.kubernetes.io/azure-load-balancer-internal": "true",
    "networking.gke.io/load-balancer-type": "Internal",
}


def object_name(model: ModelKey) -> str:
    """A DNS-1035 label for the objects of a model, the same at any time; no other model's. Short
    enough for KServe to append to it."""
    text = f"{model[0]}:{model[1]}"
    readable = re.sub(r"[^a-z0-9]+", "-", f"{model[0]}-{model[1]}".lower()).strip("-")[:24]
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"shoal-{readable.rstrip('-')}-{digest}"


def is_ours(found: Mapping[str, Any], model: ModelKey) -> bool:
    """Whether an object was made by Shoal for this model."""
    metadata = found.get("metadata", {})
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return MANAGED.items() <= labels.items() and notes.get(MODEL) == f"{model[0]}:{model[1]}"


def secret(model: CloudModel) -> Json:
    """A new random token that the pods demand of who asks them."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(model.key),
        "type": "Opaque",
        "stringData": {TOKEN: secrets.token_urlsafe(32)},
    }


def service(model: CloudModel, options: KserveOptions) -> Json:
    """Where the pods of a Deployment are reached."""
    name = object_name(model.key)
    metadata = _metadata(model.key)
    if options.internal and options.service_type == "LoadBalancer":
        metadata["annotations"] |= _INTERNAL
    spec = {
        "type": options.service_type,
        "selector": {INSTANCE: name},
        "ports": [
            {"name": "http", "port": options.port, "targetPort": "http", "protocol": "TCP"},
        ],
    }
    return _marked({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})


def deployment(model: CloudModel, options: KserveOptions, replicas: int) -> Json:
    """Pods that run Shoal's server on KServe's library."""
    name = object_name(model.key)
    container = {
        "name": "kserve-container",
        "image": options.image,
        "command": ["python", "-m", SERVER],
        "args": [
            f"--name={name}",
            f"--url={model.url}",
            f"--digest={model.digest}",
            "--host=0.0.0.0",
            f"--port={options.port}",
            f"--threads={options.threads}",
        ],
        "env": [_token_variable(name)],
        "ports": [{"name": "http", "containerPort": options.port, "protocol": "TCP"}],
        "resources": _resources(options),
        # The server listens only once it has the model.
        "startupProbe": _probe("/v2/health/live", period=2, failures=300),
        "readinessProbe": _probe(f"/v2/models/{name}/ready", period=2, failures=2),
        "livenessProbe": _probe("/v2/health/live", period=10, failures=6),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        **_placement(options),
    }
    spec = {
        "selector": {"matchLabels": {INSTANCE: name}},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        },
        "template": {
            "metadata": {"labels": _labels(name), "annotations": {DIGEST: model.digest}},
            "spec": pod,
        },
    }
    made = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(model.key, model.digest),
        "spec": spec,
    }
    marked = _marked(made)
    marked["spec"]["replicas"] = replicas
    return marked


def inference_service(model: CloudModel, options: KserveOptions, replicas: int) -> Json:
    """The model for KServe's controller, which makes the pods."""
    name = object_name(model.key)
    predictor = {
        "model": {
            "modelFormat": {"name": model.format},
            "protocolVersion": "v2",
            "storageUri": model.url,
            "args": [f"--digest={model.digest}", f"--threads={options.threads}"],
            "env": [_token_variable(name)],
            "resources": _resources(options),
            **({"runtime": options.runtime} if options.runtime else {}),
        },
        "automountServiceAccountToken": False,
        **_placement(options),
    }
    made = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": _metadata(model.key, model.digest),
        "spec": {"predictor": predictor},
    }
    return with_replicas(_marked(made), replicas)


def with_replicas(isvc: Json, replicas: int) -> Json:
    """An InferenceService that has so many replicas, no more and no fewer."""
    metadata, spec = isvc["metadata"], isvc["spec"]
    notes = {**(metadata.get("annotations") or {}), STOP: "false" if replicas else "true"}
    predictor = {**spec["predictor"], "minReplicas": replicas, "maxReplicas": max(1, replicas)}
    return {
        **isvc,
        "metadata": {**metadata, "annotations": notes},
        "spec": {**spec, "predictor": predictor},
    }


def replicas_of(found: Mapping[str, Any]) -> int:
    """How many replicas a Deployment or InferenceService asks for."""
    spec = found.get("spec", {})
    if found.get("kind") == "InferenceService" or "predictor" in spec:
        if (found["metadata"].get("annotations") or {}).get(STOP) == "true":
            return 0
        return int(spec["predictor"].get("minReplicas", 1))
    return int(spec.get("replicas", 1))


def updated(found: Json, wanted: Json) -> Json | None:
    """`found` made as `wanted`, for a replacement that fails if it changes meanwhile; None where
    it is so already. What others wrote into it stays."""
    old, new = found["metadata"], wanted["metadata"]
    if (old.get("annotations") or {}).get(SPEC) == new["annotations"][SPEC]:
        return None
    return {
        **wanted,
        "metadata": {
            **old,
            "labels": {**(old.get("labels") or {}), **new["labels"]},
            "annotations": {**(old.get("annotations") or {}), **new["annotations"]},
        },
        "spec": {**found["spec"], **wanted["spec"]},
    }


def _metadata(model: ModelKey, digest: str = "") -> Json:
    name = object_name(model)
    notes = {MODEL: f"{model[0]}:{model[1]}"}
    if digest:
        notes[DIGEST] = digest
    return {"name": name, "labels": _labels(name), "annotations": notes}


def _labels(name: str) -> Json:
    return {**MANAGED, "app.kubernetes.io/name": "shoal-model", INSTANCE: name}


def _marked(made: Json) -> Json:
    """`made` with a digest of itself, by which a change of model or options is seen."""
    text = json.dumps(made, sort_keys=True)
    made["metadata"]["annotations"][SPEC] = hashlib.sha256(text.encode()).hexdigest()[:32]
    return made


def _token_variable(name: str) -> Json:
    return {
        "name": TOKEN_VARIABLE,
        "valueFrom": {"secretKeyRef": {"name": name, "key": TOKEN}},
    }


def _resources(options: KserveOptions) -> Json:
    asked = {"cpu": options.cpu, "memory": options.memory}
    limits = {"memory": options.memory}
    if options.gpu:
        limits[options.gpu_resource] = str(options.gpu)
    return {"requests": asked, "limits": limits}


def _placement(options: KserveOptions) -> Json:
    placement: Json = {}
    if options.node_selector:
        placement["nodeSelector"] = dict(options.node_selector)
    if options.tolerations:
        placement["tolerations"] = [_toleration(text) for text in options.tolerations]
    return placement


def _toleration(text: str) -> Json:
    taint, _, effect = text.rpartition(":")
    key, equals, value = taint.partition("=")
    if not equals:
        return {"key": key, "operator": "Exists", "effect": effect}
    return {"key": key, "operator": "Equal", "value": value, "effect": effect}


def _probe(path: str, period: int, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }
