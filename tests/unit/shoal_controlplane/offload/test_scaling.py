from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.gateway.clouds import Level, Pressure
from shoal_controlplane.offload.scaling import Place, Scale, ScalingSettings, needed, step

SETTINGS = ScalingSettings(utilisation=0.5, down_s=10, idle_s=60, hurry_s=15)
CALM, RISING = Pressure(Level.CALM), Pressure(Level.RISING)


def saturated(excess: float) -> Pressure:
    return Pressure(Level.SATURATED, excess)


def test_calm_needs_nothing() -> None:
    assert needed(CALM, [Place("a", 100, 4)], SETTINGS) == {}


def test_rising_warms_the_first_that_can_be_used() -> None:
    places = [Place("broken", 100, 0), Place("a", 100, 4), Place("b", 100, 4)]
    assert needed(RISING, places, SETTINGS) == {"a": 1}


def test_saturation_needs_as_much_as_the_edge_cannot_answer() -> None:
    place = Place("a", 100, 9)
    assert needed(saturated(0), [place], SETTINGS) == {"a": 1}
    assert needed(saturated(50), [place], SETTINGS) == {"a": 1}
    assert needed(saturated(51), [place], SETTINGS) == {"a": 2}
    assert needed(saturated(200), [place], SETTINGS) == {"a": 4}
    assert needed(saturated(1e6), [place], SETTINGS) == {"a": 9}


def test_the_next_takes_what_the_first_cannot_bear() -> None:
    places = [Place("a", 100, 2), Place("b", 10, 99), Place("c", 10, 99)]
    assert needed(saturated(120), places, SETTINGS) == {"a": 2, "b": 4}


def test_one_that_does_not_get_warm_is_not_counted_on() -> None:
    places = [Place("a", 100, 3, ready=0, warming_s=16), Place("b", 100, 3)]
    assert needed(RISING, places, SETTINGS) == {"a": 1, "b": 1}
    assert needed(saturated(100), places, SETTINGS) == {"a": 2, "b": 2}
    warm = [Place("a", 100, 3, ready=1, warming_s=16), Place("b", 100, 3)]
    assert needed(saturated(100), warm, SETTINGS) == {"a": 2}


@given(
    st.floats(0, 1e5),
    st.lists(
        st.builds(
            Place,
            st.uuids().map(str),
            st.floats(0, 1e4),
            st.integers(-1, 20),
            st.integers(0, 20),
            st.floats(0, 1e3),
        ),
        max_size=5,
    ),
)
def test_never_more_than_can_be(excess: float, places: list[Place]) -> None:
    found = needed(saturated(excess), places, SETTINGS)
    for place in places:
        assert 0 <= found.get(place.target, 0) <= max(0, place.most)
    if any(place.most > 0 for place in places):
        assert found


def test_it_grows_at_once_and_shrinks_step_by_step() -> None:
    scale = step(Scale(), 3, 9, 100.0, SETTINGS)
    assert scale.replicas == 3
    seen = []
    for now in range(101, 200):
        scale = step(scale, 0, 9, float(now), SETTINGS)
        seen.append(scale.replicas)
    assert seen[8] == 3  # 9 s later
    assert seen[9] == 2
    assert seen[18] == 2
    assert seen[19] == 1
    assert seen[58] == 1  # the last one stays for the idle time after the last need
    assert seen[59] == 0
    assert seen[-1] == 0


def test_a_need_that_comes_back_in_time_costs_no_change() -> None:
    scale, changes = step(Scale(), 2, 9, 0.0, SETTINGS), 0
    for now in range(1, 300):
        before = scale.replicas
        scale = step(scale, 2 if now % 9 == 0 else 1, 9, float(now), SETTINGS)
        changes += scale.replicas != before
    assert changes == 0
    assert scale.replicas == 2


def test_what_can_no_longer_be_goes_at_once() -> None:
    scale = step(Scale(5, 0.0, 0.0), 5, 2, 1.0, SETTINGS)
    assert scale.replicas == 2
    assert step(scale, 2, 0, 2.0, SETTINGS).replicas == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0, 30)), min_size=1, max_size=60
    )
)
def test_replicas_are_what_is_needed_and_possible_or_wait(
    rounds: list[tuple[int, int, float]],
) -> None:
    scale, now, used_at = Scale(), 0.0, -math.inf
    for need, most, pause in rounds:
        now += pause
        before = scale
        scale = step(scale, need, most, now, SETTINGS)
        assert min(need, most) <= scale.replicas <= most
        assert scale.replicas <= max(before.replicas, need)
        if min(need, most):
            used_at = now
        if before.replicas > scale.replicas == 0 and most:
            assert now - used_at >= SETTINGS.idle_s
