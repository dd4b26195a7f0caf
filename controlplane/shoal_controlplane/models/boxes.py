"""Finding boxes in what detectors return: regions of a heat map, anchors, overlapping boxes.

Boxes are float arrays [n, 4] of left, top, right, bottom; right and bottom are exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def heatmap_regions(heat: NDArray[Any], threshold: float) -> tuple[FloatArray, FloatArray]:
    """Connected regions (eight neighbours) of a map [h, w] where it is above `threshold`.

    Returns their bounding boxes in map pixels and the mean of the map over each region, ordered
    by the first pixel met row by row. Works on horizontal runs instead of pixels.
    """
    height, width = heat.shape
    mask = np.zeros((height, width + 2), dtype=np.int8)
    mask[:, 1:-1] = heat > threshold
    edges = np.diff(mask.ravel())
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if not len(starts):
        return np.zeros((0, 4)), np.zeros(0)
    rows = starts // (width + 2)
    left, right = starts - rows * (width + 2), ends - rows * (width + 2)
    region = _connect(starts, ends, width + 2)
    _, region = np.unique(region, return_inverse=True)

    boxes = np.empty((region.max() + 1, 4))
    boxes[:, :2], boxes[:, 2:] = np.inf, -np.inf
    for column, values, extreme in (
        (0, left, np.minimum),
        (1, rows, np.minimum),
        (2, right, np.maximum),
        (3, rows + 1, np.maximum),
    ):
        extreme.at(boxes[:, column], region, values)
    summed = np.zeros((height, width + 1))
    np.cumsum(heat, axis=1, dtype=np.float64, out=summed[:, 1:])
    totals = np.bincount(region, weights=summed[rows, right] - summed[rows, left])
    return boxes, totals / np.bincount(region, weights=right - left)


def _connect(starts: IntArray, ends: IntArray, pitch: int) -> IntArray:
    """Give touching runs of neighbouring rows the same number: the least of their indices.

    Runs are sorted half-open intervals of positions in an image whose rows are `pitch` long.
    """
    first = np.searchsorted(ends, starts + pitch, side="left")
    last = np.searchsorted(starts, ends + pitch, side="right")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts, counts) + first[upper]
    region = np.arange(len(starts))
    while True:
        before = region.copy()
        least = np.minimum(region[upper], region[lower])
        # Hook the roots, not only the runs, then shorten the paths: few rounds even for spirals.
        for member in (region[upper], region[lower], upper, lower):
            np.minimum.at(region, member, least)
        while not np.array_equal(region, region[region]):
            region = region[region]
        if np.array_equal(region, before):
            return region


def grow(boxes: FloatArray, ratio: float) -> FloatArray:
    """Move every side outwards by `ratio` x area / perimeter (the unclipping of DB, Liao 2020)."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    distance = ratio * width * height / (2 * (width + height))
    grown: FloatArray = boxes + distance[:, None] * np.array([-1.0, -1.0, 1.0, 1.0])
    return grown


def anchor_centres(size: tuple[int, int], strides: Sequence[int]) -> FloatArray:
    """Centres (x, y) in input pixels of MediaPipe's anchors for an input of (height, width).

    Two anchors a cell and layer; neighbouring layers of equal stride share their cells. Source:
    mediapipe/calculators/tflite/ssd_anchors_calculator.cc with fixed_anchor_size.
    """
    height, width = size
    layers = list(strides)
    centres: list[FloatArray] = []
    while layers:
        stride = layers[0]
        repeats = 0
        while layers and layers[0] == stride:
            layers.pop(0)
            repeats += 2
        y, x = np.meshgrid(
            (np.arange(height // stride) + 0.5) * stride,
            (np.arange(width // stride) + 0.5) * stride,
            indexing="ij",
        )
        centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), repeats, axis=0))
    return np.concatenate(centres)


def suppress_overlaps(boxes: FloatArray, scores: FloatArray, most: float) -> IntArray:
    """Non-maximum suppression: indices of the boxes to keep, best score first.

    A box goes if its intersection over union with a better one is above `most`.
    """
    order = np.argsort(-scores, kind="stable")
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)
    kept: list[int] = []
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        top_left = np.maximum(boxes[best, :2], boxes[order, :2])
        bottom_right = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.prod(np.maximum(bottom_right - top_left, 0.0), axis=1)
        union = areas[best] + areas[order] - shared
        order = order[shared <= most * union]
    return np.array(kept, dtype=np.int64)
