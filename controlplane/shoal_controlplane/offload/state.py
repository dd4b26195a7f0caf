"""What is known of targets and of the models on them: the records that pool and manager share,
and the frozen pictures of them for the API, the metrics and the page."""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal_controlplane.offload.breaker import Breaker
from shoal_controlplane.offload.budget import Budget
from shoal_controlplane.offload.learning import Capacity, Learner, request_price
from shoal_controlplane.offload.scaling import Scale
from shoal_controlplane.offload.target import CloudModel, CloudTarget, Price, TargetSettings

LEAST_ROOM = 8
"""Items that a replica gets at once, whatever was learnt."""
_ROOM = 4.0
"""Times the items at once at which latency has doubled: waiting longer than that is no use."""


class State(enum.Enum):
    """How a model fares on a target."""

    COLD = "cold"
    """Deployed, without replicas: nothing asks for any."""
    DEPLOYING = "deploying"
    """The target does not have it yet."""
    WARMING = "warming"
    """Replicas were asked for; none answers yet."""
    READY = "ready"
    """It can take requests."""
    EJECTED = "ejected"
    """It failed, and gets no requests until it is tried again."""
    OVER_BUDGET = "over_budget"
    """It may not be used, because the target has spent what it may."""
    FAILED = "failed"
    """It cannot be deployed or does not get ready."""


@dataclass(frozen=True, slots=True)
class ModelOnTarget:
    """A model on a target. Latencies in ms of a single item, transfer included, are None until one
    was answered; `concurrent` and `items_per_s` are those of one replica; `price_per_request` is
    for one item, the replica's time included. Requests of our own are not counted."""

    model: str
    version: str
    state: State
    sentence: str
    ready: int
    wanted: int
    mean_ms: float | None
    p95_ms: float | None
    concurrent: float
    items_per_s: float
    price_per_request: float
    in_flight: int
    requests: int
    items: int
    failures: int


@dataclass(frozen=True, slots=True)
class TargetPicture:
    """A target. `where` and `facts` are what it says of itself, empty until it was reached;
    `trouble` is a sentence, empty where nothing is wrong. Money is in the operator's currency:
    `cap_per_hour` and `left`, what may be spent at once, are None where spending has no cap;
    `spent` is all since the start; `affordable_in_s` is 0 where the next request can be paid, None
    where it never can."""

    name: str
    kind: str
    where: str
    facts: Mapping[str, Any]
    trouble: str
    price: Price
    max_replicas: int
    cap_per_hour: float | None
    left: float | None
    spent: float
    spent_last_hour: float
    affordable_in_s: float | None
    models: tuple[ModelOnTarget, ...]


@dataclass(slots=True)
class Retry:
    """When something that failed is done again: after a pause that doubles."""

    first_s: float
    longest_s: float
    attempts: int = 0
    at: float = -math.inf

    def due(self, now: float) -> bool:
        return now >= self.at

    def failed(self, now: float, pause_s: float | None = None) -> None:
        if pause_s is None:
            pause_s = min(self.longest_s, self.first_s * 2 ** min(self.attempts, 16))
        self.attempts += 1
        self.at = now + pause_s

    def worked(self) -> None:
        self.attempts, self.at = 0, -math.inf


@dataclass(slots=True, eq=False)
class TargetState:
    """A target that is known. `cloud` is None until it was opened; `refused` is what it said to
    the credentials, until a health check passes; `trouble` is what is wrong else."""

    settings: TargetSettings
    budget: Budget
    cloud: CloudTarget | None = None
    price: Price = field(default_factory=Price)
    where: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""
    refused: str = ""
    wake: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class Placed:
    """A model on a target. `scale` is what it should have, `asked` what the target was asked for
    last (None: not since it was deployed). `ready` replicas get requests, `healthy` ones were
    there at the last check, `running` ones cost. Once it is `leaving` it is removed there, and
    then `gone`."""

    owner: TargetState
    model: CloudModel
    learner: Learner
    breaker: Breaker
    deploying: Retry
    scaling: Retry
    checking: Retry
    warming: Retry
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    deployed: bool = False
    unsupported: bool = False
    leaving: bool = False
    gone: bool = False
    short_of_money: bool = False
    scale: Scale = field(default_factory=Scale)
    asked: int | None = None
    asked_at: float = -math.inf
    ready: int = 0
    healthy: int = 0
    running: int = 0
    quota: int | None = None
    warming_since: float | None = None
    next_check: float = -math.inf
    reason: str = ""
    failure: str = ""
    in_flight: int = 0
    in_flight_items: int = 0
    requests: int = 0
    items: int = 0
    failures: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    capacity: Capacity = field(init=False)
    room: float = field(init=False)
    state: State = State.DEPLOYING

    def __post_init__(self) -> None:
        self.learnt()

    def learnt(self) -> None:
        """The learner knows something new."""
        self.capacity = self.learner.capacity()
        self.room = max(LEAST_ROOM, _ROOM * self.capacity.concurrent)

    @property
    def ahead(self) -> float:
        """Items before the next request on each replica."""
        return self.in_flight_items / max(self.ready, 1)

    def request_price(self, items: int) -> float:
        """What a request costs, its part of a replica's time included."""
        return request_price(self.owner.price, items, self.capacity)


