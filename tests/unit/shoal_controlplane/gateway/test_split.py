"""Sharing out a batch: nothing lost, no piece too large, nearly as early as can be."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.gateway.split import Place, makespan_ms, next_piece, water_fill


def fluid_ms(items: int, places: list[Place]) -> float:
    """When `items` would be done if they were a liquid that places drink in whole pieces."""

    def drunk(level: float) -> float:
        return sum(max(0.0, level - p.waiting_ms) * p.most / p.work_ms(p.most) for p in places)

    low, high = 0.0, min(place.finish_ms(items) for place in places)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if drunk(middle) >= items else (middle, high)
    return high


@st.composite
def places(draw: st.DrawFn) -> Place:
    most = draw(st.integers(1, 64))
    return Place(
        waiting_ms=draw(st.floats(0, 500)),
        intercept_ms=draw(st.floats(0, 20)),
        slope_ms=draw(st.floats(0, 50)),
        most=most,
        knee=draw(st.integers(1, most)),
        transfer_ms=draw(st.floats(0, 5)),
    )


fleets = st.lists(places(), min_size=1, max_size=8)


@given(st.integers(0, 3000), fleets)
def test_items_are_conserved_and_the_end_is_near_the_fluid_one(
    items: int, fleet: list[Place]
) -> None:
    shares = water_fill(items, fleet)
    assert sum(shares) == items
    assert min(shares) >= 0
    if items:
        # Whole pieces cost one more of them at most.
        most = max(place.work_ms(place.most) for place in fleet)
        assert makespan_ms(shares, fleet) <= fluid_ms(items, fleet) + most + 0.01


@given(st.lists(places(), min_size=2, max_size=8))
def test_a_large_batch_ends_within_a_tenth_of_the_ideal(fleet: list[Place]) -> None:
    rate = sum(place.most / place.work_ms(place.most) for place in fleet)
    slowest = max(place.work_ms(place.most) for place in fleet)
    items = math.ceil(10 * slowest * rate)
    if items > 200_000:
        return  # A place that takes no time at all.
    assert makespan_ms(water_fill(items, fleet), fleet) <= 1.1 * fluid_ms(items, fleet) + 0.01


@given(st.integers(1, 12), st.lists(places(), min_size=1, max_size=3))
def test_small_batches_are_shared_as_well_as_can_be(items: int, fleet: list[Place]) -> None:
    ways = itertools.product(range(items + 1), repeat=len(fleet))
    best = min(makespan_ms(way, fleet) for way in ways if sum(way) == items)
    assert makespan_ms(water_fill(items, fleet), fleet) == pytest.approx(best, abs=1e-3)


@given(st.integers(1, 5000), places())
def test_pieces_make_up_the_share(share: int, place: Place) -> None:
    left, sizes = share, []
    while left:
        sizes.append(next_piece(left, place))
        left -= sizes[-1]
        assert left >= 0
    assert all(1 <= size <= place.most for size in sizes)
    # Only the rest may be below the knee.
    assert all(size >= place.knee for size in sizes[:-1])
    assert sizes == sorted(sizes, reverse=True) or sizes[-1] > sizes[-2]


def test_a_share_is_cut_into_more_pieces_than_it_needs() -> None:
    place = Place(0.0, 1.0, 1.0, most=64, knee=4)
    left, sizes = 64, []
    while left:
        sizes.append(next_piece(left, place))
        left -= sizes[-1]
    assert sizes == [25, 15, 10, 6, 4, 4]


def test_a_busy_place_and_a_slow_one_get_less() -> None:
    free = Place(0.0, 1.0, 1.0, most=32)
    busy = Place(50.0, 1.0, 1.0, most=32)
    slow = Place(0.0, 1.0, 4.0, most=32)
    first, second, third = water_fill(200, [free, busy, slow])
    assert first > second > third > 0


def test_the_way_there_counts() -> None:
    near = Place(0.0, 0.0, 1.0, most=8)
    far = Place(0.0, 0.0, 1.0, most=8, transfer_ms=3.0)
    assert water_fill(100, [near, far]) == [80, 20]


def test_what_is_too_slow_for_even_one_item_gets_none() -> None:
    assert water_fill(4, [Place(0.0, 1.0, 1.0, most=8), Place(0.0, 90.0, 1.0, most=8)]) == [4, 0]


def test_profiles_of_zero_are_no_trouble() -> None:
    fleet = [Place(0.0, 0.0, 0.0, most=4), Place(0.0, 0.0, 0.0, most=1)]
    assert sum(water_fill(1000, fleet)) == 1000


def test_nobody_to_share_with() -> None:
    with pytest.raises(ValueError, match="a place"):
        water_fill(1, [])
