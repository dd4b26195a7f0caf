"""Why a plan is as it is, in sentences for people (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from shoal_controlplane.cli import units
from shoal_controlplane.planner.partition.problem import Link, Objective, Partition, Problem, Stage
from shoal_controlplane.plans.draft import Draft
from shoal_controlplane.plans.plan import Wiring

GATEWAY = "gateway"
"""Where requests come from and answers go."""

COPIES_GAIN = 1.05
"""Whole copies are worth a word where they serve so many times as many requests."""

_MOST_NAMES = 3
_NEARLY = 0.999


def hops(problem: Problem, partition: Partition) -> list[tuple[Link, int]]:
    """Links that a request takes and bytes over each: in from the gateway, between stages, out."""
    stages = partition.stages
    first, last = stages[0], stages[-1]
    inner = [
        (problem.links[before.kind][after.kind], before.out_bytes)
        for before, after in pairwise(stages)
    ]
    return [
        (problem.entries[first.kind], first.in_bytes),
        *inner,
        (problem.exits[last.kind], last.out_bytes),
    ]


def bottleneck(partition: Partition) -> str:
    """What limits the rate: "stage 1 on X (12.3 ms)" or "link A -> B (8.10 ms)".

    The time is that between two requests: devices that share a stage share its time, too.
    """
    found: list[tuple[float, str]] = []
    stages = partition.stages
    for index, stage in enumerate(stages):
        here = names(stage.devices)
        before = names(stages[index - 1].devices) if index else GATEWAY
        after = names(stages[index + 1].devices) if index + 1 < len(stages) else GATEWAY
        found += [
            (_each(stage, stage.compute_ms), f"stage {index} on {here}"),
            (_each(stage, stage.receive_ms), f"link {before} -> {here}"),
            (_each(stage, stage.send_ms), f"link {here} -> {after}"),
        ]
    time_ms, what = max(found, key=lambda entry: entry[0])
    return f"{what} ({units.milliseconds(time_ms)})"


def stored_bottleneck(wiring: Wiring) -> str:
    """As `bottleneck`, of a plan whose links are not known."""
    shares = [
        ms / len(devices) for ms, devices in zip(wiring.stage_ms, wiring.devices, strict=True)
    ]
    index = max(range(len(shares)), key=shares.__getitem__)
    if shares[index] < _NEARLY * wiring.bottleneck_ms:
        return f"a link ({units.milliseconds(wiring.bottleneck_ms)})"
    return f"stage {index} on {names(wiring.devices[index])} ({units.milliseconds(shares[index])})"


def why(draft: Draft) -> str:
    """One or two sentences on the plan of a draft; empty where there is none."""
    best = draft.outcome.best
    if best is None:
        return ""
    if len(best.stages) > 1:
        return _pipeline(draft, best)
    if len(best.stages[0].devices) > 1:
        return _shared(draft, best)
    return _one_device(draft, best)


def copies(draft: Draft) -> str:
    """Where whole copies of the model on the devices would serve more than the plan, how to have
    them: nothing moves between the devices then. Empty where they would not."""
    best = draft.outcome.best
    if best is None:
        return ""
    problem, last = draft.problem, len(draft.problem.segments)
    rates = [
        1e3
        / max(
            problem.compute_ms(0, last, kind),
            problem.entries[kind].transfer_ms(problem.input_bytes),
            problem.exits[kind].transfer_ms(problem.out_bytes(last)),
            1e-6,
        )
        for kind, alike in enumerate(problem.types)
        if problem.fits(0, last, kind)
        for _ in alike.devices
    ]
    together = sum(rates)
    if problem.objective is Objective.LATENCY or together <= COPIES_GAIN * best.rate:
        return ""
    return (
        f"a whole copy on each of the {len(rates)} devices that have the memory would serve more, "
        f"{together:.0f}/s: shoal deployment create {draft.model.name}:{draft.model.version} --all"
    )


def names(devices: Sequence[str]) -> str:
    """Devices in a sentence: "a, b, c and 4 more"."""
    if len(devices) <= _MOST_NAMES:
        return ", ".join(devices)
    shown = _MOST_NAMES - 1
    return f"{', '.join(devices[:shown])} and {len(devices) - shown} more"


def _each(stage: Stage, time_ms: float) -> float:
    return time_ms / len(stage.devices)


def _pipeline(draft: Draft, best: Partition) -> str:
    objective, single = draft.problem.objective, draft.outcome.single
    count = f"{len(best.stages)} stages"
    if objective is Objective.THROUGHPUT:
        first = f"{count}: {bottleneck(best)} is the bottleneck"
    else:
        first = f"{count}: a request takes {units.milliseconds(best.latency_ms)}"
    if single is None:
        return f"{first}; no single device has the memory for the whole model."
    alone = f"alone, {single.stages[0].devices[0]} would take {_taken(objective, single)}"
    gain = _gain(objective, best, single)
    if gain < 1:
        return f"{first}; {alone}, which is better, but {count} were asked for."
    return f"{first}; {alone}, so the pipeline {_praise(objective, gain)}."


def _shared(draft: Draft, best: Partition) -> str:
    [stage] = best.stages
    text = (
        f"{len(stage.devices)} devices share one stage: each computes whole requests, so nothing "
        "moves between them"
    )
    single = draft.outcome.single
    if single is None:
        return f"{text}."
    gain = _gain(Objective.THROUGHPUT, best, single)
    return (
        f"{text}, and together they serve {gain:.1f}x as many as {single.stages[0].devices[0]} "
        "alone."
    )


def _one_device(draft: Draft, best: Partition) -> str:
    problem = draft.problem
    device = best.stages[0].devices[0]
    if problem.stages == 1:
        return f"one device, as asked for: {device} takes {_taken(problem.objective, best)}."
    if len(problem.segments) == 1:
        reason = draft.analysis.reason.rstrip(".") or "it is one segment"
        return f"one device: the graph cannot be cut ({reason})."
    if sum(len(kind.devices) for kind in problem.types) == 1:
        return f"one device: none but {device} can take part."
    crossing = _least_crossing(problem)
    whole = best.bottleneck_ms if problem.objective is Objective.THROUGHPUT else best.latency_ms
    if crossing is not None and crossing[1] > whole:
        size, time_ms = crossing
        return (
            f"one device is best: every cut moves at least {units.size(size)}, which takes at "
            f"least {units.milliseconds(time_ms)} between these devices; {device} takes "
            f"{_taken(problem.objective, best)} for the whole model."
        )
    rival = next((other for other in draft.outcome.others if len(other.stages) > 1), None)
    if rival is None:
        return f"one device is best: {device} takes {_taken(problem.objective, best)}."
    chain = " -> ".join(names(stage.devices) for stage in rival.stages)
    text = (
        f"one device is best: {device} takes {_taken(problem.objective, best)}, the best pipeline, "
        f"{chain}, {_taken(problem.objective, rival)}"
    )
    if problem.objective is Objective.LATENCY:
        return f"{text}, links included."
    return f"{text} because of {bottleneck(rival)}."


def _least_crossing(problem: Problem) -> tuple[int, float] | None:
    """The fewest bytes of a cut, and how long the fastest link takes for them in ms; with the
    link's own latency where a request's own time counts."""
    size = min(segment.out_bytes for segment in problem.segments[:-1])
    latency = problem.objective is Objective.LATENCY
    times = [
        link.transfer_ms(size) + (link.latency_ms if latency else 0.0)
        for u, row in enumerate(problem.links)
        for v, link in enumerate(row)
        if u != v or len(problem.types[u].devices) > 1
    ]
    return (size, min(times)) if times else None


def _taken(objective: Objective, partition: Partition) -> str:
    """What counts of a plan, as "12.3 ms a request"."""
    throughput = objective is Objective.THROUGHPUT
    time_ms = partition.bottleneck_ms if throughput else partition.latency_ms
    return f"{units.milliseconds(time_ms)} a request"


def _gain(objective: Objective, plan: Partition, single: Partition) -> float:
    if objective is Objective.THROUGHPUT:
        return single.bottleneck_ms / plan.bottleneck_ms
    return single.latency_ms / plan.latency_ms


def _praise(objective: Objective, gain: float) -> str:
    if objective is Objective.THROUGHPUT:
        return f"serves {gain:.1f}x as many requests"
    return f"answers {gain:.1f}x as fast"
