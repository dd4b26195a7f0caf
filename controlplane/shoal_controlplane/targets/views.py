"""How the API shows targets and the models on them."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from shoal_controlplane.events.log import timestamp
from shoal_controlplane.offload.state import ModelOnTarget, State, TargetPicture
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.targets.target import Manual, Target

_NO_MANUAL = Manual()


class TargetCondition(str, enum.Enum):
    """How a target fares."""

    CONNECTING = "connecting"
    """It was not reached yet."""
    READY = "ready"
    """It can be reached, and nothing is wrong with the models on it."""
    DEGRADED = "degraded"
    """It can be reached, but a model on it failed or is left alone after failures."""
    OVER_BUDGET = "over_budget"
    """It has spent what it may: it gets no requests until the budget allows for one."""
    FAILED = "failed"
    """It cannot be used: its credentials are refused, or it cannot be reached."""


class TargetModelView(BaseModel):
    """A model on a target. `pinned` is the number of replicas that an operator fixed, null where
    it follows the need; `placed` says that an operator put the model there, `deployments` which
    ones offload to it. Latencies in ms of one item, transfer included, are null until one was
    answered; `concurrent` and `items_per_s` are those of one replica."""

    model: str
    version: str
    state: State
    reason: str
    ready: int
    wanted: int
    pinned: int | None
    placed: bool
    deployments: list[str]
    mean_ms: float | None
    p95_ms: float | None
    concurrent: float | None
    items_per_s: float | None
    price_per_request: float | None
    in_flight: int
    requests: int
    items: int
    failures: int


class TargetView(BaseModel):
    """One target. `where` and `facts` are what it says of itself; `reason` says what is wrong.
    `credential` is a reference, never a secret. Prices, `cap_per_hour` (null without a cap),
    `left` (what may be spent at once) and `spent…` are in the operator's currency; `ready` counts
    replicas of all models."""

    name: str
    kind: str
    state: TargetCondition
    reason: str
    where: str
    facts: dict[str, Any]
    options: dict[str, Any]
    credential: str
    price_per_replica_hour: float
    price_per_request: float
    cap_per_hour: float | None
    left: float | None
    spent: float
    spent_last_hour: float
    max_replicas: int
    ready: int
    deployments: list[str]
    models: list[TargetModelView]
    created_at: str
    revision: int


class CheckView(BaseModel):
    """Whether a target can be reached with its credentials; `message` says in one sentence what
    it is, or what is wrong."""

    ok: bool
    message: str
    facts: dict[str, Any]
    models: list[TargetModelView]


def target_view(
    target: Target,
    picture: TargetPicture | None,
    manual: Mapping[ModelKey, Manual],
    users: Mapping[str, ModelKey],
) -> TargetView:
    """A target as the API shows it. `picture` is None where nobody drives it yet; `users` are the
    deployments that name it, with their models."""
    models = model_views(picture, manual, users)
    state, reason = condition(picture)
    return TargetView(
        name=target.name,
        kind=target.kind,
        state=state,
        reason=reason,
        where=picture.where if picture is not None else "",
        facts=dict(picture.facts) if picture is not None else {},
        options=dict(target.options),
        credential=target.credential,
        price_per_replica_hour=target.price.per_replica_hour,
        price_per_request=target.price.per_request,
        cap_per_hour=target.cap_per_hour,
        left=picture.left if picture is not None else target.cap_per_hour,
        spent=picture.spent if picture is not None else 0.0,
        spent_last_hour=picture.spent_last_hour if picture is not None else 0.0,
        max_replicas=target.max_replicas,
        ready=sum(model.ready for model in models),
        deployments=sorted(users),
        models=models,
        created_at=timestamp(target.created_at),
        revision=target.revision,
    )


def model_views(
    picture: TargetPicture | None,
    manual: Mapping[ModelKey, Manual],
    users: Mapping[str, ModelKey],
) -> list[TargetModelView]:
    """What is on a target and what is to be there, by model and version."""
    there = {(m.model, m.version): m for m in picture.models} if picture is not None else {}
    return [
        _model_view(
            key,
            there.get(key),
            manual.get(key, _NO_MANUAL),
            sorted(name for name, used in users.items() if used == key),
        )
        for key in sorted(there.keys() | manual.keys() | set(users.values()))
    ]


def condition(picture: TargetPicture | None) -> tuple[TargetCondition, str]:
    """The state of a target, and a sentence that says why."""
    if picture is None:
        return TargetCondition.CONNECTING, ""
    if picture.trouble:
        return TargetCondition.FAILED, picture.trouble
    if not picture.where:
        return TargetCondition.CONNECTING, ""
    if picture.affordable_in_s != 0.0:
        return TargetCondition.OVER_BUDGET, _budget(picture)
    poor = _first(picture.models, State.OVER_BUDGET)
    if poor is not None:
        return TargetCondition.OVER_BUDGET, poor.sentence
    broken = _first(picture.models, State.FAILED, State.EJECTED)
    if broken is not None:
        why = f": {broken.sentence}" if broken.sentence else ""
        model = f"{broken.model}:{broken.version}"
        return TargetCondition.DEGRADED, f"{model} is {broken.state.value}{why}"
    return TargetCondition.READY, ""


def _first(models: Sequence[ModelOnTarget], *states: State) -> ModelOnTarget | None:
    return next((model for model in models if model.state in states), None)


def _budget(picture: TargetPicture) -> str:
    text = f"{picture.spent_last_hour:.4g} were spent in the last hour"
    if picture.cap_per_hour is not None:
        text += f", of a cap of {picture.cap_per_hour:g}"
    if picture.affordable_in_s is None:
        return f"{text}: it can never pay for a request"
    return f"{text}: the next request can be paid in {picture.affordable_in_s:.0f} s"


def _model_view(
    key: ModelKey, there: ModelOnTarget | None, manual: Manual, deployments: list[str]
) -> TargetModelView:
    return TargetModelView(
        model=key[0],
        version=key[1],
        state=there.state if there is not None else State.DEPLOYING,
        reason=there.sentence if there is not None else "",
        ready=there.ready if there is not None else 0,
        wanted=there.wanted if there is not None else 0,
        pinned=manual.replicas,
        placed=manual.placed,
        deployments=deployments,
        mean_ms=_finite(there.mean_ms) if there is not None else None,
        p95_ms=_finite(there.p95_ms) if there is not None else None,
        concurrent=_finite(there.concurrent) if there is not None else None,
        items_per_s=_finite(there.items_per_s) if there is not None else None,
        price_per_request=_finite(there.price_per_request) if there is not None else None,
        in_flight=there.in_flight if there is not None else 0,
        requests=there.requests if there is not None else 0,
        items=there.items if there is not None else 0,
        failures=there.failures if there is not None else 0,
    )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
