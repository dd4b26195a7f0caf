"""A deployment, as the rooms of the control plane see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.planner.snapshot import ModelKey

AUTO = 0
"""As `shards`: the planner chooses the number of stages."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What an operator asked for. `replicas` None means every device that fits; `completed`
    says that all wanted replicas were ready once; `created_at` is seconds since the epoch. With
    `require_accelerator` a replica fails rather than runs on the CPU.

    With `shards` the model is cut into so many stages over several devices, `AUTO` where the
    planner chooses; then `replicas` counts for nothing, `objective` says what the plan is to be
    best in, and `shapes` are those of the inputs that it is made for.

    Requests are to be answered within `slo_ms`; the targets that `offload` names take what devices
    cannot answer in time.
    """

    name: str
    model: str
    version: str
    replicas: int | None
    select: Mapping[str, str]
    created_at: float
    slo_ms: float | None = None
    max_batch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1
    completed: bool = False
    require_accelerator: bool = False
    shards: int | None = None
    objective: Objective = Objective.THROUGHPUT
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    offload: tuple[str, ...] = ()

    @property
    def key(self) -> ModelKey:
        return (self.model, self.version)
