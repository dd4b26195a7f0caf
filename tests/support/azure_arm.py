"""Azure Resource Manager of the loopback Azure: one Azure ML workspace.

Changes take as long as the real processes behind them need, are told by asynchronous operations,
and exclude each other, as in Azure.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.azure_assets import BASE, REGION, SCOPE_PATH, SYSTEM, Assets, json_of
from support.azure_replies import Answer, Asked, RefusedError

if TYPE_CHECKING:
    from support.azure import Azure

VERSIONS = frozenset(
    {
        "2022-02-01-preview",
        "2022-05-01",
        "2022-10-01",
        "2022-10-01-preview",
        "2022-12-01-preview",
        "2023-02-01-preview",
        "2023-04-01-preview",
        "2023-04-01",
        "2023-06-01-preview",
        "2023-08-01-preview",
        "2023-10-01",
        "2024-01-01-preview",
        "2024-04-01-preview",
        "2024-04-01",
        "2024-07-01-preview",
        "2024-10-01-preview",
        "2024-10-01",
    }
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")
_MODES = {"key": "Key", "amltoken": "AMLToken", "aadtoken": "AADToken"}


@dataclass
class Operation:
    """A change that is under way."""

    status: str = "InProgress"
    error: dict[str, str] | None = None


@dataclass
class Arm:
    """The workspace's resources, and what a test may turn: `quota` of instances, `gate` that
    changes wait at, and `failing`, the errors with which the next deployments fail."""

    azure: Azure
    quota: int = 100
    failing: list[tuple[str, str]] = field(default_factory=list)
    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    deployments: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    keys_ever: list[str] = field(default_factory=list)
    operations: dict[str, Operation] = field(default_factory=dict)
    traffic_ever: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.assets = Assets(self.azure)
        self.gate = threading.Event()
        self.gate.set()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def rotate(self, endpoint: str) -> None:
        """Both keys are new."""
        self.keys[endpoint] = [f"key-{secrets.token_hex(16)}" for _ in range(2)]
        self.keys_ever += self.keys[endpoint]

    def close(self) -> None:
        self._closed = True
        self.gate.set()
        for thread in self._threads:
            thread.join(90)

    def answer(self, asked: Asked) -> Answer:
        scope = f"{self.azure.url}/.default"
        if not self.azure.knows(asked, scope):
            raise RefusedError(
                401,
                "InvalidAuthenticationToken",
                f"The access token is invalid: {asked.bearer}",
                {"www-authenticate": f'Bearer authorization_uri="{self.azure.url}"'},
            )
        if asked.query.get("api-version") not in VERSIONS:
            raise RefusedError(
                400,
                "NoRegisteredProviderFound",
                f"No registered resource provider for {asked.query.get('api-version')}",
            )
        path = asked.path
        if path.startswith(f"{SCOPE_PATH}/locations/"):
            return self._operation(path.rsplit("/", 1)[1])
        if not path.startswith(BASE):
            raise RefusedError(404, "ResourceNotFound", f"The Resource {path} was not found.")
        for pattern, handler in _ROUTES.items():
            found = re.fullmatch(pattern, f"{asked.method} {path.removeprefix(BASE)}")
            if found:
                return handler(self, asked, *found.groups())
        self.azure.unknown.append(f"{asked.method} {path}")
        raise RefusedError(404, "NotFound", path)

    # Endpoints

    def _get_endpoint(self, asked: Asked, name: str) -> Answer:
        return Answer(200, self._endpoint(name))

    def _put_endpoint(self, asked: Asked, name: str) -> Answer:
        body = json_of(asked)
        properties, identity = body.get("properties") or {}, body.get("identity") or {}
        mode = _MODES.get(str(properties.get("authMode", "")).lower())
        if body.get("location") != REGION or not identity.get("type") or mode is None:
            raise RefusedError(400, "BadArgument", "location, identity and authMode are required")
        if not _NAME.fullmatch(name):
            raise RefusedError(400, "BadArgument", f"{name} is no name of an endpoint")
        known = self.endpoints.get(name)
        traffic = {k: int(v) for k, v in (properties.get("traffic") or {}).items() if v}
        if sum(traffic.values()) not in (0, 100):
            raise RefusedError(400, "BadArgument", "The traffic must add up to 0 or 100")
        for deployment in traffic:
            found = self.deployments.get((name, deployment))
            if found is None or found["properties"]["provisioningState"] != "Succeeded":
                raise RefusedError(400, "BadArgument", f"no deployment {deployment} for traffic")
        if known is not None:
            self._free(known)
        resource = {
            "id": f"{BASE}/onlineEndpoints/{name}",
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
            "location": REGION,
            "kind": "Managed",
            "tags": body.get("tags") or {},
            "identity": {**identity, "principalId": "p", "tenantId": "t"},
            "properties": {
                "authMode": mode,
                "description": properties.get("description"),
                "properties": properties.get("properties") or {},
                "traffic": traffic,
                "mirrorTraffic": {},
                "publicNetworkAccess": "Enabled",
                "scoringUri": f"{self.azure.url}/endpoints/{name}/score",
                "swaggerUri": f"{self.azure.url}/endpoints/{name}/swagger.json",
                "provisioningState": "Updating" if known else "Creating",
            },
            "systemData": SYSTEM,
        }
        self.endpoints[name] = resource
        if known is None:
            self.rotate(name)
        self.traffic_ever.append(traffic)
        return self._changing(201 if known is None else 200, resource, lambda: None)

    def _delete_endpoint(self, asked: Asked, name: str) -> Answer:
        if name not in self.endpoints:
            return Answer(204, b"")
        resource = self.endpoints[name]
        self._free(resource)
        own = [key for key in self.deployments if key[0] == name]
        for key in own:
            self._free(self.deployments[key])

        def gone() -> None:
            for key in own:
                self.azure.scoring.scale(*key, 0, "", b"")

        def forget() -> None:
            for key in own:
                del self.deployments[key]
            del self.endpoints[name]

        resource["properties"]["provisioningState"] = "Deleting"
        return self._changing(202, resource, gone, forget)

    def _list_keys(self, asked: Asked, name: str) -> Answer:
        if self._endpoint(name)["properties"]["authMode"] != "Key":
            raise RefusedError(400, "BadArgument", "This endpoint has no keys")
        primary, secondary = self.keys[name]
        return Answer(200, {"primaryKey": primary, "secondaryKey": secondary})

    # Deployments

    def _list_deployments(self, asked: Asked, endpoint: str) -> Answer:
        self._endpoint(endpoint)
        return Answer(200, {"value": [d for k, d in self.deployments.items() if k[0] == endpoint]})

    def _get_deployment(self, asked: Asked, endpoint: str, name: str) -> Answer:
        return Answer(200, self._deployment(endpoint, name))

    def _put_deployment(self, asked: Asked, endpoint: str, name: str) -> Answer:
        self._free(self._endpoint(endpoint))
        body = json_of(asked)
        properties, sku = body.get("properties") or {}, body.get("sku") or {}
        count = sku.get("capacity")
        if body.get("location") != REGION or properties.get("endpointComputeType") != "Managed":
            raise RefusedError(400, "BadArgument", "location and endpointComputeType are required")
        if not _NAME.fullmatch(name) or not properties.get("instanceType"):
            raise RefusedError(400, "BadArgument", "a name and instanceType are required")
        if not isinstance(count, int) or count < 1:
            raise RefusedError(400, "BadArgument", "The instance count must be at least 1")
        model = self.assets.model_of(str(properties.get("model", "")))
        known = self.deployments.get((endpoint, name))
        if known is not None:
            self._free(known)
        others = sum(
            d["sku"]["capacity"] for k, d in self.deployments.items() if k != (endpoint, name)
        )
        if others + count > self.quota:
            raise RefusedError(
                400,
                "OutOfQuota",
                f"Not enough quota available for {properties['instanceType']}. "
                f"Current usage/limit: {others}/{self.quota}. Additional needed: {count}",
            )
        resource = {
            "id": f"{BASE}/onlineEndpoints/{endpoint}/deployments/{name}",
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments",
            "location": REGION,
            "kind": "Managed",
            "tags": body.get("tags") or {},
            "sku": {"name": "Default", "tier": "Standard", "capacity": count},
            "properties": {
                "scaleSettings": {"scaleType": "Default"},
                **{key: value for key, value in properties.items() if value is not None},
                "provisioningState": "Updating" if known else "Creating",
            },
            "systemData": SYSTEM,
        }
        self.deployments[endpoint, name] = resource

        def start() -> None:
            folder, content = self.assets.repository(model)
            self.azure.scoring.scale(endpoint, name, count, folder, content)

        return self._changing(201 if known is None else 200, resource, start, fails=True)

    def _delete_deployment(self, asked: Asked, endpoint: str, name: str) -> Answer:
        if (endpoint, name) not in self.deployments:
            return Answer(204, b"")
        resource = self._deployment(endpoint, name)
        self._free(resource)
        if self.endpoints[endpoint]["properties"]["traffic"].get(name):
            raise RefusedError(400, "BadArgument", f"Deployment {name} still gets traffic")
        resource["properties"]["provisioningState"] = "Deleting"
        return self._changing(
            202,
            resource,
            lambda: self.azure.scoring.scale(endpoint, name, 0, "", b""),
            lambda: self.deployments.pop((endpoint, name)),
        )

    # Changes

    def _changing(
        self,
        status: int,
        resource: dict[str, Any],
        work: Callable[[], object],
        end: Callable[[], object] = lambda: None,
        fails: bool = False,
    ) -> Answer:
        """Answer now; `work` goes on in a thread, `end` follows with the lock held."""
        identifier, operation = str(uuid.uuid4()), Operation()
        self.operations[identifier] = operation
        failure = self.failing.pop(0) if fails and self.failing else None

        def run() -> None:
            self.gate.wait(60)
            error = failure
            try:
                if error is None and not self._closed:
                    work()
            except RuntimeError as wrong:
                error = ("UserError", str(wrong))
            with self.azure.lock:
                state = "Succeeded" if error is None else "Failed"
                resource["properties"]["provisioningState"] = state
                if error is not None:
                    operation.error = {"code": error[0], "message": error[1]}
                end()
                operation.status = state

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        url = (
            f"{self.azure.url}{SCOPE_PATH}/locations/{REGION}/mfeOperationsStatus/{identifier}"
            f"?api-version=2022-02-01-preview"
        )
        headers = {"azure-asyncoperation": url, "retry-after-ms": "200"}
        if status == 202:
            headers["location"] = url
        return Answer(status, json.loads(json.dumps(resource)), headers)

    def _operation(self, identifier: str) -> Answer:
        operation = self.operations.get(identifier)
        if operation is None:
            raise RefusedError(404, "NotFound", identifier)
        body: dict[str, Any] = {"id": identifier, "name": identifier, "status": operation.status}
        if operation.error is not None:
            body["error"] = operation.error
        return Answer(200, body, {"retry-after-ms": "200"})

    def _free(self, resource: dict[str, Any]) -> None:
        if resource["properties"]["provisioningState"] not in ("Succeeded", "Failed"):
            raise RefusedError(
                409, "Conflict", f"Another change of {resource['name']} is under way already"
            )

    def _endpoint(self, name: str) -> dict[str, Any]:
        if name not in self.endpoints:
            raise RefusedError(404, "ResourceNotFound", f"Online endpoint {name} not found")
        return self.endpoints[name]

    def _deployment(self, endpoint: str, name: str) -> dict[str, Any]:
        self._endpoint(endpoint)
        if (endpoint, name) not in self.deployments:
            raise RefusedError(404, "ResourceNotFound", f"Deployment {name} not found")
        return self.deployments[endpoint, name]


_ROUTES: dict[str, Callable[..., Answer]] = {
    "GET ": lambda arm, *asked: arm.assets.workspace(*asked),
    "GET /datastores": lambda arm, *asked: arm.assets.datastores(*asked),
    "GET /datastores/workspaceblobstore": lambda arm, *asked: arm.assets.one_datastore(*asked),
    "POST /datastores/workspaceblobstore/listSecrets": lambda arm, *asked: (
        arm.assets.datastore_secrets(*asked)
    ),
    "GET /models/([^/]+)/versions": lambda arm, *asked: arm.assets.list_models(*asked),
    "GET /models/([^/]+)/versions/([^/]+)": lambda arm, *asked: arm.assets.get_model(*asked),
    "PUT /models/([^/]+)/versions/([^/]+)": lambda arm, *asked: arm.assets.put_model(*asked),
    "GET /onlineEndpoints/([^/]+)": Arm._get_endpoint,
    "PUT /onlineEndpoints/([^/]+)": Arm._put_endpoint,
    "DELETE /onlineEndpoints/([^/]+)": Arm._delete_endpoint,
    "POST /onlineEndpoints/([^/]+)/listKeys": Arm._list_keys,
    "GET /onlineEndpoints/([^/]+)/deployments": Arm._list_deployments,
    "GET /onlineEndpoints/([^/]+)/deployments/([^/]+)": Arm._get_deployment,
    "PUT /onlineEndpoints/([^/]+)/deployments/([^/]+)": Arm._put_deployment,
    "DELETE /onlineEndpoints/([^/]+)/deployments/([^/]+)": Arm._delete_deployment,
}
