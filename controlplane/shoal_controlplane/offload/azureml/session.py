"""Azure's SDKs for an Azure ML workspace: blocking calls with bounds, errors in plain sentences.

Everything here runs in threads of the target. The SDK is imported when a session opens, which
takes seconds. It never retries or waits by itself: what it is told to change goes on in Azure, and
its poller, a thread of its own, is kept only for the sentence with which a change failed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, BinaryIO

from shoal_controlplane.offload.azureml.credential import Credential
from shoal_controlplane.offload.azureml.errors import told
from shoal_controlplane.offload.azureml.options import Options
from shoal_controlplane.offload.azureml.plan import (
    TAG_DIGEST,
    TAG_MODEL,
    TAG_VERSION,
    Deployed,
    Observed,
    asset_version,
    triton_config,
)
from shoal_controlplane.offload.target import CloudModel, Fault, TargetError

CONNECT_S = 5.0
READ_S = 20.0
FAILURE_S = 15.0
REQUEST_MS = 60_000


class Session:
    """One workspace, reached with one credential. Raises only `TargetError`."""

    def __init__(self, options: Options, reference: str) -> None:
        self._options = options
        self._pollers: dict[str, Any] = {}
        self._closed = threading.Event()
        with told():
            self._credential = Credential(options, reference, _transport(options))
            self._ml = _client(options, self._credential)
        quieten()

    def workspace(self) -> tuple[str, str]:
        """Its region and its identifier."""
        with told():
            found = self._ml.workspaces.get(self._options.workspace)
            return str(found.location), str(found.id)

    def observe(self, endpoint: str, model: str) -> Observed:
        """The endpoint as it is. Raises CONFLICT where it is not for `model`."""
        from azure.core.exceptions import ResourceNotFoundError

        with told():
            try:
                found = self._ml.online_endpoints.get(endpoint)
            except ResourceNotFoundError:
                # For an endpoint; a workspace that is missing is told by `describe`.
                return Observed()
            if (found.tags or {}).get(TAG_MODEL) != model:
                raise TargetError(
                    Fault.CONFLICT,
                    f"the workspace has an endpoint {endpoint} that is not for model {model}: "
                    "use another prefix",
                )
            traffic = {name: int(share) for name, share in found.traffic.items() if share}
            try:
                deployments = tuple(map(_deployed, self._ml.online_deployments.list(endpoint)))
            except ResourceNotFoundError:
                # It went away in between.
                return Observed()
            return Observed(
                _word(found.provisioning_state),
                str(found.scoring_uri or ""),
                traffic,
                deployments,
            )

    def create_endpoint(self, endpoint: str, model: str) -> None:
        """Ask for an endpoint without deployments."""
        from azure.ai.ml.entities import ManagedOnlineEndpoint

        with told():
            self._pollers[endpoint] = self._ml.online_endpoints.begin_create_or_update(
                ManagedOnlineEndpoint(
                    name=endpoint, auth_mode=self._options.auth_mode, tags={TAG_MODEL: model}
                )
            )

    def delete_endpoint(self, endpoint: str) -> None:
        """Ask for its end."""
        with told():
            self._pollers[endpoint] = self._ml.online_endpoints.begin_delete(endpoint)

    def set_traffic(self, endpoint: str, traffic: Mapping[str, int]) -> None:
        """Ask for a split of the traffic in per cent."""
        with told():
            found = self._ml.online_endpoints.get(endpoint)
            found.traffic = dict(traffic)
            self._pollers[endpoint] = self._ml.online_endpoints.begin_create_or_update(found)

    def create_deployment(
        self, endpoint: str, deployment: str, model: CloudModel, instances: int
    ) -> None:
        """Ask for a deployment of a model that is registered."""
        from azure.ai.ml.entities import ManagedOnlineDeployment, OnlineRequestSettings

        with told():
            self._put(
                ManagedOnlineDeployment(
                    name=deployment,
                    endpoint_name=endpoint,
                    model=f"azureml:{endpoint}:{asset_version(model.digest)}",
                    instance_type=self._options.instance_type,
                    instance_count=instances,
                    request_settings=OnlineRequestSettings(
                        max_concurrent_requests_per_instance=self._options.concurrency,
                        request_timeout_ms=REQUEST_MS,
                    ),
                    tags={
                        TAG_MODEL: model.name,
                        TAG_VERSION: model.version,
                        TAG_DIGEST: model.digest,
                    },
                )
            )

    def scale_deployment(self, endpoint: str, deployment: str, instances: int) -> None:
        """Ask for another number of instances; also tries again what failed."""
        with told():
            found = self._ml.online_deployments.get(deployment, endpoint)
            found.instance_count = instances
            self._put(found)

    def delete_deployment(self, endpoint: str, deployment: str) -> None:
        """Ask for its end."""
        with told():
            poller = self._ml.online_deployments.begin_delete(deployment, endpoint)
            self._pollers[f"{endpoint}/{deployment}"] = poller

    def failure(self, name: str) -> str:
        """Why the last change of `ENDPOINT` or `ENDPOINT/DEPLOYMENT` that was asked for here
        failed; empty where it did not, goes on, or was not asked for here."""
        poller = self._pollers.get(name)
        if poller is None:
            return ""
        try:
            with told():
                # It may be between two looks.
                poller.wait(FAILURE_S)
        except TargetError as error:
            return str(error)
        return ""

    def key(self, endpoint: str) -> str:
        """What to score with: the endpoint's primary key, or a token."""
        with told():
            if self._options.auth_mode == "aad_token":
                scope = f"{self._options.addresses.audience}/.default"
                return str(self._credential.get_token(scope).token)
            key = self._ml.online_endpoints.get_keys(endpoint).primary_key
            if not isinstance(key, str) or not key.isascii() or not key.isprintable():
                raise TargetError(Fault.BROKEN, f"Azure told no key of endpoint {endpoint}")
            return key

    def is_registered(self, asset: str, digest: str) -> bool:
        """Whether the workspace has these bytes under this name, ready for use."""
        from azure.core.exceptions import ResourceNotFoundError

        version = asset_version(digest)
        with told():
            try:
                # The list has what is not archived.
                return any(
                    found.version == version and (found.tags or {}).get(TAG_DIGEST) == digest
                    for found in self._ml.models.list(asset)
                )
            except ResourceNotFoundError:
                return False

    def register(self, asset: str, model: CloudModel) -> None:
        """Upload a model as a Triton repository, and register it. Takes as long as it takes."""
        from azure.ai.ml.constants import AssetTypes
        from azure.ai.ml.entities import Model

        version, config = asset_version(model.digest), triton_config(model)
        root = f"shoal/{asset}/{version}"
        with told():
            container, store = self._container()
            with container, model.artifact.open("rb") as file:
                container.upload_blob(
                    f"{root}/{model.name}/1/model.onnx",
                    _Stoppable(file, self._closed),
                    length=model.artifact.stat().st_size,
                    overwrite=True,
                )
                container.upload_blob(
                    f"{root}/{model.name}/config.pbtxt", config.encode(), overwrite=True
                )
            self._ml.models.create_or_update(
                Model(
                    name=asset,
                    version=version,
                    type=AssetTypes.TRITON_MODEL,
                    path=f"azureml://datastores/{store}/paths/{root}",
                    tags={TAG_MODEL: model.name, TAG_DIGEST: model.digest},
                )
            )

    def forget(self, asset: str, digest: str) -> None:
        """Take a registered model away: its files go, its entry is archived."""
        from azure.core.exceptions import ResourceNotFoundError

        version = asset_version(digest)
        with told(), contextlib.suppress(ResourceNotFoundError):
            self._ml.models.archive(asset, version)
            container, _ = self._container()
            with container:
                prefix = f"shoal/{asset}/{version}/"
                for blob in list(container.list_blobs(name_starts_with=prefix)):
                    container.delete_blob(blob.name)

    def close(self) -> None:
        """Stop uploads. Pollers are daemons and end with their changes."""
        self._closed.set()

    def _put(self, deployment: Any) -> None:
        self._pollers[f"{deployment.endpoint_name}/{deployment.name}"] = (
            self._ml.online_deployments.begin_create_or_update(deployment)
        )

    def _container(self) -> tuple[Any, str]:
        """The blob container of the workspace's default datastore, and the datastore's name."""
        from azure.storage.blob import ContainerClient

        store = self._ml.datastores.get_default(include_secrets=True)
        kind = _word(store.type)
        if kind.lower() not in ("azureblob", "azure_blob"):
            raise TargetError(
                Fault.UNSUPPORTED,
                f"the workspace's default datastore is of type {kind[:40]}, not of blobs",
            )
        secrets = store.credentials
        credential = (
            getattr(secrets, "account_key", None)
            or getattr(secrets, "sas_token", None)
            or self._credential
        )
        pattern = (
            self._options.storage_url or f"{store.protocol}://{{account}}.blob.{store.endpoint}"
        )
        url = pattern.replace("{account}", str(store.account_name))
        if not url.startswith("https://"):
            raise TargetError(Fault.UNSUPPORTED, "the workspace's storage is not reached by https")
        client = ContainerClient(
            url, str(store.container_name), credential=credential, **_transport(self._options)
        )
        return client, str(store.name)


