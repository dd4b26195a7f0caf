"""How the API shows a deployment."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import BaseModel

from shoal_controlplane.deployments.status import Placement, Summary
from shoal_controlplane.deployments.store import Deployment
from shoal_controlplane.devices.views import ProfileView
from shoal_controlplane.events.log import timestamp
from shoal_shared.status import DeploymentState, ReplicaState


class PlacementView(BaseModel):
    """One replica; `reason` says why it does not serve."""

    device: str
    state: ReplicaState
    reason: str
    providers: list[str]
    profile: ProfileView | None


class DeploymentView(BaseModel):
    """One deployment. `replicas` is null where `all` is true; `wanted` is what that means now;
    `reason` says what keeps it from being ready."""

    name: str
    model: str
    version: str
    replicas: int | None
    all: bool
    select: dict[str, str]
    slo_ms: float | None
    max_batch: int | None
    options: dict[str, Any]
    state: DeploymentState
    reason: str
    wanted: int
    ready: int
    placements: list[PlacementView]
    created_at: str
    revision: int


def deployment_view(deployment: Deployment, summary: Summary) -> DeploymentView:
    """A deployment as the API shows it."""
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
        state=summary.state,
        reason=summary.reason,
        wanted=summary.wanted,
        ready=summary.ready,
        placements=[_placement_view(p) for p in summary.placements],
        created_at=timestamp(deployment.created_at),
        revision=deployment.revision,
    )


def _placement_view(placement: Placement) -> PlacementView:
    profile = placement.profile
    return PlacementView(
        device=placement.device,
        state=placement.state,
        reason=placement.reason,
        providers=list(placement.providers),
        profile=(
            None if profile is None else ProfileView.model_validate(msgspec.to_builtins(profile))
        ),
    )
