"""The planner: a model and a fleet in, the best plan and what else there was out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from shoal_controlplane.planner.partition.assignment import evaluate, hand_out
from shoal_controlplane.planner.partition.check import check
from shoal_controlplane.planner.partition.local import Plan
from shoal_controlplane.planner.partition.optimum import REACH_LIMIT, SEARCH, TIE, Found, Optimum
from shoal_controlplane.planner.partition.problem import (
    MEMORY_SHARE,
    Objective,
    Outcome,
    Partition,
    Problem,
)
from shoal_controlplane.planner.partition.tables import tabulate
from shoal_controlplane.planner.reasons import MB

__all__ = ["evaluate", "solve"]

_OTHERS = 4
_OTHERS_LIMIT = 20_000
"""Runners-up are found exactly only where that takes no time to speak of."""


def solve(problem: Problem, *, limit: int = REACH_LIMIT) -> Outcome:
    """The best plan in the problem's objective.

    Never worse than the best single device, unless a number of stages is asked for. For
    throughput, of plans within 1 % that with the fewest stages. `limit` is how much work the exact
    programme for throughput may be; with 0 plans are only searched for. Raises `ValueError` with
    one sentence if the problem makes no sense.
    """
    check(problem)
    reason = _impossible(problem)
    if reason:
        return Outcome(None, reason=reason)
    optimum = Optimum(problem, tabulate(problem), limit)
    single = _single(problem, optimum)
    found = optimum.best(problem.objective, problem.stages)
    best = _partition(problem, found) if found is not None else None
    if problem.stages is None and single is not None:
        best = _not_worse(problem, best, single)
    if best is None or found is None:
        reason, missing = _shortage(problem, optimum)
        return Outcome(None, single=single, reason=reason, missing_bytes=missing)
    if single is not None:
        single = replace(single, bound_ms=min(found.bound, _value(problem, single)))
    return Outcome(best, single, _others(problem, optimum, best, single, found))


def _impossible(problem: Problem) -> str:
    devices = sum(len(kind.devices) for kind in problem.types)
    wanted = problem.stages
    if not devices:
        return "there is no device that could take part"
    if wanted is not None and wanted > len(problem.segments):
        most = len(problem.segments)
        return f"the model can be cut into at most {most} stage{'s' if most > 1 else ''}"
    if wanted is not None and wanted > devices:
        are = f"are {devices}" if devices > 1 else "is 1"
        return f"{wanted} stages need {wanted} devices, there {are}"
    return ""


def _value(problem: Problem, plan: Partition) -> float:
    throughput = problem.objective is Objective.THROUGHPUT
    return plan.bottleneck_ms if throughput else plan.latency_ms


def _partition(problem: Problem, found: Found) -> Partition:
    plan = evaluate(problem, hand_out(problem, found.plan))
    bound = min(found.bound, _value(problem, plan))
    return replace(plan, bound_ms=bound, method=found.method)


def _single(problem: Problem, optimum: Optimum) -> Partition | None:
    """The best plan of one device."""
    length = len(problem.segments)
    plans: list[Plan] = [[(0, length, v, 1)] for v in range(len(problem.types))]
    best = min(plans, key=optimum.prices.key(problem.objective))
    if math.isinf(optimum.prices.figures(best)[1]):
        return None
    return _partition(problem, Found(best, 0.0, "exact"))


def _not_worse(problem: Problem, best: Partition | None, single: Partition) -> Partition:
    """`best`, or `single` if that is better, or as good with fewer devices."""
    if best is None:
        return single
    value, alone = _value(problem, best), _value(problem, single)
    throughput = problem.objective is Objective.THROUGHPUT
    simpler = len(best.stages) > 1 and alone <= value * (TIE if throughput else 1.0)
    if alone < value or simpler:
        return replace(single, bound_ms=min(best.bound_ms, alone), method=best.method)
    return best


def _others(
    problem: Problem, optimum: Optimum, best: Partition, single: Partition | None, found: Found
) -> tuple[Partition, ...]:
    """Plans that are really different, best first."""
    plans = [_partition(problem, other) for other in _variants(problem, optimum, best, found)]
    if single is not None:
        plans.append(single)
    different: dict[object, Partition] = {_shape(best): best}
    for plan in sorted(plans, key=lambda plan: _value(problem, plan)):
        bound = min(best.bound_ms, _value(problem, plan))
        different.setdefault(_shape(plan), replace(plan, bound_ms=bound))
    return tuple(different.values())[1 : _OTHERS + 1]


def _shape(plan: Partition) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((s.first, s.last, s.kind, len(s.devices)) for s in plan.stages)


def _variants(problem: Problem, optimum: Optimum, best: Partition, found: Found) -> Iterator[Found]:
    """The best with a stage less and a stage more, the best in the other objective, and the best
    without replicas."""
    plan = list(_shape(best))
    for stages in (len(plan) - 1, len(plan) + 1):
        other = _resized(problem, optimum, plan, stages)
        if other is not None:
            yield other
    throughput = problem.objective is Objective.THROUGHPUT
    if throughput or optimum.affordable(0, _OTHERS_LIMIT):
        opposite = Objective.LATENCY if throughput else Objective.THROUGHPUT
        other = optimum.best(opposite, None)
        if other is not None:
            yield other
    if any(len(stage.devices) > 1 for stage in best.stages):
        alone = replace(problem, replicate=False)
        other = Optimum(alone, tabulate(alone), optimum.limit).best(
            problem.objective, problem.stages
        )
        if other is not None:
            yield other


def _resized(problem: Problem, optimum: Optimum, plan: Plan, stages: int) -> Found | None:
    """The best plan with another number of stages."""
    devices = sum(len(kind.devices) for kind in problem.types)
    if not 1 <= stages <= min(devices, len(problem.segments)):
        return None
    if optimum.affordable(stages, _OTHERS_LIMIT):
        return optimum.best(problem.objective, stages)
    key = optimum.prices.key(problem.objective)
    other = optimum.adjust(plan, stages, key)
    return Found(other, 0.0, SEARCH) if other is not None else None


def _shortage(problem: Problem, optimum: Optimum) -> tuple[str, int]:
    """Why nothing fits, and how much more memory would do."""
    plan = optimum.shortest_memory(problem.stages)
    if plan is None:
        return "no plan was found that fits", 0
    need = missing = 0.0
    for first, last, kind, _ in plan:
        size = problem.memory_bytes(first, last, kind) / MEMORY_SHARE
        need += size
        missing += max(0.0, size - problem.types[kind].memory_bytes)
    needs, lack = math.ceil(need / MB), math.ceil(missing / MB)
    if len(plan) > 1:
        where = f"even cut into {len(plan)} stages, {lack} MB more than the best devices have"
    else:
        where = f"on one device, {lack} MB more than any has"
    reason = f"needs {needs} MB of free memory {where}"
    return reason, math.ceil(missing)
