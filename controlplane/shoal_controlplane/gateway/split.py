"""How many items of a batch each place should take, and how large its next piece should be.

Pure decisions, after the water-filling of divisible loads: places differ in speed and in the
work that lies before them, and the batch is done when the last of them is.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

OVER_SPLIT = 1.3
"""A place's share is cut into this many times more pieces than it would need, so that what has
not been sent can go elsewhere if the place turns out slower than expected."""

IN_FLIGHT = 2
"""Pieces that a place has at a time: one that it computes and one that waits for it."""

_LEAST_MS = 1e-4
"""Of an item; profiles may say 0."""
_PRECISION_MS = 1e-5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a batch may go.

    It is busy for `waiting_ms`; then a piece of b items, at most `most`, takes
    `intercept_ms` + (`slope_ms` + `transfer_ms`) * b, of which `transfer_ms` is the way there and
    back. Pieces below `knee` waste time.
    """

    waiting_ms: float
    intercept_ms: float
    slope_ms: float
    most: int
    knee: int = 1
    transfer_ms: float = 0.0

    @property
    def item_ms(self) -> float:
        return max(self.slope_ms + self.transfer_ms, _LEAST_MS)

    def work_ms(self, items: int) -> float:
        """Time for `items` items, in as few pieces as can be."""
        return -(-items // self.most) * self.intercept_ms + items * self.item_ms

    def finish_ms(self, items: int) -> float:
        """When `items` items would be done; without any, when it is free."""
        return self.waiting_ms + self.work_ms(items)

    def room(self, until_ms: float) -> int:
        """The most items that are done by then."""
        full, rest = divmod(max(0.0, until_ms - self.waiting_ms), self.work_ms(self.most))
        more = math.floor((rest - self.intercept_ms) / self.item_ms)
        return int(full) * self.most + min(max(0, more), self.most)


def water_fill(items: int, places: Sequence[Place]) -> list[int]:
    """Items for each place, so that the last of them is done as early as can be.

    Raises `ValueError` if there is no place.
    """
    if not places:
        raise ValueError("a batch needs a place to go to")
    # At `low` they cannot be done, at `high` they can: one place could do them all.
    low = min(place.waiting_ms for place in places)
    high = min(place.finish_ms(items) for place in places)
    while high - low > _PRECISION_MS:
        level = (low + high) / 2
        if not low < level < high:
            break
        if sum(place.room(level) for place in places) >= items:
            high = level
        else:
            low = level
    shares = [place.room(low) for place in places]
    left = items - sum(shares)
    next_finish = [(p.finish_ms(shares[i] + 1), i) for i, p in enumerate(places)]
    heapq.heapify(next_finish)
    for _ in range(left):
        _, i = next_finish[0]
        shares[i] += 1
        heapq.heapreplace(next_finish, (places[i].finish_ms(shares[i] + 1), i))
    return shares


def makespan_ms(shares: Sequence[int], places: Sequence[Place]) -> float:
    """When all shares are done; 0 if there are none."""
    done = (p.finish_ms(n) for n, p in zip(shares, places, strict=True) if n)
    return max(done, default=0.0)


def next_piece(share: int, place: Place) -> int:
    """Items of the next piece of a share: large while much is left, down to the knee at the end.

    Never more than the place takes, and below the knee only where no more is left.
    """
    size = math.ceil(share / (IN_FLIGHT * OVER_SPLIT))
    size = min(max(size, place.knee), place.most, share)
    if share <= place.most and 2 * (share - size) < place.knee:
        return share
    return size
