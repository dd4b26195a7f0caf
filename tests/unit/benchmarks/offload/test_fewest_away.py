"""The bound that no rule can beat."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_bench.offload.scenario import fewest_away
from shoal_bench.router.scenario import PHASE_MS, Scenario


def scenario(arrivals: list[float], work: list[float]) -> Scenario:
    """One device, 10 ms for work of 1."""
    return Scenario((10.0,), tuple(arrivals), tuple(work), (0,) * len(work), ((1.0,),) * 50)


def truly_fewest(arrivals: list[float], work: list[float], slo_ms: float) -> int:
    """By trying all sets that stay, each served in the order of arrival, which is that of the
    deadlines."""
    count = len(arrivals)
    for away in range(count + 1):
        for stay in combinations(range(count), count - away):
            free = 0.0
            for request in stay:
                free = max(free, arrivals[request]) + 10.0 * work[request]
                if free > arrivals[request] + slo_ms + 1e-9:
                    break
            else:
                return away
    raise AssertionError("nobody is always in time")


requests = st.lists(st.tuples(st.floats(0, 900), st.floats(0.5, 4)), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(requests, st.floats(10, 80))
def test_it_is_never_more_than_the_truth(found: list[tuple[float, float]], slo_ms: float) -> None:
    arrivals = sorted(at for at, _ in found)
    work = [each for _, each in found]
    assert fewest_away(scenario(arrivals, work), slo_ms) <= truly_fewest(arrivals, work, slo_ms)


def test_it_is_close_in_a_long_overload() -> None:
    arrivals = [5.0 * number for number in range(120)]
    fewest = fewest_away(scenario(arrivals, [1.0] * 120), 50.0)
    # 600 ms and the SLO after them hold 65 requests.
    assert fewest == pytest.approx(55, abs=1)


def test_nobody_need_leave_where_there_is_time() -> None:
    arrivals = [PHASE_MS * number for number in range(10)]
    assert fewest_away(scenario(arrivals, [1.0] * 10), 50.0) == 0
