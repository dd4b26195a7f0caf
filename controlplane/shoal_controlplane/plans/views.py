"""How the API shows plans: drafts and those that run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, Field

from shoal_controlplane.events.log import timestamp
from shoal_controlplane.planner.partition.problem import Objective, Partition, Problem, Stage
from shoal_controlplane.plans.active import ActivePlan, Fallback, PlanState
from shoal_controlplane.plans.draft import Basis, Draft
from shoal_controlplane.plans.plan import Plan
from shoal_controlplane.plans.reasons import (
    GATEWAY,
    bottleneck,
    copies,
    hops,
    stored_bottleneck,
    why,
)
from shoal_shared.status import ReplicaState


class BoardView(BaseModel):
    """Devices of one type. `basis` says what their times rest on, `memory_bytes` what is free on
    each."""

    board: str
    devices: list[str]
    basis: Basis
    memory_bytes: int


class CutView(BaseModel):
    """A place where the graph may be cut: after the node `after`, the last of segment `segment`
    (from 0). `bytes` cross it in `tensors` tensors; `work` and `weight_bytes` lie before it, work
    as a share of all multiply-accumulates."""

    segment: int
    after: str
    bytes: int
    tensors: int
    work: float
    weight_bytes: int


class StageView(BaseModel):
    """Consecutive segments on `devices`, which share its requests. `compute_ms` is the time of a
    request on one of them, `measured` whether this very stage was measured; sizes are of one
    request."""

    index: int
    first: int
    last: int
    segments: str
    devices: list[str]
    board: str
    memory_bytes: int
    compute_ms: float
    measured: bool
    in_bytes: int
    out_bytes: int


class PartitionView(BaseModel):
    """A way to place the model. `gap_percent` is how far its objective may be from the best;
    `method` "exact" or "search"."""

    stages: list[StageView]
    throughput_per_s: float
    latency_ms: float
    bottleneck: str
    gap_percent: float
    method: str


class SingleView(BaseModel):
    """The best that one device does alone."""

    device: str
    throughput_per_s: float
    latency_ms: float


class LinkView(BaseModel):
    """What goes from one place to the next with a request: bytes, and ms on the way. Places are
    devices, several as "a, b", or the gateway."""

    source: str = Field(serialization_alias="from")
    target: str = Field(serialization_alias="to")
    bytes: int
    ms: float


class PlanView(BaseModel):
    """A plan as it would be now. `plan` is null where nothing fits: then `reason` says why, and
    `missing_bytes` how much memory is missing. `others` are runners-up, best first; `shapes` those
    of the inputs that sizes and times are for; `links` are those of `plan`; `notes` say what the
    planner left out, and what else would do."""

    model: str
    version: str
    objective: Objective
    select: dict[str, str]
    shapes: dict[str, list[int]]
    segments: int
    cuts: list[CutView]
    boards: list[BoardView]
    plan: PartitionView | None
    single: SingleView | None
    others: list[PartitionView]
    links: list[LinkView]
    why: str
    notes: list[str]
    reason: str
    missing_bytes: int


class PartView(BaseModel):
    """A stage on one device."""

    device: str
    state: str


class ActiveStageView(BaseModel):
    """A stage that runs, with its state on each device; else as in a draft. Until the planner has
    looked at the fleet after a restart, `segments` and `board` are empty and what is sent null."""

    index: int
    first: int
    last: int
    segments: str = ""
    devices: list[str]
    board: str = ""
    memory_bytes: int
    compute_ms: float
    measured: bool = False
    in_bytes: int | None = None
    out_bytes: int | None = None
    parts: list[PartView]


class SpareView(BaseModel):
    """Stages that a device holds for others."""

    device: str
    stages: list[int]


class FallbackView(BaseModel):
    """What takes over when the device `lost` goes: an epoch that is wired already, and its devices
    by stage."""

    lost: str
    epoch: int
    devices: list[list[str]]
    throughput_per_s: float


class PredictedView(BaseModel):
    """What the plan is good for."""

    throughput_per_s: float
    latency_ms: float
    bottleneck: str


class ActiveView(BaseModel):
    """The plan of a sharded deployment, which has its name. Stages are empty and `predicted` null
    until there is a plan; `links` are empty and `single` null where the planner does not know.
    `credits` is how many requests may be under way at once, `compression` how float activations
    travel: "" as they are, "fp16" or "int8"."""

    name: str
    model: str
    version: str
    objective: Objective
    state: PlanState
    reason: str
    since: str
    epoch: int
    stages: list[ActiveStageView]
    links: list[LinkView]
    spares: list[SpareView]
    fallbacks: list[FallbackView]
    predicted: PredictedView | None
    single: SingleView | None
    credits: int
    compression: str


def plan_view(draft: Draft) -> PlanView:
    """A draft as the API shows it."""
    problem, outcome = draft.problem, draft.outcome
    best = outcome.best
    return PlanView(
        model=draft.model.name,
        version=draft.model.version,
        objective=problem.objective,
        select=dict(draft.select),
        shapes={name: list(shape) for name, shape in draft.analysis.shapes.items()},
        segments=len(problem.segments),
        cuts=_cuts(draft),
        boards=[
            BoardView(
                board=board, devices=list(kind.devices), basis=basis, memory_bytes=kind.memory_bytes
            )
            for kind, board, basis in zip(problem.types, draft.boards, draft.basis, strict=True)
        ],
        plan=_partition_view(draft, best) if best else None,
        single=_single_view(outcome.single),
        others=[_partition_view(draft, other) for other in outcome.others],
        links=_links(problem, best) if best else [],
        why=why(draft),
        notes=[*draft.notes, *filter(None, [copies(draft)])],
        reason="" if best else outcome.reason,
        missing_bytes=0 if best else outcome.missing_bytes,
    )


def active_view(plan: ActivePlan) -> ActiveView:
    """A plan that runs as the API shows it."""
    draft, partition, predicted = plan.draft, plan.partition, None
    stages: list[ActiveStageView] = []
    links: list[LinkView] = []
    if draft is not None and partition is not None:
        stages = [
            ActiveStageView(
                **_stage_view(draft, index, stage).model_dump(),
                parts=_parts(plan, index, stage.devices),
            )
            for index, stage in enumerate(partition.stages)
        ]
        links = _links(draft.problem, partition)
        predicted = PredictedView(
            throughput_per_s=partition.rate,
            latency_ms=partition.latency_ms,
            bottleneck=bottleneck(partition),
        )
    elif plan.plan is not None:
        stages = _stored_stages(plan, plan.plan)
        wiring = plan.plan.current
        predicted = PredictedView(
            throughput_per_s=1e3 / wiring.bottleneck_ms,
            latency_ms=wiring.latency_ms,
            bottleneck=stored_bottleneck(wiring),
        )
    return ActiveView(
        name=plan.name,
        model=plan.model,
        version=plan.version,
        objective=plan.objective,
        state=plan.state,
        reason=plan.reason,
        since=timestamp(plan.since),
        epoch=plan.epoch,
        stages=stages,
        links=links,
        spares=[SpareView(device=d, stages=list(held)) for d, held in sorted(plan.spares.items())],
        fallbacks=[_fallback_view(fallback) for fallback in plan.fallbacks],
        predicted=predicted,
        single=_single_view(draft.outcome.single) if draft is not None else None,
        credits=plan.credits,
        compression=plan.compression,
    )


def _cuts(draft: Draft) -> list[CutView]:
    segments = draft.problem.segments
    total = sum(segment.macs for segment in segments) or 1.0
    views: list[CutView] = []
    macs, weights = 0.0, 0
    for index, (segment, crossing) in enumerate(
        zip(segments[:-1], draft.analysis.cuts, strict=True)
    ):
        macs, weights = macs + segment.macs, weights + segment.weight_bytes
        views.append(
            CutView(
                segment=index,
                after=segment.name,
                bytes=segment.out_bytes,
                tensors=len(crossing),
                work=macs / total,
                weight_bytes=weights,
            )
        )
    return views


def _partition_view(draft: Draft, partition: Partition) -> PartitionView:
    throughput = draft.problem.objective is Objective.THROUGHPUT
    reached = partition.bottleneck_ms if throughput else partition.latency_ms
    gap = reached / partition.bound_ms - 1 if partition.bound_ms > 0 else 0.0
    return PartitionView(
        stages=[_stage_view(draft, index, stage) for index, stage in enumerate(partition.stages)],
        throughput_per_s=partition.rate,
        latency_ms=partition.latency_ms,
        bottleneck=bottleneck(partition),
        gap_percent=100 * max(0.0, gap),
        method=partition.method,
    )


def _stage_view(draft: Draft, index: int, stage: Stage) -> StageView:
    segments = draft.problem.segments
    first, last = segments[stage.first].name, segments[stage.last - 1].name
    return StageView(
        index=index,
        first=stage.first,
        last=stage.last,
        segments=first if stage.last - stage.first == 1 else f"{first} … {last}",
        devices=list(stage.devices),
        board=draft.boards[stage.kind],
        memory_bytes=stage.memory_bytes,
        compute_ms=stage.compute_ms,
        measured=(stage.first, stage.last, stage.kind) in draft.problem.known_ms,
        in_bytes=stage.in_bytes,
        out_bytes=stage.out_bytes,
    )


def _stored_stages(active: ActivePlan, plan: Plan) -> list[ActiveStageView]:
    """Stages as they were stored, without what only the planner knows."""
    current = plan.current
    return [
        ActiveStageView(
            index=index,
            first=part.first,
            last=part.last,
            devices=list(devices),
            memory_bytes=part.memory_bytes,
            compute_ms=compute_ms,
            parts=_parts(active, index, devices),
        )
        for index, (part, devices, compute_ms) in enumerate(
            zip(plan.parts, current.devices, current.stage_ms, strict=True)
        )
    ]


def _parts(plan: ActivePlan, index: int, devices: Sequence[str]) -> list[PartView]:
    return [
        PartView(device=device, state=plan.states.get((index, device), ReplicaState.QUEUED.value))
        for device in devices
    ]


def _single_view(single: Partition | None) -> SingleView | None:
    if single is None:
        return None
    return SingleView(
        device=single.stages[0].devices[0],
        throughput_per_s=single.rate,
        latency_ms=single.latency_ms,
    )


def _links(problem: Problem, partition: Partition) -> list[LinkView]:
    """From the gateway through the stages and back."""
    stages = partition.stages
    places = [GATEWAY, *(", ".join(stage.devices) for stage in stages), GATEWAY]
    return [
        LinkView(source=source, target=target, bytes=size, ms=link.latency_ms + busy_ms)
        for (source, target), (link, size) in zip(
            pairwise(places), hops(problem, partition), strict=True
        )
        for busy_ms in (link.transfer_ms(size),)
    ]


def _fallback_view(fallback: Fallback) -> FallbackView:
    return FallbackView(
        lost=fallback.lost,
        epoch=fallback.epoch,
        devices=[list(devices) for devices in fallback.devices],
        throughput_per_s=fallback.rate,
    )
