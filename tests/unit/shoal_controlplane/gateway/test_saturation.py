"""Windows, levels and what is said of them."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.gateway.clouds import Level
from shoal_controlplane.gateway.saturation import (
    MAX_RHO,
    WINDOW_S,
    Load,
    Picture,
    Saturation,
    fullness,
)

CALM, RISING, SATURATED = Level.CALM, Level.RISING, Level.SATURATED


def levels(*rhos: float) -> list[Level]:
    machine, found = Saturation(), []
    for number, rho in enumerate(rhos):
        machine.step(rho, number * WINDOW_S)
        found.append(machine.level)
    return found


def test_saturated_after_three_of_five_windows() -> None:
    assert levels(0.95, 0.1, 0.95, 0.1, 0.95)[-2:] == [CALM, SATURATED]
    assert SATURATED not in levels(0.95, 0.95, 0.1, 0.1, 0.1, 0.95, 0.95)


def test_a_step_skips_what_is_for_slow_rises() -> None:
    assert levels(0.1, 1.2, 1.5, 1.6) == [CALM, CALM, CALM, SATURATED]


def test_rising_needs_to_rise() -> None:
    assert levels(0.5, 0.7, 0.78, 0.8, 0.82)[-1] is RISING
    assert levels(0.85, 0.84, 0.83, 0.82, 0.81)[-1] is CALM


def test_back_after_two_seconds_below() -> None:
    found = levels(*[1.2] * 5, *[0.6] * 45)
    assert found[4] is SATURATED
    assert found.index(CALM, 5) == 5 + round(2.0 / WINDOW_S)


def test_a_moment_in_between_starts_the_two_seconds_again() -> None:
    assert CALM not in levels(*[1.2] * 5, *[0.6] * 39, 0.75, *[0.6] * 39)[5:]


@given(st.lists(st.floats(0, 3), max_size=200))
def test_levels_change_only_by_the_rules(rhos: list[float]) -> None:
    machine, last = Saturation(), CALM
    seen: deque[float] = deque(maxlen=5)
    below = 0
    for number, rho in enumerate(rhos):
        seen.append(rho)
        below = below + 1 if rho < 0.7 else 0
        changed = machine.step(rho, number * WINDOW_S)
        level = machine.level
        assert changed == (level is not last)
        if sum(r > 0.9 for r in seen) >= 3:
            assert level is SATURATED
        elif changed and level is CALM:
            assert (below - 1) * WINDOW_S >= 2.0 - 1e-6
        elif changed:
            assert (last, level) == (CALM, RISING)
            assert sum(r > 0.75 for r in seen) >= 3
        last = level


def test_fullness_counts_devices_by_what_they_can_do() -> None:
    fast, slow = Load(125.0, 1000.0), Load(250.0, 10.0)
    assert fullness([fast], 0.0, 250.0) == pytest.approx(0.5)
    assert fullness([fast, slow], 0.0, 250.0) == pytest.approx(0.505, abs=1e-3)
    assert fullness([fast], 800.0, 250.0) == pytest.approx(1.3)


def test_no_device_is_full_once_something_comes() -> None:
    assert fullness([], 0.0, 250.0) == 0.0
    assert fullness([], 1.0, 250.0) == MAX_RHO


def test_sentences() -> None:
    picture = Picture(SATURATED, 43390.0, 1.312, 100.0, 25.0, 0.75, {"aks-west": 0.22}, 0.03)
    assert picture.sentence == (
        "saturated since 12:03:10: rho 1.31; spilling 22 % to aks-west, shedding 3 %"
    )
    assert Picture().sentence == "calm: rho 0.00"
    assert Picture(shed=0.001).sentence == "calm: rho 0.00; shedding less than 1 %"