def judge(placed: Placed, now: float) -> tuple[State, str]:
    """The state of a model on a target, and a sentence that says why."""
    owner = placed.owner
    replicas = placed.scale.replicas
    if placed.leaving:
        return State.COLD, f"it is being removed{_because(placed.reason)}"
    if owner.refused:
        return State.EJECTED, owner.refused
    if owner.cloud is None:
        return (State.FAILED if owner.trouble else State.DEPLOYING), owner.trouble
    if placed.unsupported or not placed.deployed:
        failed = placed.unsupported or placed.deploying.attempts > 0
        return (State.FAILED if failed else State.DEPLOYING), placed.failure
    if placed.breaker.until:
        wait = max(0.0, placed.breaker.until - now)
        return State.EJECTED, f"it is tried again in {wait:.0f} s{_because(placed.failure)}"
    if placed.short_of_money:
        return State.OVER_BUDGET, _cannot_run(owner, now)
    if not owner.budget.affords(owner.price.per_request, now):
        return State.OVER_BUDGET, over_budget(owner, now)
    if not placed.ready and (placed.scaling.attempts or not placed.warming.due(now)):
        return State.FAILED, f"it does not get ready{_because(placed.failure)}"
    if placed.ready:
        more = f" of {replicas}" if replicas > placed.ready else ""
        return State.READY, f"{placed.ready}{more} ready{_because(placed.reason)}"
    if replicas:
        return State.WARMING, f"waits for {replicas}{_because(placed.reason)}"
    return State.COLD, placed.reason


def over_budget(owner: TargetState, now: float) -> str:
    """What to say where the budget is spent."""
    cap = owner.budget.cap or 0.0
    spent = owner.budget.last_hour(now)
    wait = owner.budget.wait_s(owner.price.per_request, now)
    again = f"; there is some again in {wait:.0f} s" if 0 < wait < math.inf else ""
    return f"its budget is {cap:g} an hour, and {spent:.4g} were spent in the last one{again}"


def _cannot_run(owner: TargetState, now: float) -> str:
    cap, spent = owner.budget.cap or 0.0, owner.budget.last_hour(now)
    return (
        f"its budget of {cap:g} an hour, of which {spent:.4g} were spent in the last one, does not "
        f"pay a replica of {owner.price.per_replica_hour:g} an hour for some minutes"
    )


def picture(owner: TargetState, placed: tuple[Placed, ...], now: float) -> TargetPicture:
    """A frozen picture of a target and what is on it."""
    left = owner.budget.left(now)
    wait = owner.budget.wait_s(owner.price.per_request, now)
    settings = owner.settings
    return TargetPicture(
        name=settings.name,
        kind=settings.kind,
        where=owner.where,
        facts=owner.facts,
        trouble=owner.refused or owner.trouble,
        price=owner.price,
        max_replicas=settings.max_replicas,
        cap_per_hour=owner.budget.cap,
        left=None if math.isinf(left) else left,
        spent=owner.budget.spent,
        spent_last_hour=owner.budget.last_hour(now),
        affordable_in_s=None if math.isinf(wait) else wait,
        models=tuple(_model(p, now) for p in placed),
    )


def _model(placed: Placed, now: float) -> ModelOnTarget:
    state, sentence = judge(placed, now)
    learnt = placed.learner.samples > 0
    expected = placed.learner.expect(1, 0, 0.0, now) if learnt else None
    return ModelOnTarget(
        model=placed.model.name,
        version=placed.model.version,
        state=state,
        sentence=sentence,
        ready=placed.ready,
        wanted=placed.scale.replicas,
        mean_ms=expected.mean_ms if expected else None,
        p95_ms=expected.p95_ms if expected else None,
        concurrent=placed.capacity.concurrent,
        items_per_s=placed.capacity.items_per_s,
        price_per_request=placed.request_price(1),
        in_flight=placed.in_flight,
        requests=placed.requests,
        items=placed.items,
        failures=placed.failures,
    )


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
