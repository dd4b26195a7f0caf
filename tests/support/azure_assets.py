"""The workspace of the loopback Azure, where it stores what it has, and its models."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.azure_replies import Answer, Asked, RefusedError

if TYPE_CHECKING:
    from support.azure import Azure

SUBSCRIPTION = "11111111-2222-4333-8444-555555555555"
GROUP, WORKSPACE, REGION = "edge", "vision", "westeurope"
SCOPE_PATH = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
    "/providers/Microsoft.MachineLearningServices"
)
BASE = f"{SCOPE_PATH}/workspaces/{WORKSPACE}"
SYSTEM = {
    "createdAt": "2026-11-24T19:00:00.0000000Z",
    "createdBy": "shoal",
    "createdByType": "Application",
    "lastModifiedAt": "2026-11-24T19:00:00.0000000Z",
}


def json_of(asked: Asked) -> dict[str, Any]:
    try:
        body = json.loads(asked.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise RefusedError(400, "InvalidRequestContent", "The body is no JSON object")
    return body


@dataclass
class Assets:
    """Answers of the workspace, its datastore and its models."""

    azure: Azure
    models: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def workspace(self, asked: Asked) -> Answer:
        return Answer(
            200,
            {
                "id": BASE,
                "name": WORKSPACE,
                "type": "Microsoft.MachineLearningServices/workspaces",
                "location": REGION,
                "kind": "Default",
                "tags": {},
                "identity": {"type": "SystemAssigned", "principalId": "p", "tenantId": "t"},
                "properties": {
                    "friendlyName": WORKSPACE,
                    "description": "",
                    "discoveryUrl": f"{self.azure.url}/discovery",
                    "mlFlowTrackingUri": f"azureml://{REGION}.api.azureml.ms{BASE}",
                    "workspaceId": "5f0f0000-0000-4000-8000-00000000cccc",
                    "provisioningState": "Succeeded",
                    "storageAccount": f"{SCOPE_PATH}/storageAccounts/shoalstore",
                    "publicNetworkAccess": "Enabled",
                },
            },
        )

    def _datastore(self) -> dict[str, Any]:
        return {
            "id": f"{BASE}/datastores/workspaceblobstore",
            "name": "workspaceblobstore",
            "type": "Microsoft.MachineLearningServices/workspaces/datastores",
            "properties": {
                "datastoreType": "AzureBlob",
                "isDefault": True,
                "accountName": "shoalstore",
                "containerName": "azureml-blobstore-1",
                "endpoint": "core.windows.net",
                "protocol": "https",
                "credentials": {"credentialsType": "Sas"},
                "tags": {},
                "properties": {},
            },
        }

    def datastores(self, asked: Asked) -> Answer:
        return Answer(200, {"value": [self._datastore()]})

    def one_datastore(self, asked: Asked) -> Answer:
        return Answer(200, self._datastore())

    def datastore_secrets(self, asked: Asked) -> Answer:
        token = f"sv=2023-01-03&sp=rwdl&sr=c&sig={self.azure.sas}"
        return Answer(200, {"secretsType": "Sas", "sasToken": token})

    def list_models(self, asked: Asked, name: str) -> Answer:
        found = [m for k, m in self.models.items() if k[0] == name]
        if asked.query.get("listViewType") == "ActiveOnly":
            found = [m for m in found if not m["properties"]["isArchived"]]
        return Answer(200, {"value": found})

    def get_model(self, asked: Asked, name: str, version: str) -> Answer:
        if (name, version) not in self.models:
            raise RefusedError(404, "UserError", f"Model {name}:{version} not found")
        return Answer(200, self.models[name, version])

    def put_model(self, asked: Asked, name: str, version: str) -> Answer:
        properties = json_of(asked)["properties"]
        if not str(properties.get("modelUri", "")).startswith("azureml://"):
            raise RefusedError(400, "UserError", "modelUri is required")
        known = self.models.get((name, version))
        if known is not None and known["properties"]["modelUri"] != properties["modelUri"]:
            raise RefusedError(409, "UserError", "The asset path of a version cannot be changed")
        self.models[name, version] = {
            "id": f"{BASE}/models/{name}/versions/{version}",
            "name": version,
            "type": "Microsoft.MachineLearningServices/workspaces/models/versions",
            "properties": {
                "tags": {},
                "flavors": {},
                "properties": {},
                "isArchived": False,
                **{key: value for key, value in properties.items() if value is not None},
            },
            "systemData": SYSTEM,
        }
        return Answer(200 if known else 201, self.models[name, version])

    def model_of(self, identifier: str) -> dict[str, Any]:
        found = re.fullmatch(rf"{re.escape(BASE)}/models/([^/]+)/versions/([^/]+)", identifier)
        model = self.models.get((found[1], found[2])) if found else None
        if model is None or model["properties"].get("modelType") != "triton_model":
            raise RefusedError(
                400, "BadArgument", f"{identifier} is no Triton model of this workspace"
            )
        return model

    def repository(self, model: dict[str, Any]) -> tuple[str, bytes]:
        """The only model in a Triton repository. Raises `RuntimeError` as Triton would complain."""
        root = model["properties"]["modelUri"].split("/paths/", 1)[1].rstrip("/") + "/"
        files = {n.removeprefix(root): b for n, b in self.azure.blobs.items() if n.startswith(root)}
        artifacts = [n for n in files if re.fullmatch(r"[^/]+/1/model\.onnx", n)]
        if len(artifacts) != 1:
            raise RuntimeError(f"no model in the repository: {sorted(files)}")
        name = artifacts[0].split("/")[0]
        config = files.get(f"{name}/config.pbtxt", b"").decode()
        if f'name: "{name}"' not in config or 'backend: "onnxruntime"' not in config:
            raise RuntimeError(f"the configuration of {name} is not one")
        return name, files[artifacts[0]]