class _Stoppable:
    """A file that cannot be read any more once the session is closed."""

    def __init__(self, file: BinaryIO, closed: threading.Event) -> None:
        self._file, self._closed = file, closed

    def read(self, size: int = -1) -> bytes:
        if self._closed.is_set():
            raise TargetError(Fault.UNREACHABLE, "the target was closed during an upload")
        return self._file.read(size)


_CURRENT_CLOUD = "AZUREML_CURRENT_CLOUD"
_opening = threading.Lock()
"""Importing the SDK and telling it of a cloud change what the process shares: one at a time."""


def _client(options: Options, credential: Credential) -> Any:
    with _opening:
        if "azure.ai.ml" not in sys.modules:
            # The SDK names its cloud there, and who started us may have had another one. Once it
            # is in use here, what it says there is ours.
            os.environ.pop(_CURRENT_CLOUD, None)
        return _new_client(options, credential)


def _new_client(options: Options, credential: Credential) -> Any:
    from azure.ai.ml import MLClient

    # Before the first request; after it for the loggers that came with it.
    quieten()
    settings: dict[str, Any] = {
        "subscription_id": options.subscription,
        "resource_group_name": options.resource_group,
        "workspace_name": options.workspace,
        "enable_telemetry": False,
        "show_progress": False,
        "polling_interval": options.poll_s,
        **_transport(options),
    }
    if not options.resource_manager:
        return MLClient(credential, cloud=options.cloud, **settings)
    addresses = options.addresses
    metadata = {
        "azure_portal": addresses.resource_manager,
        "resource_manager": addresses.resource_manager,
        "active_directory": addresses.authority,
        "aml_resource_id": addresses.audience,
        "storage_endpoint": "core.windows.net",
        "registry_discovery_endpoint": addresses.resource_manager,
    }
    # The SDK keeps clouds for the process, each under a name that cannot be given twice.
    name = f"Shoal{sha256(repr(sorted(metadata.items())).encode()).hexdigest()[:12]}"
    try:
        return MLClient(credential, cloud=name, cloud_metadata=metadata, **settings)
    except AttributeError:
        return MLClient(credential, cloud=name, **settings)


