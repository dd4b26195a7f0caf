"""What an operator says about an Azure ML workspace, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.options import converted

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._()-]{0,89}$")]


@dataclass(frozen=True, slots=True)
class Cloud:
    """Addresses of one of Azure's clouds, and the audience of tokens for scoring."""

    resource_manager: str
    authority: str
    audience: str


CLOUDS: Mapping[str, Cloud] = {
    "AzureCloud": Cloud(
        "https://management.azure.com",
        "https://login.microsoftonline.com",
        "https://ml.azure.com",
    ),
    "AzureUSGovernment": Cloud(
        "https://management.usgovcloudapi.net",
        "https://login.microsoftonline.us",
        "https://ml.azure.us",
    ),
    "AzureChinaCloud": Cloud(
        "https://management.chinacloudapi.cn",
        "https://login.chinacloudapi.cn",
        "https://ml.azure.cn",
    ),
}


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a target of kind `azureml`.

    `tenant` and `client` are those of a service principal, whose secret the credential refers to;
    with the credential `identity`, `client` is a managed identity that a user assigned. An
    instance answers `concurrency` requests at once and Azure queues as many again.
    `resource_manager`, `authority` and `audience` replace the cloud's addresses; `storage_url` is
    where the workspace's storage account is reached, with `{account}` in the place of its name;
    `ca_file` holds the certificates to trust instead of the system's. Azure is asked every
    `poll_s` seconds about a change that is under way.
    """

    subscription: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Fa-f-]{36}$")]
    resource_group: Name
    workspace: Name
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9]{0,7}$")] = "shoal"
    instance_type: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]{1,64}$")] = "Standard_DS3_v2"
    auth_mode: Literal["key", "aad_token"] = "key"
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    tenant: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.-]{0,128}$")] = ""
    client: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{0,64}$")] = ""
    cloud: Literal["AzureCloud", "AzureUSGovernment", "AzureChinaCloud"] = "AzureCloud"
    resource_manager: str = ""
    authority: str = ""
    audience: str = ""
    storage_url: str = ""
    ca_file: str = ""
    poll_s: Annotated[float, msgspec.Meta(ge=0.01, le=60.0)] = 5.0

    @property
    def addresses(self) -> Cloud:
        """The cloud's addresses, without a slash at their ends."""
        known = CLOUDS[self.cloud]
        return Cloud(
            (self.resource_manager or known.resource_manager).rstrip("/"),
            (self.authority or known.authority).rstrip("/"),
            (self.audience or known.audience).rstrip("/"),
        )


def parse_options(options: Mapping[str, Any]) -> Options:
    """The options of a target. Raises `InvalidError` with a sentence that names the key."""
    parsed = converted(options, Options)
    for key in ("resource_manager", "authority", "audience", "storage_url"):
        value = getattr(parsed, key)
        if value and not _is_address(value):
            raise InvalidError(f"option {key} is not an address that starts with https://")
    if parsed.ca_file and not parsed.ca_file.startswith("/"):
        raise InvalidError("option ca_file is not the full path of a file")
    return parsed


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        sound = parts.hostname is not None and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    # No user and no query: both carry secrets, and options are shown.
    plain = re.fullmatch(r"https://[A-Za-z0-9.:/{}_\[\]-]+", text) is not None
    return sound and plain and len(text) <= 256
