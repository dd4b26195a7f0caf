"""A target, as an operator added it, and what operators do by hand with models on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from shoal_controlplane.offload.target import Price, TargetSettings
from shoal_controlplane.planner.snapshot import ModelKey

Place: TypeAlias = tuple[str, ModelKey]
"""Name of a target, and a model on it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an operator said. `options` were checked by the kind; `credential` is a reference to a
    secret; `cap_per_hour` None means that spending has no cap; `created_at` is seconds since the
    epoch."""

    name: str
    kind: str
    options: Mapping[str, Any]
    credential: str
    price: Price
    cap_per_hour: float | None
    max_replicas: int
    created_at: float
    revision: int = 1

    @property
    def settings(self) -> TargetSettings:
        """What opens it."""
        return TargetSettings(
            self.name, self.kind, self.options, self.credential, self.price, self.max_replicas
        )


@dataclass(frozen=True, slots=True)
class Manual:
    """What an operator did with a model on a target, which keeps it there whatever deployments
    say: `placed` it, or fixed its `replicas`, where None leaves them to the need."""

    placed: bool = False
    replicas: int | None = None

    @property
    def is_nothing(self) -> bool:
        return not self.placed and self.replicas is None
