"""Local search: a plan gets better by small changes until none helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.planner.partition.tables import Choice, Tables

Plan: TypeAlias = list[Choice]
Key: TypeAlias = tuple[float, ...]
"""What is compared: less is better."""

_STEPS = (-4, -2, -1, 1, 2, 4)


class Prices:
    """The figures of plans, fast: lists instead of arrays."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._cost = tables.cost.tolist()
        self._transfer = tables.transfer.tolist()
        self._latency = (tables.transfer + tables.latency).tolist()
        self._entry = tables.entry.tolist()
        self._exit = tables.exit.tolist()
        self._start = (tables.entry + tables.entry_latency).tolist()
        self._end = (tables.exit + tables.exit_latency).tolist()

    def figures(self, plan: Plan) -> tuple[float, float]:
        """Bottleneck and latency in ms; infinite where a stage does not fit."""
        cost, transfer, onward = self._cost, self._transfer, self._latency
        _, _, kind, replicas = plan[0]
        worst = self._entry[kind] / replicas
        total = self._start[kind]
        before, shared = -1, 0
        for first, last, kind, replicas in plan:
            ms = cost[kind][first][last]
            total += ms
            if ms > worst * replicas:
                worst = ms / replicas
            if before >= 0:
                link = transfer[before][kind][first] / min(shared, replicas)
                worst = max(worst, link)
                total += onward[before][kind][first]
            before, shared = kind, replicas
        return max(worst, self._exit[before] / shared), total + self._end[before]

    def critical(self, plan: Plan, bottleneck: float) -> set[int]:
        """Stages that have the bottleneck, or a link that has it."""
        near = bottleneck * (1 - 1e-9)
        found = set()
        for n, (first, last, kind, replicas) in enumerate(plan):
            if self._cost[kind][first][last] / replicas >= near:
                found.add(n)
            if n:
                before, shared = plan[n - 1][2:]
                if self._transfer[before][kind][first] / min(shared, replicas) >= near:
                    found |= {n - 1, n}
        if self._entry[plan[0][2]] / plan[0][3] >= near:
            found.add(0)
        if self._exit[plan[-1][2]] / plan[-1][3] >= near:
            found.add(len(plan) - 1)
        return found

    def key(self, objective: Objective, floor: float = 0.0) -> Callable[[Plan], Key]:
        """What to compare plans by. Bottlenecks up to `floor` count as equal."""

        def throughput(plan: Plan) -> Key:
            bottleneck, latency = self.figures(plan)
            if math.isinf(latency):
                return (math.inf,)
            return max(bottleneck, floor), len(plan), latency, sum(c[3] for c in plan)

        def latency(plan: Plan) -> Key:
            bottleneck, total = self.figures(plan)
            return (total, len(plan), bottleneck) if math.isfinite(total) else (math.inf,)

        return throughput if objective is Objective.THROUGHPUT else latency


def improve(
    prices: Prices,
    plan: Plan,
    key: Callable[[Plan], Key],
    *,
    budget: int,
    keep_stages: bool = False,
    only_critical: bool = False,
) -> Plan:
    """The best plan found by changes that each make `key` less; `budget` plans are looked at.

    `keep_stages` leaves the number of stages as it is; `only_critical` tries changes of stages at
    the bottleneck only.
    """
    value = key(plan)
    while budget > 0:
        focus = set(range(len(plan)))
        if only_critical:
            focus = prices.critical(plan, prices.figures(plan)[0])
        best, best_value = plan, value
        for other in _neighbours(prices.tables, plan, focus, keep_stages):
            budget -= 1
            other_value = key(other)
            if other_value < best_value:
                best, best_value = other, other_value
            if budget <= 0:
                break
        if best is plan:
            return plan
        plan, value = best, best_value
    return plan


