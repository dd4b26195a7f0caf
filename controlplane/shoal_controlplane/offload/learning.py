"""What replies tell about a model on a target: how long it takes, how much it bears, what it costs.

Pure: samples and clock readings in, expectations out. The time of a request, transfer included, is
taken as linear in four features: a fixed part, its batch items, the megabytes of its inputs, and
the items that each ready replica has before it. The last one tells without overloading a replica
how many items at once it bears within a time, and, divided by that time, how many a second.

The coefficients are never negative and follow from exponentially forgetting least squares, solved
by coordinate descent that goes on from the last solution. What is not known is taken from a prior,
optimistic enough that an unknown target is tried. The spread around the line is the empirical
quantile of the last replies, so a target that turns slow is noticed within four of them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from shoal_controlplane.offload.target import Price

_QUANTILE = 0.95
_SWEEPS = 3
_LEAST_MS = 0.05
_MAX_RATE = 10_000.0
"""Items a second that are believed of one replica."""
_FEW = 20
"""Samples from which on their own quantile is taken; below, that of a log-normal distribution."""
_Z = 1.645
"""The quantile of 95 % of the standard normal distribution."""
_BELIEVED = 8.0
"""Items at once that a replica is believed to bear, as far as it is known to bear four."""
_SPREAD_WEIGHT = 2.0
"""Samples as which the prior's spread counts."""
_CLAMP = 4.0
"""A sample counts as at most so many times the expectation for the line: cold starts happen."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected of an unknown target: ms in all, per item, per megabyte of inputs and per
    item ahead on a replica; 95 of 100 requests within `spread` times that. It weighs as much as
    `weight` samples."""

    fixed_ms: float = 25.0
    item_ms: float = 2.0
    megabyte_ms: float = 8.0
    ahead_ms: float = 5.0
    spread: float = 1.5
    weight: float = 0.3


@dataclass(frozen=True, slots=True)
class Expectation:
    """Milliseconds until an answer: on average, and for 95 of 100 requests."""

    mean_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of one replica: items at once, and items a second."""

    concurrent: float
    items_per_s: float


class Learner:
    """Knowledge about one model on one target. The line remembers about `memory` samples, the
    spread the last `window` of the last `stale_s` seconds."""

    def __init__(
        self,
        prior: Prior | None = None,
        *,
        memory: int = 100,
        window: int = 64,
        stale_s: float = 60.0,
    ) -> None:
        self._prior = p = prior or Prior()
        self._line = [p.fixed_ms, p.item_ms, p.megabyte_ms, p.ahead_ms]
        self._toward = list(self._line)
        self._keep = 1.0 - 1.0 / memory
        self._products = [[0.0] * 4 for _ in range(4)]
        self._targets = [0.0] * 4
        self._window = window
        self._stale_s = stale_s
        self._ratios: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []
        self._early: list[tuple[float, tuple[float, ...], float]] = []
        self._spread = p.spread
        self._reach = 1.0
        self.samples = 0
        self.seen_at = -math.inf

    def expect(self, items: int, payload_bytes: int, ahead: float, now: float) -> Expectation:
        """The time of a request of `items` items and `payload_bytes` bytes of inputs, with `ahead`
        items before it on each replica."""
        p95_ms = self.p95_ms(items, payload_bytes, ahead, now)
        return Expectation(p95_ms / self._spread, p95_ms)

    def p95_ms(self, items: int, payload_bytes: int, ahead: float, now: float) -> float:
        """The latter part of `expect`, on the way of every request."""
        if self._ratios and now - self._ratios[0][0] > self._stale_s:
            self._forget(now)
        fixed, item, megabyte, before = self._line
        mean = fixed + item * items + megabyte * payload_bytes * 1e-6 + before * ahead
        return (mean if mean > _LEAST_MS else _LEAST_MS) * self._spread

    def observe(
        self, items: int, payload_bytes: int, ahead: float, took_ms: float, now: float
    ) -> None:
        """A request took `took_ms`, or at least that where it was given up."""
        if not math.isfinite(took_ms) or took_ms < 0:
            return
        expected = self.expect(items, payload_bytes, ahead, now).mean_ms
        features = (1.0, float(items), payload_bytes * 1e-6, ahead)
        if len(self._early) < _FEW:
            # The line moves much yet: their spread is around where it comes to lie.
            self._early.append((now, features, took_ms))
            self._fit(features, min(took_ms, _CLAMP * expected))
            known = [(at, took / self._along(x)) for at, x, took in self._early]
            self._ratios = deque(known)
            self._sorted = sorted(ratio for _, ratio in known)
        else:
            self._ratios.append((now, took_ms / expected))
            insort(self._sorted, took_ms / expected)
            while len(self._ratios) > self._window:
                self._drop_oldest()
            self._fit(features, min(took_ms, _CLAMP * expected))
        self._spread = self._measured_spread()
        self._reach = max(self._reach * self._keep, ahead + items, 1.0)
        self.samples += 1
        self.seen_at = now

    def capacity(self, within_ms: float | None = None) -> Capacity:
        """What one replica bears so that 95 of 100 requests of one item take `within_ms`, or
        twice as long as one alone where nothing is said. Not much beyond what was seen is
        believed."""
        alone = max(self._line[0] + self._line[1], _LEAST_MS)
        limit = 2 * alone if within_ms is None else max(alone, within_ms / self._spread)
        room = 1.0 + (limit - alone) / max(self._line[3], _LEAST_MS)
        concurrent = min(room, max(_BELIEVED, 2 * self._reach))
        return Capacity(concurrent, min(concurrent / limit * 1e3, _MAX_RATE))

    def _fit(self, features: tuple[float, ...], took_ms: float) -> None:
        products, targets, line = self._products, self._targets, self._line
        for i, feature in enumerate(features):
            row = products[i]
            for j, other in enumerate(features):
                row[j] = row[j] * self._keep + feature * other
            targets[i] = targets[i] * self._keep + feature * took_ms
        weight = self._prior.weight
        for _ in range(_SWEEPS):
            for i, row in enumerate(products):
                rest = targets[i] + weight * self._toward[i]
                for j, product in enumerate(row):
                    if j != i:
                        rest -= product * line[j]
                line[i] = max(0.0, rest / (row[i] + weight))

    def _forget(self, now: float) -> None:
        """What is long ago does not count against a target: it is to be tried again."""
        while self._ratios and now - self._ratios[0][0] > self._stale_s:
            self._drop_oldest()
        self._spread = min(self._spread, self._measured_spread())

    def _drop_oldest(self) -> None:
        _, ratio = self._ratios.popleft()
        del self._sorted[bisect_left(self._sorted, ratio)]

    def _along(self, features: tuple[float, ...]) -> float:
        sum_ = math.fsum(a * b for a, b in zip(self._line, features, strict=True))
        return max(sum_, _LEAST_MS)

    def _measured_spread(self) -> float:
        known, prior = self._sorted, self._prior
        if len(known) >= _FEW:
            return max(1.0, known[math.ceil(_QUANTILE * len(known)) - 1])
        weight = _SPREAD_WEIGHT
        squares = math.fsum(math.log(max(ratio, 1e-3)) ** 2 for ratio in known)
        squares += weight * (math.log(prior.spread) / _Z) ** 2
        return math.exp(_Z * math.sqrt(squares / (len(known) + weight)))


def request_price(price: Price, items: int, capacity: Capacity) -> float:
    """What one request costs: its own price and the part of a replica's time that it takes."""
    seconds = items / capacity.items_per_s
    return price.per_request + price.per_replica_hour / 3600.0 * seconds
