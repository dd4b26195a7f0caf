"""Options of a target of kind `kserve`: which cluster, and what a replica is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.options import converted

Label = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Cpu = Annotated[str, Meta(pattern=r"^([1-9][0-9]{0,5}m?|0?\.[0-9]{1,3}|[0-9]{1,3}\.[0-9]{1,3})$")]
Memory = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,14}(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
Image = Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/@-]{0,254})?$")]
Path = Annotated[str, Meta(max_length=4096, pattern=r"^(/[^\x00]*)?$")]
Port = Annotated[int, Meta(ge=1024, le=65535)]
Short = Annotated[str, Meta(max_length=253, pattern=r"^[^\x00-\x1f]*$")]
Toleration = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]{0,200}(=[A-Za-z0-9._-]{0,63})?"
        r":(NoSchedule|PreferNoSchedule|NoExecute)$"
    ),
]

_PLACEHOLDER = re.compile(r"\{(name|namespace|port)\}")


class AksOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A node pool of AKS that grows and shrinks with the replicas. `replicas_per_node` is how
    many fit onto one node."""

    subscription: Annotated[str, Meta(pattern=r"^[0-9a-fA-F-]{36}$")]
    resource_group: Annotated[str, Meta(min_length=1, max_length=90, pattern=r"^[\w().-]+$")]
    cluster: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
    node_pool: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9]{0,11}$")]
    max_nodes: Annotated[int, Meta(ge=1, le=1000)]
    min_nodes: Annotated[int, Meta(ge=0, le=1000)] = 0
    replicas_per_node: Annotated[int, Meta(ge=1, le=250)] = 1


class KserveOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All options. `launch` cluster runs models in pods, `launch` process in processes of this
    machine, by `python` and with their state in `folder`; the rest is about a cluster. `mode` auto
    takes KServe's InferenceService where the cluster has it.

    `kubeconfig` is a file that only its user may read; `context` one of its contexts. `endpoint`
    is where the gateway reaches a model, such as `http://10.0.0.4:{port}` or
    `https://{name}.{namespace}.example.com`; left out, the address comes from the cluster.
    `internal` keeps load balancers inside the virtual network.
    """

    launch: Literal["cluster", "process"] = "cluster"
    python: Path = ""
    folder: Path = ""
    kubeconfig: Annotated[str, Meta(max_length=4096)] = ""
    context: Short = ""
    namespace: Label = "shoal"
    mode: Literal["auto", "inferenceservice", "deployment"] = "auto"
    runtime: Annotated[str, Meta(pattern=r"^[a-z0-9.-]{0,63}$")] = "shoal-onnx"
    image: Image = ""
    port: Port = 8080
    service_type: Literal["LoadBalancer", "ClusterIP"] = "LoadBalancer"
    internal: bool = True
    endpoint: Annotated[str, Meta(max_length=1024)] = ""
    cpu: Cpu = "1"
    memory: Memory = "1Gi"
    gpu: Annotated[int, Meta(ge=0, le=64)] = 0
    gpu_resource: Annotated[str, Meta(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = "nvidia.com/gpu"
    node_selector: dict[Short, Short] = {}
    tolerations: tuple[Toleration, ...] = ()
    aks: AksOptions | None = None

    @property
    def threads(self) -> int:
        """Threads of a replica: the CPUs that it asks for, at least one."""
        cpus = float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)
        return max(1, int(cpus))

    def endpoint_of(self, name: str) -> str:
        """Where the model whose objects are called `name` is reached, "" where the cluster
        tells."""
        values = {"name": name, "namespace": self.namespace, "port": str(self.port)}
        return _PLACEHOLDER.sub(lambda m: values[m[1]], self.endpoint).rstrip("/")


def options_of(options: Mapping[str, Any]) -> KserveOptions:
    """The options in `options`. Raises `InvalidError` with a sentence that names the key."""
    checked = converted(options, KserveOptions)
    if checked.kubeconfig and not checked.kubeconfig.startswith("/"):
        raise InvalidError("option kubeconfig: give the whole path, from / on")
    if checked.aks is not None and checked.aks.min_nodes > checked.aks.max_nodes:
        raise InvalidError("option aks: min_nodes is more than max_nodes")
    if checked.endpoint:
        _check_endpoint(checked.endpoint_of("name"))
    return checked


def check_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options in full. Raises `InvalidError`."""
    full: Mapping[str, Any] = msgspec.to_builtins(options_of(options))
    return full


def _check_endpoint(url: str) -> None:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known or set("{}@?#\\ ") & set(url):
        raise InvalidError(
            "option endpoint: give http:// or https:// with a host, and no placeholders but "
            "{name}, {namespace} and {port}"
        )
