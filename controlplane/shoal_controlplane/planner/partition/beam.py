"""Beam search for fleets with too many types for the exact programme.

For a bottleneck T, plans grow from the front, each stage as long as T allows; of all plans in the
making those are kept that leave the most for the rest of the model. T is bisected.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal_controlplane.planner.partition.tables import Choice, Floats, Tables

_WIDTH = 128
_ENDS = 4
"""Ends tried for each stage: the farthest ones, and the one with the least to send."""
_SHARES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of replicas tried."""
_PRECISION = 1.002


@dataclass(frozen=True, slots=True)
class _Terms:
    """What does not depend on T. `rest` (L+1,) is the share of the work from a boundary on, `load`
    the same of memory; `speed` and `room` (V,) are what one device of a type has."""

    rest: Floats
    load: Floats
    speed: Floats
    room: Floats
    shares: tuple[int, ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Level:
    """Plans in the making with the same number of stages. `used` (W, V); `origin` is the row of
    the level before; the others (W,)."""

    at: NDArray[np.int64]
    kind: NDArray[np.int64]
    replicas: NDArray[np.int64]
    used: NDArray[np.int64]
    origin: NDArray[np.int64]


class Beam:
    """`work` (V, L) are times of segments by type, `weights` (L,) their memory, `room` (V,) that of
    one device of each type."""

    def __init__(self, tables: Tables, work: Floats, weights: Floats, room: Floats) -> None:
        self._tables = tables
        totals = np.maximum(work.sum(axis=1), 1e-12)
        share = np.mean(work / totals[:, None], axis=0)
        rest = np.concatenate([np.cumsum(share[::-1])[::-1], [0.0]])
        load = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])
        most = max(tables.replicas)
        # A seed of its own: the same problem has the same plan.
        labels = np.random.default_rng(4).integers(1, 1 << 62, tables.kinds + 2)
        self._terms = _Terms(
            rest, load, 1 / totals, room, tuple(r for r in _SHARES if r <= most), labels
        )

    def best(self, least: float, most: float) -> list[Choice] | None:
        """A plan with a small bottleneck between `least` and `most` ms (infinite if not known);
        None if none was found."""
        plan = self.attempt(most)
        if plan is None:
            return None
        high = min(most, self._bottleneck(plan))
        low = max(least, high * 1e-6)
        while high > low * _PRECISION:
            middle = float(np.sqrt(high * low))
            found = self.attempt(middle)
            if found is None:
                low = middle
            else:
                plan, high = found, min(middle, self._bottleneck(found))
        return plan

    def attempt(self, limit: float) -> list[Choice] | None:
        """A plan in which nothing takes longer than `limit`."""
        tables = self._tables
        # Infinite times do not pass.
        limit = min(limit, float(np.finfo(np.float64).max))
        ends = self._ends(limit)
        start = np.zeros(1, np.int64)
        levels = [_Level(start, start - 1, start, np.zeros((1, tables.kinds), np.int64), start)]
        for _ in range(min(tables.length, sum(tables.caps))):
            level = self._next(levels[-1], ends, limit)
            if level is None:
                return None
            levels.append(level)
            done = np.flatnonzero(level.at == tables.length)
            if done.size:
                return _path(levels, int(done[0]))
        return None

    def _next(self, level: _Level, ends: NDArray[np.int64], limit: float) -> _Level | None:
        tables, terms = self._tables, self._terms
        shares = np.array(terms.shares)
        caps = np.array(tables.caps)
        if level.kind[0] < 0:
            link = np.broadcast_to(tables.entry / 1.0, (1, tables.kinds))
            senders = np.full(1, shares[-1])
        else:
            link = tables.transfer[level.kind, :, level.at]
            senders = level.replicas
        ends_here = ends[level.at]
        sharing = np.minimum(senders[:, None], shares[None, :])
        fits = link[:, :, None] / sharing[:, None, :] <= limit
        fits &= level.used[:, :, None] + shares <= caps[None, :, None]
        fits &= shares <= np.array(tables.replicas)[None, :, None]
        row, kind, share, which = np.nonzero(fits[..., None] & (ends_here >= 0))
        if not row.size:
            return None
        at = ends_here[row, kind, share, which]
        replicas = shares[share]
        used = level.used[row]
        used[np.arange(row.size), kind] += replicas
        score = self._score(at, used, limit)
        order = np.argsort(score, kind="stable")
        order = order[np.isfinite(score[order])]
        marks = at * terms.labels[-1] + kind * terms.labels[-2] + used @ terms.labels[:-2]
        _, firsts = np.unique(marks[order], return_index=True)
        kept = order[np.sort(firsts)[:_WIDTH]]
        if not kept.size:
            return None
        return _Level(at[kept], kind[kept], replicas[kept], used[kept], row[kept])

    def _score(self, at: NDArray[np.int64], used: NDArray[np.int64], limit: float) -> Floats:
        """How much of the devices left the rest of the model needs, in work or in memory; infinite
        where none are left."""
        tables, terms = self._tables, self._terms
        left = np.array(tables.caps) - used
        speed, room = left @ terms.speed, left @ terms.room
        done = at == tables.length
        with np.errstate(divide="ignore", invalid="ignore"):
            work = np.where(done, 0.0, terms.rest[at] / speed / limit)
            memory = np.where(done, 0.0, terms.load[at] / room)
        return np.asarray(np.maximum(work, memory))

    def _ends(self, limit: float) -> NDArray[np.int64]:
        """Ends for stages by start, type, and replicas; -1 where there are fewer than asked for."""
        tables = self._tables
        size = tables.length + 1
        result = np.full((size, tables.kinds, len(self._terms.shares), _ENDS), -1, np.int64)
        # The best that any type can do with what leaves this one.
        onward = np.min(tables.transfer, axis=1)
        onward[:, -1] = tables.exit
        most = max(tables.replicas)
        for n, share in enumerate(self._terms.shares):
            possible = tables.cost / share <= limit
            sharing = share if most > 1 else 1
            possible &= (onward / sharing <= limit)[:, None, :]
            cheap = np.where(possible, onward[:, None, :], np.inf)
            far = np.where(possible, np.arange(size), -1)
            farthest = far.max(axis=2)
            cheap[np.arange(size) * 2 < farthest[:, :, None] + np.arange(size)[None, :, None]] = (
                np.inf
            )
            lightest = np.where(np.isfinite(cheap.min(axis=2)), cheap.argmin(axis=2), -1)
            ranked = np.sort(far, axis=2)[:, :, ::-1][:, :, : _ENDS - 1]
            result[:, :, n, : ranked.shape[2]] = ranked.transpose(1, 0, 2)
            result[:, :, n, -1] = lightest.T
        return result

    def _bottleneck(self, plan: list[Choice]) -> float:
        tables = self._tables
        worst = [tables.entry[plan[0][2]] / plan[0][3], tables.exit[plan[-1][2]] / plan[-1][3]]
        worst += [tables.cost[kind, first, last] / r for first, last, kind, r in plan]
        for (_, at, u, a), (_, _, v, b) in itertools.pairwise(plan):
            worst.append(tables.transfer[u, v, at] / min(a, b))
        return float(max(worst))


def _path(levels: list[_Level], row: int) -> list[Choice]:
    choices: list[Choice] = []
    for n in range(len(levels) - 1, 0, -1):
        level = levels[n]
        origin = int(level.origin[row])
        start = int(levels[n - 1].at[origin])
        choices.append((start, int(level.at[row]), int(level.kind[row]), int(level.replicas[row])))
        row = origin
    return choices[::-1]
