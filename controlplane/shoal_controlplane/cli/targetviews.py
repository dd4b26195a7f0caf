"""What the API answers about targets, as far as the command prints it."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal_controlplane.cli.views import Time


class TargetModel(msgspec.Struct, kw_only=True):
    """A model on a target; `pinned` is the number of replicas that an operator fixed."""

    model: str
    version: str
    state: str
    ready: int
    wanted: int
    reason: str = ""
    pinned: int | None = None
    placed: bool = False
    deployments: tuple[str, ...] = ()
    mean_ms: float | None = None
    p95_ms: float | None = None
    items_per_s: float | None = None
    price_per_request: float | None = None
    requests: int = 0
    failures: int = 0

    @property
    def key(self) -> str:
        return f"{self.model}:{self.version}"


class Target(msgspec.Struct, kw_only=True):
    """A target; without a cap, `cap_per_hour` is None."""

    name: str
    kind: str
    state: str
    created_at: Time
    max_replicas: int
    reason: str = ""
    where: str = ""
    facts: dict[str, Any] = {}
    options: dict[str, Any] = {}
    credential: str = ""
    price_per_replica_hour: float = 0.0
    price_per_request: float = 0.0
    cap_per_hour: float | None = None
    left: float | None = None
    spent: float = 0.0
    spent_last_hour: float = 0.0
    ready: int = 0
    deployments: tuple[str, ...] = ()
    models: tuple[TargetModel, ...] = ()


class TargetCheck(msgspec.Struct, kw_only=True):
    """Whether a target could be reached, and a sentence about it."""

    ok: bool
    message: str
    facts: dict[str, Any] = {}
    models: tuple[TargetModel, ...] = ()
