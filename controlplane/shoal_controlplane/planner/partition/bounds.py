"""Lower bounds of the bottleneck, for the exact programme to start from and the search to be
measured by."""

from __future__ import annotations

import numpy as np

from shoal_controlplane.planner.partition.problem import Problem
from shoal_controlplane.planner.partition.tables import Floats, Tables

_ROUNDING = 1 - 1e-9
"""Sums in another order differ by that much at most."""


def bottleneck_bound(problem: Problem, tables: Tables) -> float:
    """No plan has a bottleneck below this, in ms: the largest of the way in, the way out, the
    segment that takes longest wherever it runs, and all work shared by all devices at will."""
    replicas = np.array(tables.replicas)
    bounds = [
        float(np.min(tables.entry / replicas)),
        float(np.min(tables.exit / replicas)),
        _largest_segment(tables.cost / replicas[:, None, None]),
        _all_work(problem, tables),
    ]
    return max(bounds) * _ROUNDING


def _largest_segment(cost: Floats) -> float:
    """The most that a segment takes in the stage that suits it best."""
    best = np.min(cost, axis=0)
    best = np.minimum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
    best = np.minimum.accumulate(best, axis=0)
    slowest = float(np.max(np.diagonal(best, offset=1)))
    return slowest if np.isfinite(slowest) else 0.0


def _all_work(problem: Problem, tables: Tables) -> float:
    """Total work over total speed.

    Times a(v, s) of segment s on type v add up to no more than the time of any stage. Then with
    any weights w(s), a device does at most T * max over s of w(s) / a(v, s) of the total weight in
    T ms (duality of linear programmes); the weights tried are the times of each type.
    """
    times = np.array([kind.times_ms for kind in problem.types], np.float64)
    share = np.ones(len(times))
    for (first, last, kind), ms in problem.known_ms.items():
        # A measured stage may take less than its parts.
        summed = max(ms, sum(problem.types[kind].times_ms[first:last]))
        share[kind] = min(share[kind], ms / summed)
    times *= share[:, None]
    most = tables.length if problem.stages is None else problem.stages
    best = 0.0
    for weights in (*times, np.exp(np.mean(np.log(np.maximum(times, 1e-12)), axis=0))):
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = np.max(np.where(weights > 0, weights / times, 0.0), axis=1)
        each = np.repeat(rates, tables.caps)
        if max(tables.replicas) == 1:
            # One device a stage: only so many can take part.
            each = np.sort(each)[::-1][:most]
        best = max(best, float(np.sum(weights) / np.sum(each))) if np.sum(each) > 0 else best
    return best