def _transport(options: Options) -> dict[str, Any]:
    """What every pipeline of the SDKs is built with: bounds, trust, and no retries, since callers
    decide on those and must not wait for them."""
    return {
        "connection_timeout": CONNECT_S,
        "read_timeout": READ_S,
        "retry_total": 0,
        "connection_verify": options.ca_file or True,
    }


def _deployed(found: Any) -> Deployed:
    tags = found.tags or {}
    return Deployed(
        str(found.name),
        str(tags.get(TAG_VERSION, "")),
        str(tags.get(TAG_DIGEST, "")),
        _word(found.provisioning_state),
        int(found.instance_count or 0),
    )


def _word(value: Any) -> str:
    """One of Azure's words, as it is; the SDK may tell it as a member of an enum."""
    return str(getattr(value, "value", value) or "")


def quieten() -> None:
    """Keep the chatter of the SDKs out of the logs: addresses in it carry signatures, errors what
    a server said to a secret. What goes wrong is told as `TargetError`."""
    roots = {"azure": logging.CRITICAL, "msal": logging.CRITICAL, "urllib3": logging.WARNING}
    for name in (*roots, *logging.root.manager.loggerDict):
        least = roots.get(name.split(".")[0])
        logger = logging.getLogger(name)
        # Those without a level of their own have their parent's.
        if least is not None and (name in roots or logger.level):
            logger.setLevel(max(logger.level, least))
