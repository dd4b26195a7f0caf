"""Options of a target of kind `tpu`: where its workers run, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.kserve.options import (
    Cpu,
    Image,
    KserveOptions,
    Label,
    Memory,
    Port,
    Short,
    Toleration,
)
from shoal_controlplane.offload.kserve.options import options_of as kserve_options_of
from shoal_controlplane.offload.options import converted
from shoal_controlplane.offload.target import CloudModel

Path = Annotated[str, Meta(max_length=4096, pattern=r"^(/[^\x00]*)?$")]
Size = Annotated[int, Meta(ge=1, le=65536)]

WORKER = "shoal_controlplane.offload.tpu.worker"
TOKEN_VARIABLE = "SHOAL_TPU_TOKEN"  # noqa: S105  # the variable's name

ACCELERATOR = "cloud.google.com/gke-tpu-accelerator"
TOPOLOGY = "cloud.google.com/gke-tpu-topology"
RESOURCE = "google.com/tpu"


class TpuOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All options. `launch` gke runs a worker a pod, on nodes of `accelerator` and `topology`;
    `launch` process runs a worker a process of this machine, such as a TPU VM, with its state in
    `folder`.

    `chips` is what a pod asks for, or how many this machine has: there each worker takes one. A
    single process drives a replica, so `topology` must be one host's. `platform` cpu computes
    without a TPU. `shapes` has the sizes of an item (without the batch) for inputs that leave some
    open, by model and input: `{"ppocr-det": {"x": [3, 640, 640]}}`; those are compiled ahead,
    others when they first come. The rest is as for `kserve`.
    """

    launch: Literal["gke", "process"] = "gke"
    platform: Literal["tpu", "cpu"] = "tpu"
    chips: Annotated[int, Meta(ge=0, le=8)] = 1
    shapes: dict[str, dict[str, tuple[Size, ...]]] = {}

    accelerator: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,63}$")] = "tpu-v5-lite-podslice"
    topology: Annotated[str, Meta(pattern=r"^[1-9][0-9]?(x[1-9][0-9]?){1,2}$")] = "1x1"
    kubeconfig: Path = ""
    context: Short = ""
    namespace: Label = "shoal"
    image: Image = ""
    port: Port = 8080
    service_type: Literal["LoadBalancer", "ClusterIP"] = "LoadBalancer"
    internal: bool = True
    endpoint: Annotated[str, Meta(max_length=1024)] = ""
    cpu: Cpu = "4"
    memory: Memory = "8Gi"
    tolerations: tuple[Toleration, ...] = ("google.com/tpu:NoSchedule",)

    folder: Path = ""
    python: Path = ""

    def cluster(self) -> KserveOptions:
        """Those about a cluster. Raises `InvalidError`."""
        on_tpu = self.platform == "tpu"
        return kserve_options_of(
            {
                "mode": "deployment",
                "kubeconfig": self.kubeconfig,
                "context": self.context,
                "namespace": self.namespace,
                "image": self.image,
                "port": self.port,
                "service_type": self.service_type,
                "internal": self.internal,
                "endpoint": self.endpoint,
                "cpu": self.cpu,
                "memory": self.memory,
                "gpu": self.chips if on_tpu else 0,
                "gpu_resource": RESOURCE,
                "node_selector": {ACCELERATOR: self.accelerator, TOPOLOGY: self.topology}
                if on_tpu
                else {},
                "tolerations": list(self.tolerations) if on_tpu else [],
            }
        )


def options_of(options: Mapping[str, Any]) -> TpuOptions:
    """The options in `options`. Raises `InvalidError` with a sentence that names the key."""
    checked = converted(options, TpuOptions)
    if checked.launch == "gke" and checked.platform == "tpu" and not checked.chips:
        raise InvalidError("option chips: a pod needs at least one")
    checked.cluster()
    return checked


def check_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options in full. Raises `InvalidError`."""
    full: Mapping[str, Any] = msgspec.to_builtins(options_of(options))
    return full


def worker_arguments(model: CloudModel, options: TpuOptions) -> list[str]:
    """What the worker has to know of a model, whatever starts it: all but its file, its name and
    where it listens."""
    arguments = [f"--digest={model.digest}", f"--platform={options.platform}"]
    batches = batches_of(model)
    if batches:
        arguments.append(f"--batches={','.join(map(str, batches))}")
    for name, sizes in sorted(options.shapes.get(model.name, {}).items()):
        arguments.append(f"--shape={name}={','.join(map(str, sizes))}")
    return arguments


def batches_of(model: CloudModel) -> tuple[int, ...]:
    """Batch sizes to compile; none where the model has no batch dimension."""
    if not model.max_batch or not model.signature.batchable:
        return ()
    return tuple(b for b in model.batches if b <= model.max_batch) or (1,)
