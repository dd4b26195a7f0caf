from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from shoal_controlplane.models.boxes import (
    anchor_centres,
    grow,
    heatmap_regions,
    suppress_overlaps,
)


def flood(mask: np.ndarray) -> dict[tuple[int, int, int, int], list[tuple[int, int]]]:
    """The plain way: follow every pixel's eight neighbours. Box to its pixels."""
    todo = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = {}
    while todo:
        front = [todo.pop()]
        pixels = list(front)
        while front:
            y, x = front.pop()
            near = {(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)} & todo
            todo -= near
            front += near
            pixels += near
        ys, xs = zip(*pixels, strict=True)
        found[min(xs), min(ys), max(xs) + 1, max(ys) + 1, min(pixels)] = pixels
    return found


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(0, 1, width=16),
    )
)
def test_regions_are_those_of_a_flood_fill(heat: np.ndarray) -> None:
    boxes, means = heatmap_regions(heat, 0.5)
    expected = flood(heat > 0.5)
    got = sorted(
        (*map(int, box), round(float(mean), 6)) for box, mean in zip(boxes, means, strict=True)
    )
    assert got == sorted(
        (*key[:4], round(float(np.mean([heat[p] for p in pixels], dtype=np.float64)), 6))
        for key, pixels in expected.items()
    )


def test_a_spiral_is_one_region() -> None:
    side, heat = 101, np.zeros((101, 101))
    low, high = 0, side - 1
    while low < high:
        heat[low, max(low - 2, 0) : high + 1] = 1
        heat[low : high + 1, high] = 1
        heat[high, low : high + 1] = 1
        heat[low + 2 : high + 1, low] = 1
        low, high = low + 2, high - 2
    boxes, means = heatmap_regions(heat, 0.5)
    np.testing.assert_array_equal(boxes, [[0, 0, side, side]])
    assert means == pytest.approx([1.0])


def test_an_empty_map_has_no_regions() -> None:
    for shape in ((0, 0), (3, 0), (4, 5)):
        boxes, means = heatmap_regions(np.zeros(shape), 0.5)
        assert boxes.shape == (0, 4)
        assert means.shape == (0,)


def test_growing_moves_every_side_by_ratio_times_area_over_perimeter() -> None:
    np.testing.assert_allclose(grow(np.array([[10.0, 10, 30, 20]]), 1.5), [[5, 5, 35, 25]])


def test_anchors_are_those_of_mediapipe() -> None:
    centres = anchor_centres((128, 128), (8, 16, 16, 16))
    assert centres.shape == (896, 2)  # 16 x 16 cells with 2 anchors, then 8 x 8 with 6
    np.testing.assert_array_equal(centres[:4], [[4, 4], [4, 4], [12, 4], [12, 4]])
    np.testing.assert_array_equal(centres[510:513], [[124, 124], [124, 124], [8, 8]])
    np.testing.assert_array_equal(centres[-1], [120, 120])


def test_anchors_of_an_oblong_input() -> None:
    np.testing.assert_array_equal(
        anchor_centres((16, 32), (16,)), [[8, 8], [8, 8], [24, 8], [24, 8]]
    )


def test_suppression_keeps_the_best_and_what_stands_apart() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 5]])
    kept = suppress_overlaps(boxes, np.array([0.6, 0.9, 0.7, 0.5]), 0.3)
    np.testing.assert_array_equal(kept, [1, 2])
    # Box 3 shares 36 of 114 with box 1.
    np.testing.assert_array_equal(
        suppress_overlaps(boxes, np.array([0.6, 0.9, 0.7, 0.5]), 0.32), [1, 2, 3]
    )


@given(
    st.lists(st.tuples(*[st.floats(0, 10)] * 4, st.floats(0, 1)), min_size=0, max_size=12),
    st.floats(0.1, 0.9),
)
def test_suppression_leaves_no_overlap_and_drops_nothing_without_cause(
    rows: list[tuple[float, ...]], most: float
) -> None:
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
    kept = list(suppress_overlaps(boxes, table[:, 4], most))

    def overlap(a: np.ndarray, b: np.ndarray) -> bool:
        shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
        areas = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])
        return bool(shared > most * (areas - shared))

    for place, i in enumerate(kept):
        assert not any(overlap(boxes[i], boxes[j]) for j in kept[:place])
    for i in set(range(len(boxes))) - set(kept):
        assert any(overlap(boxes[j], boxes[i]) and table[j, 4] >= table[i, 4] for j in kept)
