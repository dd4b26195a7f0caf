"""The best plan in one objective: exact where the fleet allows it, else searched for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shoal_controlplane.planner.partition.beam import Beam
from shoal_controlplane.planner.partition.bounds import bottleneck_bound
from shoal_controlplane.planner.partition.local import (
    Key,
    Plan,
    Prices,
    improve,
    merge_variants,
    split_variants,
)
from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Objective, Problem
from shoal_controlplane.planner.partition.reach import States, fewest_stages, least_bottleneck
from shoal_controlplane.planner.partition.shortest import (
    Sums,
    latency_sums,
    least_sum,
    relaxed,
    within,
)
from shoal_controlplane.planner.partition.tables import Tables, memory_table

TIE = 1.01
"""Bottlenecks within that factor count as equal where the number of stages differs."""

EXACT = "exact"
SEARCH = "search"

REACH_LIMIT = 400_000
"""How much work the exact programme for throughput may be, in steps of the interpreter for each
bottleneck that is tried."""
_STATES_LIMIT = 4_000_000
_SUMS_LIMIT = 300_000_000
_WORD_STATES = 8192
"""So many states take as long as one step of the interpreter."""
_BUDGET = 12_000
_POLISH = 3_000


@dataclass(frozen=True, slots=True)
class Found:
    """A plan, a lower bound of its objective over all plans, and how it was found."""

    plan: Plan
    bound: float
    method: str


class Optimum:
    """Finds plans for one model and fleet. `tables` may allow less than `problem` does."""

    def __init__(self, problem: Problem, tables: Tables, limit: int = REACH_LIMIT) -> None:
        self.problem = problem
        self.tables = tables
        self.limit = limit
        self.prices = Prices(tables)

    def best(self, objective: Objective, stages: int | None) -> Found | None:
        """The best plan, with exactly `stages` stages where given; None where nothing fits, or,
        in fleets too large for the exact programmes, nothing was found."""
        if objective is Objective.LATENCY:
            return self._latency(stages)
        return self._throughput(stages)

    def affordable(self, stages: int, limit: int | None = None) -> bool:
        """Whether the exact programme for throughput answers soon; `stages` is 0 if they are not
        counted."""
        tables = self.tables
        states = States.count(tables.caps, stages)
        steps = tables.length * (tables.length + 1) // 2 * tables.kinds
        most = self.limit if limit is None else min(limit, self.limit)
        return states <= _STATES_LIMIT and steps * (1 + states / _WORD_STATES) <= most

    def _throughput(self, stages: int | None) -> Found | None:
        bound = bottleneck_bound(replace(self.problem, stages=stages), self.tables)
        if not self.affordable(stages or 0):
            return self._search(stages, bound)
        exact = least_bottleneck(self.tables, bound, stages)
        if exact is None:
            return None
        value, plan = exact
        if stages is None:
            plan = self._fewer(plan, value)
        return Found(self._polish(plan, stages), value, EXACT)

    def _fewer(self, plan: Plan, value: float) -> Plan:
        """A plan about as good with fewer stages, if there is one."""
        if not self.affordable(len(plan)):
            return self._merge(plan, value)
        best = fewest_stages(self.tables, value, len(plan)) or plan
        near = fewest_stages(self.tables, value * TIE, len(plan)) or best
        return near if len(near) < len(best) else best

    def _merge(self, plan: Plan, value: float) -> Plan:
        key = self.prices.key(Objective.THROUGHPUT, value * TIE)
        near = improve(self.prices, plan, key, budget=_POLISH)
        return near if len(near) < len(plan) else plan

    def _polish(self, plan: Plan, stages: int | None) -> Plan:
        """The latency of a plan made better, while nothing else gets worse."""
        key = self.prices.key(Objective.THROUGHPUT, self.prices.figures(plan)[0])
        keep = stages is not None
        return improve(self.prices, plan, key, budget=_POLISH, keep_stages=keep)

    def _search(self, stages: int | None, bound: float) -> Found | None:
        key = self.prices.key(Objective.THROUGHPUT)
        plan = self._start(self._beam().best(bound, np.inf), stages, key)
        if plan is None:
            return None
        keep = stages is not None
        plan = improve(self.prices, plan, key, budget=_BUDGET, keep_stages=keep, only_critical=True)
        if stages is None:
            plan = self._merge(plan, self.prices.figures(plan)[0])
        return Found(self._polish(plan, stages), bound, SEARCH)

    def _latency(self, stages: int | None) -> Found | None:
        sums = latency_sums(self.tables)
        free = relaxed(sums)
        if free is None:
            return None
        bound, plan = free
        if stages is None and within(plan, sums.caps):
            return Found(plan, bound, EXACT)
        thin = _thinned(sums, plan, np.argsort(np.sum(_diagonal(self.tables), axis=1)).tolist())
        exact = least_sum(thin, stages)
        if thin.caps == sums.caps:
            return Found(exact[1], exact[0], EXACT) if exact is not None else None
        key = self.prices.key(Objective.LATENCY)
        start = exact[1] if exact is not None else None
        if start is None:
            start = self._start(self._beam().attempt(np.inf), stages, key)
        if start is None:
            return None
        keep = stages is not None
        return Found(
            improve(self.prices, start, key, budget=_BUDGET, keep_stages=keep), bound, SEARCH
        )

    def adjust(self, plan: Plan, stages: int, key: Callable[[Plan], Key]) -> Plan | None:
        """A plan with exactly `stages` stages made from `plan`, by merging or splitting."""
        while len(plan) != stages:
            more = len(plan) < stages
            variants = split_variants(self.tables, plan) if more else merge_variants(plan)
            best = min(variants, key=key, default=None)
            if best is None or np.isinf(key(best)[0]):
                return None
            plan = improve(
                self.prices, best, key, budget=_POLISH, keep_stages=True, only_critical=True
            )
        return plan

    def shortest_memory(self, stages: int | None) -> Plan | None:
        """The plan for which the least memory is missing, whether it fits or not; None if there
        cannot be as many stages."""
        tables = self.tables
        usable = np.array([MEMORY_SHARE * kind.memory_bytes for kind in self.problem.types])
        over = np.maximum(tables.memory - usable[:, None, None], 0.0)
        size = tables.length + 1
        # A byte for each stage: of plans that lack the same, the one with fewer stages.
        over = np.where(np.triu(np.ones((size, size), bool), 1), over + 1, np.inf)
        nothing = np.zeros(tables.kinds)
        sums = Sums(over, np.zeros_like(tables.transfer), nothing, nothing, tables.caps)
        largest = np.argsort(-usable).tolist()
        found = least_sum(_thinned(sums, [], largest), stages)
        return found[1] if found is not None else None

    def _start(
        self, plan: Plan | None, stages: int | None, key: Callable[[Plan], Key]
    ) -> Plan | None:
        """`plan` with the number of stages that is wanted, or any plan that fits and has it."""
        if plan is not None and stages is not None:
            plan = self.adjust(plan, stages, key)
        if plan is None:
            plan = self.shortest_memory(stages)
        fits = plan is not None and np.isfinite(self.prices.figures(plan)[1])
        return plan if fits else None

    def _beam(self) -> Beam:
        problem = self.problem
        weights = np.array([segment.weight_bytes for segment in problem.segments], np.float64)
        base = float(np.min(memory_table(problem)[:, 0, 1])) - weights[0]
        usable = np.array([MEMORY_SHARE * kind.memory_bytes for kind in problem.types])
        return Beam(
            self.tables,
            np.array([kind.times_ms for kind in problem.types], np.float64),
            weights,
            np.maximum(usable - max(base, 0.0), 0.0),
        )


def _diagonal(tables: Tables) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Times of single segments (V, L), a large number where they do not fit."""
    each = np.diagonal(tables.cost, offset=1, axis1=1, axis2=2)
    return np.where(np.isfinite(each), each, 1e12)


def _thinned(sums: Sums, plan: Plan, order: list[int]) -> Sums:
    """The sums with as many devices as the exact programme can take: those that `plan` would use,
    then one after the other of the types in `order`."""
    kinds, size, _ = sums.stage.shape
    caps = [0] * kinds
    wanted = [*(kind for _, _, kind, _ in plan), *(order * max(sums.caps))]
    for kind in wanted:
        if caps[kind] < sums.caps[kind]:
            caps[kind] += 1
            if States.count(caps) * size * size // 2 * kinds > _SUMS_LIMIT:
                caps[kind] -= 1
    return replace(sums, caps=tuple(caps))
