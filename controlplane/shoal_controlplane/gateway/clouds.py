"""The clouds as the gateway sees them: where a request may go when the edge is full."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal_controlplane.gateway.table import ServedModel
from shoal_shared.oip import InferReply, InferRequest


@dataclass(frozen=True, slots=True)
class CloudOption:
    """A target that can take a request now: 95 of 100 such requests are answered within
    `finish_ms`, transfer included; `price` is what this one would cost."""

    target: str
    finish_ms: float
    price: float


class Level(enum.Enum):
    """How full the devices of a model are."""

    CALM = "calm"
    """They keep up."""
    RISING = "rising"
    """They may soon be full: clouds get ready, but take nothing for it."""
    SATURATED = "saturated"
    """More comes than they can answer in time."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """What a model asks of the clouds: `excess_per_s` items a second come that the devices
    cannot answer in time; 0 unless saturated."""

    level: Level
    excess_per_s: float = 0.0


class Clouds(Protocol):
    """The targets of all deployments."""

    def options(
        self, model: ServedModel, items: int, payload_bytes: int, now: float
    ) -> Sequence[CloudOption]:
        """Targets of a model that are warm, healthy, within their budget and have room for
        `items` batch items: by expected finish, then by price."""

    async def infer(
        self, target: str, model: ServedModel, request: InferRequest, items: int, deadline: float
    ) -> InferReply:
        """Answer a request by a target until `deadline`, a reading of the clock. Raises
        `offload.target.TargetError`; the target's figures learn from either."""

    def demand(self, model: ServedModel, pressure: Pressure) -> None:
        """How full the devices are; told again at least once a second while not calm. Targets get
        warm and grow for it, and shrink some time after the last one."""


class NoClouds:
    """Where no target is known."""

    def options(
        self, model: ServedModel, items: int, payload_bytes: int, now: float
    ) -> Sequence[CloudOption]:
        return ()

    async def infer(
        self, target: str, model: ServedModel, request: InferRequest, items: int, deadline: float
    ) -> InferReply:
        raise LookupError(target)

    def demand(self, model: ServedModel, pressure: Pressure) -> None:
        return
