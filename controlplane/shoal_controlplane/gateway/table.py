"""What the gateway serves: a frozen picture of models and their replicas.

Deployments publish a new picture whenever it changes; the gateway never asks the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal_shared.profiles import Profile
from shoal_shared.signature import ModelSignature


@dataclass(frozen=True, slots=True)
class Pipeline:
    """An epoch of a plan that is ready: each stage is loaded on its devices.

    `stages` are the devices by stage, replicas of a stage side by side, and `shares` the parts of
    the requests that each replica of the first stage gets. At most `credits` requests of a gateway
    may be under way in it. `stage_ms` is the planned compute time of each stage, `links_ms` that of
    all links together.
    """

    plan: str
    epoch: int
    stages: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    credits: int
    stage_ms: tuple[float, ...]
    links_ms: float = 0.0

    @property
    def devices(self) -> frozenset[str]:
        return frozenset(device for stage in self.stages for device in stage)


@dataclass(frozen=True, slots=True)
class Replica:
    """One place to send requests to: a model that is ready on a device which is online and not
    cordoned, or a `pipeline` of devices, and then `device` is the pipeline's own name.

    `slowed` says that the device throttles since after `profile` was measured.
    """

    device: str
    profile: Profile
    slowed: bool = False
    pipeline: Pipeline | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model.

    `max_batch` is 0 where the model has no batch dimension. `labels` holds class names per
    output, for the classification extension. `platform` is Triton's name for the format, such
    as `onnxruntime_onnx`. A model without replicas is known but not ready; if it is `sharded`, its
    requests wait for the next plan. Requests are to be answered within `slo_ms`, where it is set;
    the targets in `offload` take what the devices cannot.
    """

    name: str
    version: str
    platform: str
    signature: ModelSignature
    max_batch: int
    replicas: tuple[Replica, ...] = ()
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sharded: bool = False
    slo_ms: float | None = None
    offload: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return bool(self.replicas)


class ServingTable:
    """The current picture, replaced as a whole.

    Without a version, a request goes to the newest version that has replicas: versions in
    numeric order where they are numbers, else as text.
    """

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._default: dict[str, ServedModel] = {}
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change."""
        self._listeners.append(listener)

    def publish(self, models: Iterable[ServedModel]) -> None:
        """Replace the picture."""
        table: dict[str, dict[str, ServedModel]] = {}
        for model in models:
            table.setdefault(model.name, {})[model.version] = model
        self._models = table
        self._default = {
            name: max(versions.values(), key=lambda m: (m.ready, version_key(m.version)))
            for name, versions in table.items()
        }
        for listener in self._listeners:
            listener()

    def pipelines(self) -> list[Pipeline]:
        """Every epoch of every plan."""
        pipelines = (r.pipeline for model in self.all() for r in model.replicas)
        return [pipeline for pipeline in pipelines if pipeline is not None]

    def find(self, name: str, version: str = "") -> ServedModel | None:
        """The named version, or without `version` the default one; None if unknown."""
        if version:
            return self._models.get(name, {}).get(version)
        return self._default.get(name)

    def versions(self, name: str) -> list[str]:
        """Known versions of a model, oldest first."""
        return sorted(self._models.get(name, {}), key=version_key)

    def all(self) -> list[ServedModel]:
        """Every version of every model."""
        return [m for versions in self._models.values() for m in versions.values()]


def version_key(version: str) -> tuple[int, int, str]:
    """Sort key: numbers by value, before them everything else by text."""
    return (1, int(version), "") if version.isdecimal() else (0, 0, version)
