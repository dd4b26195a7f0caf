from __future__ import annotations

import math

import pytest
from hypothesis import given
from support.partition import problems

from shoal_controlplane.planner.partition.bounds import bottleneck_bound
from shoal_controlplane.planner.partition.problem import Problem
from shoal_controlplane.planner.partition.reach import States
from shoal_controlplane.planner.partition.tables import compute_table, memory_table, tabulate


@given(problems())
def test_tables_count_as_the_problem_does(problem: Problem) -> None:
    tables = tabulate(problem)
    compute, memory = compute_table(problem), memory_table(problem)
    length = len(problem.segments)
    for v in range(len(problem.types)):
        for i in range(length + 1):
            for j in range(length + 1):
                if i >= j:
                    assert math.isinf(tables.cost[v, i, j])
                    continue
                assert compute[v, i, j] == pytest.approx(problem.compute_ms(i, j, v))
                assert memory[v, i, j] == problem.memory_bytes(i, j, v)
                assert math.isfinite(tables.cost[v, i, j]) == problem.fits(i, j, v)
            if 0 < i < length:
                for u in range(len(problem.types)):
                    link = problem.links[u][v]
                    assert tables.transfer[u, v, i] == link.transfer_ms(problem.in_bytes(i))
                    assert tables.latency[u, v, i] == link.latency_ms


@given(problems(max_segments=20, max_devices=12))
def test_the_bound_is_a_number(problem: Problem) -> None:
    bound = bottleneck_bound(problem, tabulate(problem))
    assert math.isfinite(bound)
    assert bound >= 0


@given(problems(max_devices=5))
def test_states_tell_which_devices_are_free(problem: Problem) -> None:
    tables = tabulate(problem)
    states = States.of(tables, stages=2)
    assert states.slice_size * 3 == States.count(tables.caps, 2)
    for v, cap in enumerate(tables.caps):
        for r, room in enumerate(states.room[v]):
            # In the topmost slice two stages are there, and no other is allowed.
            assert room < 1 << 2 * states.slice_size
            for state in range(2 * states.slice_size):
                digit = state // states.strides[v] % (cap + 1)
                assert bool(room >> state & 1) == (digit + r <= cap)