def _neighbours(tables: Tables, plan: Plan, focus: set[int], keep: bool) -> Iterator[Plan]:
    free = list(tables.caps)
    for _, _, kind, replicas in plan:
        free[kind] -= replicas
    yield from _moved(plan, focus)
    yield from _swapped(plan, focus)
    yield from _replaced(tables, plan, focus, free)
    if not keep:
        yield from _merged(plan, focus)
        yield from _split(plan, focus, free)


def _moved(plan: Plan, focus: set[int]) -> Iterator[Plan]:
    """A boundary goes elsewhere."""
    for n in range(1, len(plan)):
        if n - 1 in focus or n in focus:
            start, at, kind, replicas = plan[n - 1]
            _, end, next_kind, next_replicas = plan[n]
            for step in _STEPS:
                if start < at + step < end:
                    middle = [
                        (start, at + step, kind, replicas),
                        (at + step, end, next_kind, next_replicas),
                    ]
                    yield [*plan[: n - 1], *middle, *plan[n + 1 :]]


def _swapped(plan: Plan, focus: set[int]) -> Iterator[Plan]:
    """Two stages exchange their devices."""
    for a in focus:
        for b in range(len(plan)):
            if (b < a or b not in focus) and plan[a][2:] != plan[b][2:]:
                other = list(plan)
                other[a] = (*plan[a][:2], *plan[b][2:])
                other[b] = (*plan[b][:2], *plan[a][2:])
                yield other


def _replaced(tables: Tables, plan: Plan, focus: set[int], free: list[int]) -> Iterator[Plan]:
    """A stage gets other devices, one more or one less."""
    for n in focus:
        first, last, kind, replicas = plan[n]
        options = [
            (v, min(replicas, free[v])) for v in range(tables.kinds) if v != kind and free[v]
        ]
        if free[kind] and replicas < tables.replicas[kind]:
            options.append((kind, replicas + 1))
        if replicas > 1:
            options.append((kind, replicas - 1))
        for v, r in options:
            yield [*plan[:n], (first, last, v, min(r, tables.replicas[v])), *plan[n + 1 :]]


def _merged(plan: Plan, focus: set[int]) -> Iterator[Plan]:
    """Two stages become one, on the devices of either."""
    for n in range(1, len(plan)):
        if n - 1 in focus or n in focus:
            for _, _, kind, replicas in {plan[n - 1], plan[n]}:
                one = (plan[n - 1][0], plan[n][1], kind, replicas)
                yield [*plan[: n - 1], one, *plan[n + 1 :]]


def _split(plan: Plan, focus: set[int], free: list[int]) -> Iterator[Plan]:
    """A stage becomes two, one of them on a device that was idle."""
    idle = [v for v, count in enumerate(free) if count]
    for n in focus:
        first, last, kind, replicas = plan[n]
        stride = max(1, (last - first) // 6)
        for at in range(first + 1, last, stride):
            for v in idle:
                own, new = (first, at, kind, replicas), (at, last, v, 1)
                yield [*plan[:n], own, new, *plan[n + 1 :]]
                own, new = (at, last, kind, replicas), (first, at, v, 1)
                yield [*plan[:n], new, own, *plan[n + 1 :]]


def merge_variants(plan: Plan) -> list[Plan]:
    """Plans with one stage less, to start from."""
    return list(_merged(plan, set(range(len(plan)))))


def split_variants(tables: Tables, plan: Plan) -> list[Plan]:
    """Plans with one stage more, to start from."""
    free = list(tables.caps)
    for _, _, kind, replicas in plan:
        free[kind] -= replicas
    result = list(_split(plan, set(range(len(plan))), free))
    for n, (first, last, kind, replicas) in enumerate(plan):
        # Replicas may also become stages of their own.
        if replicas > 1 and last - first > 1:
            middle = (first + last) // 2
            parts = [(first, middle, kind, replicas - 1), (middle, last, kind, 1)]
            result.append([*plan[:n], *parts, *plan[n + 1 :]])
    return result
