"""How the API shows a deployment."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from pydantic import BaseModel

from shoal_controlplane.deployments.deployment import AUTO, Deployment
from shoal_controlplane.deployments.measured import Measured
from shoal_controlplane.deployments.status import Placement, Summary
from shoal_controlplane.devices.views import NodesView, ProfileView
from shoal_controlplane.events.log import timestamp
from shoal_controlplane.gateway.clouds import Level
from shoal_controlplane.gateway.saturation import Picture
from shoal_controlplane.planner.partition.problem import Objective
from shoal_shared.status import DeploymentState, ReplicaState


class PlacementView(BaseModel):
    """One replica; `reason` says why it does not serve, `fallback` that it serves on the CPU
    although its device has an accelerator, `notes` why."""

    device: str
    state: ReplicaState
    reason: str
    providers: list[str]
    profile: ProfileView | None
    variant: str
    runtime: str
    placement: NodesView | None
    golden_error: float | None
    compiled: str
    load_s: float
    notes: list[str]
    fallback: bool


class MeasuredView(BaseModel):
    """What was measured of a file of a model: t(b) = intercept + slope * b in ms.

    `accelerated` is the share of the model on accelerators, null where the device did not tell;
    `memory_bytes` is 0 where it was not measured.
    """

    variant: str
    board: str
    runtime: str
    profile: ProfileView
    memory_bytes: int
    accelerated: float | None
    updated_at: str

    @property
    def key(self) -> str:
        """What lists are sorted by."""
        return " ".join((self.board, self.variant, self.runtime))


class SaturationView(BaseModel):
    """How full the devices of a deployment's model are: `level` since `since` (null before the
    first change), `rho` their work against what they can do in time. `edge`, `spilled` by target,
    and `shed` are shares of what came in the last second; `sentence` says it all."""

    level: Level
    since: str | None
    rho: float
    items_per_s: float
    edge: float
    spilled: dict[str, float]
    shed: float
    sentence: str


class DeploymentView(BaseModel):
    """One deployment. `replicas` is null where `all` is true; `wanted` is what that means now;
    `reason` says what keeps it from being ready. With `shards` (else null) the model is cut into
    stages: the plan of the deployment's name tells which. `offload` are the targets that take what
    devices cannot; `saturation` is null where nobody watches."""

    name: str
    model: str
    version: str
    replicas: int | None
    all: bool
    select: dict[str, str]
    slo_ms: float | None
    max_batch: int | None
    options: dict[str, Any]
    require_accelerator: bool
    shards: int | Literal["auto"] | None
    objective: Objective
    shapes: dict[str, list[int]]
    offload: list[str]
    saturation: SaturationView | None
    state: DeploymentState
    reason: str
    wanted: int
    ready: int
    placements: list[PlacementView]
    created_at: str
    revision: int


def measured_view(variant: str, measured: Measured) -> MeasuredView:
    """What was measured of the file of that name, as the API shows it."""
    return MeasuredView(
        variant=variant,
        board=measured.board,
        runtime=measured.runtime,
        profile=ProfileView.model_validate(msgspec.to_builtins(measured.profile)),
        memory_bytes=measured.memory_bytes,
        accelerated=measured.accelerated,
        updated_at=timestamp(measured.updated_at),
    )


def deployment_view(
    deployment: Deployment, summary: Summary, pressure: Picture | None = None
) -> DeploymentView:
    """A deployment as the API shows it; `pressure` says how full its devices are."""
    return DeploymentView(
        name=deployment.name,
        model=deployment.model,
        version=deployment.version,
        replicas=deployment.replicas,
        all=deployment.replicas is None,
        select=dict(deployment.select),
        slo_ms=deployment.slo_ms,
        max_batch=deployment.max_batch,
        options=dict(deployment.options),
        require_accelerator=deployment.require_accelerator,
        shards="auto" if deployment.shards == AUTO else deployment.shards,
        objective=deployment.objective,
        shapes={name: list(shape) for name, shape in deployment.shapes.items()},
        offload=list(deployment.offload),
        saturation=None if pressure is None else _saturation_view(pressure),
        state=summary.state,
        reason=summary.reason,
        wanted=summary.wanted,
        ready=summary.ready,
        placements=[_placement_view(p) for p in summary.placements],
        created_at=timestamp(deployment.created_at),
        revision=deployment.revision,
    )


def _saturation_view(picture: Picture) -> SaturationView:
    return SaturationView(
        level=picture.level,
        since=timestamp(picture.since) if picture.since else None,
        rho=picture.rho,
        items_per_s=picture.items_per_s,
        edge=picture.edge,
        spilled=dict(picture.spilled),
        shed=picture.shed,
        sentence=picture.sentence,
    )


def _placement_view(placement: Placement) -> PlacementView:
    facts = {} if placement.report is None else msgspec.to_builtins(placement.report)
    return PlacementView(
        device=placement.device,
        state=placement.state,
        reason=placement.reason,
        providers=facts.get("providers", []),
        profile=facts.get("profile"),
        variant=facts.get("variant", ""),
        runtime=facts.get("runtime", ""),
        placement=facts.get("placement"),
        golden_error=facts.get("golden_error"),
        compiled=facts.get("compiled", ""),
        load_s=facts.get("load_s", 0.0),
        notes=facts.get("notes", []),
        fallback=placement.fallback,
    )
