"""A stand-in for KServe's controller: InferenceServices become Deployments and Services, by the
ServingRuntime that they name, as its raw deployment mode does."""

from __future__ import annotations

import copy
import threading

from support.kubernetes import Api, ApiError, Json

_PERIOD_S = 0.1
_MODELS = "/mnt/models"
_FETCH = (
    "import sys, urllib.request; uri, folder = sys.argv[1:]; "
    "open(folder + '/' + uri.rsplit('/', 1)[1], 'wb').write(urllib.request.urlopen(uri).read())"
)
_VOLUME = "kserve-provision-location"


def definitions() -> list[Json]:
    """KServe's resources, without their schemas."""
    made = []
    for kind, version in (("InferenceService", "v1beta1"), ("ServingRuntime", "v1alpha1")):
        plural = f"{kind.lower()}s"
        names = {
            "kind": kind,
            "plural": plural,
            "singular": kind.lower(),
            "listKind": f"{kind}List",
        }
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        made.append(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.serving.kserve.io"},
                "spec": {
                    "group": "serving.kserve.io",
                    "names": names,
                    "scope": "Namespaced",
                    "versions": [
                        {
                            "name": version,
                            "served": True,
                            "storage": True,
                            "subresources": {"status": {}},
                            "schema": {"openAPIV3Schema": schema},
                        }
                    ],
                },
            }
        )
    return made


class KserveController:
    """Runs on a thread of its own."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failures: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(20)

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            try:
                for isvc in self._api.items("/apis/serving.kserve.io/v1beta1/inferenceservices"):
                    self._reconcile(isvc)
            except (ApiError, OSError) as error:
                self.failures.append(str(error))

    def _reconcile(self, isvc: Json) -> None:
        name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
        path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{name}"
        model = isvc["spec"]["predictor"]["model"]
        runtimes = f"/apis/serving.kserve.io/v1alpha1/namespaces/{namespace}/servingruntimes"
        try:
            runtime = self._api.call("GET", f"{runtimes}/{model.get('runtime', '')}")
        except ApiError as error:
            if error.status != 404:
                raise
            failure = {"message": f"no runtime found to support {model['modelFormat']}"}
            self._api.status(path, {"modelStatus": {"lastFailureInfo": failure}})
            return
        made = _deployment(isvc, runtime)
        deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        services = f"/api/v1/namespaces/{namespace}/services"
        for where, wanted in ((deployments, made), (services, _service(isvc))):
            self._ensure(where, wanted)
        live = self._api.call("GET", f"{deployments}/{made['metadata']['name']}")
        service = self._api.call("GET", f"{services}/{name}-predictor")
        ingress = service["status"].get("loadBalancer", {}).get("ingress")
        ready = live.get("status", {}).get("readyReplicas", 0) > 0
        status: Json = {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "modelStatus": {"lastFailureInfo": None},
        }
        if ingress:
            port = service["spec"]["ports"][0]["port"]
            status["url"] = f"http://{ingress[0]['ip']}:{port}"
        told = isvc.get("status", {})
        if any(told.get(key) != status.get(key) for key in ("url", "conditions")):
            self._api.status(path, status)

    def _ensure(self, where: str, wanted: Json) -> None:
        try:
            live = self._api.call("GET", f"{where}/{wanted['metadata']['name']}")
        except ApiError as error:
            if error.status != 404:
                raise
            self._api.call("POST", where, wanted)
            return
        mark = "made-from"
        if live["metadata"]["annotations"].get(mark) != wanted["metadata"]["annotations"][mark]:
            spec = {**live["spec"], **wanted["spec"]}
            notes = {**live["metadata"]["annotations"], **wanted["metadata"]["annotations"]}
            metadata = {**live["metadata"], "annotations": notes}
            self._api.call(
                "PUT",
                f"{where}/{wanted['metadata']['name']}",
                {**wanted, "metadata": metadata, "spec": spec},
            )


def _metadata(isvc: Json) -> Json:
    owner = {
        "apiVersion": isvc["apiVersion"],
        "kind": isvc["kind"],
        "name": isvc["metadata"]["name"],
        "uid": isvc["metadata"]["uid"],
        "controller": True,
    }
    return {
        "name": f"{isvc['metadata']['name']}-predictor",
        "annotations": {"made-from": str(isvc["metadata"]["generation"]) + _stopped(isvc)},
        "ownerReferences": [owner],
    }


def _stopped(isvc: Json) -> str:
    return str(isvc["metadata"].get("annotations", {}).get("serving.kserve.io/stop", "false"))


def _service(isvc: Json) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(isvc),
        "spec": {
            "type": "LoadBalancer",
            "selector": {"serving.kserve.io/inferenceservice": isvc["metadata"]["name"]},
            "ports": [{"name": "http", "port": 8080, "targetPort": 8080}],
        },
    }


def _deployment(isvc: Json, runtime: Json) -> Json:
    predictor = isvc["spec"]["predictor"]
    model = predictor["model"]
    container = copy.deepcopy(runtime["spec"]["containers"][0])
    args = [a.replace("{{.Name}}", isvc["metadata"]["name"]) for a in container.get("args", ())]
    container["args"] = [*args, *model.get("args", ())]
    container["env"] = [*container.get("env", ()), *model.get("env", ())]
    container["resources"] = model.get("resources", {})
    mount = {"name": _VOLUME, "mountPath": _MODELS}
    container["volumeMounts"] = [{**mount, "readOnly": True}]
    # KServe's webhook adds this one.
    init = {
        "name": "storage-initializer",
        "image": "kserve/storage-initializer",
        "command": ["python", "-c", _FETCH],
        "args": [model["storageUri"], _MODELS],
        "volumeMounts": [mount],
    }
    labels = {"serving.kserve.io/inferenceservice": isvc["metadata"]["name"]}
    pod = {
        **{k: v for k, v in runtime["spec"].items() if k in ("securityContext",)},
        "containers": [container],
        "initContainers": [init],
        "volumes": [{"name": _VOLUME, "emptyDir": {}}],
        "automountServiceAccountToken": predictor.get("automountServiceAccountToken", True),
    }
    replicas = 0 if _stopped(isvc) == "true" else predictor.get("minReplicas", 1)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(isvc),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
