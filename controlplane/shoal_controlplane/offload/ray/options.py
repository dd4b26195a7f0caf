"""Options of a target of kind `ray`: which cluster, and what a replica is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.options import converted

Address = Annotated[str, Meta(max_length=256)]
Requirement = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._<>=!~,\[\]-]{0,199}$")]


class RayOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All options. `address` is the cluster's dashboard (its REST API), such as
    `http://head:8265`; `serve_url` where Serve takes requests, such as `http://head:8000`.

    A replica takes `num_cpus` and `num_gpus` of the cluster and has up to `max_ongoing_requests`
    at once. `pip` are packages that Ray installs for the replicas, for clusters whose nodes lack
    onnxruntime or msgspec. `ca_file` holds the certificates to trust instead of the system's.
    """

    address: Address
    serve_url: Address
    num_cpus: Annotated[float, Meta(ge=0, le=1024)] = 1.0
    num_gpus: Annotated[float, Meta(ge=0, le=64)] = 0.0
    max_ongoing_requests: Annotated[int, Meta(ge=1, le=4096)] = 32
    pip: Annotated[tuple[Requirement, ...], Meta(max_length=32)] = ()
    ca_file: Annotated[str, Meta(max_length=4096)] = ""

    @property
    def threads(self) -> int:
        """Threads of a replica: the CPUs that it takes, at least one."""
        return max(1, int(self.num_cpus))


def options_of(options: Mapping[str, Any]) -> RayOptions:
    """The options in `options`. Raises `InvalidError` with a sentence that names the key."""
    checked = converted(options, RayOptions)
    for key in ("address", "serve_url"):
        if not _is_address(getattr(checked, key)):
            raise InvalidError(
                f"option {key}: give http:// or https:// with a host, and neither user nor query"
            )
    if checked.ca_file and not checked.ca_file.startswith("/"):
        raise InvalidError("option ca_file: give the whole path, from / on")
    return msgspec.structs.replace(
        checked, address=checked.address.rstrip("/"), serve_url=checked.serve_url.rstrip("/")
    )


def check_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options in full. Raises `InvalidError`."""
    full: Mapping[str, Any] = msgspec.to_builtins(options_of(options))
    return full


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    # No user: options are shown. A path, since either may lie behind a proxy.
    return bool(sound) and url.isascii() and url.isprintable() and not set("@?#\\{} ") & set(url)
