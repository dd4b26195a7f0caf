"""What the gateway serves: a frozen picture of models and their replicas.

Deployments publish a new picture whenever it changes; the gateway never asks the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal_shared.profiles import Profile
from shoal_shared.signature import ModelSignature


@dataclass(frozen=True, slots=True)
class Replica:
    """A model that is ready on a device which is online and not cordoned.

    `slowed` says that the device throttles since after `profile` was measured.
    """

    device: str
    profile: Profile
    slowed: bool = False


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model.

    `max_batch` is 0 where the model has no batch dimension. `labels` holds class names per
    output, for the classification extension. `platform` is Triton's name for the format, such
    as `onnxruntime_onnx`. A model without replicas is known but not ready.
    """

    name: str
    version: str
    platform: str
    signature: ModelSignature
    max_batch: int
    replicas: tuple[Replica, ...] = ()
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)

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
