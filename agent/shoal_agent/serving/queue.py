"""When to launch which waiting requests of one model: pure decisions over a snapshot.

A model's service time is t(b) = a + c*b, so merging requests pays up to the knee of t. An idle
accelerator gets what is there at once. While it is busy, waiting costs nothing, so a batch may
grow until it reaches the largest size worth having, or until the next item would make one of
its requests late.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shoal_shared.profiles import Profile

PATIENCE_S = 1.0
"""A request without a deadline, or with a far one, ranks as if it were due this long after its
arrival: so none is starved by a stream of urgent ones."""


@dataclass(slots=True, eq=False)
class Entry:
    """A waiting request, as far as decisions need it. Times are monotonic seconds.

    `number` counts arrivals; `items` is its own batch size; entries of equal `kind` may share a
    batch, None may not be merged at all; `deadline` is infinite where there is none.
    """

    number: int
    items: int
    kind: Hashable
    arrived: float
    deadline: float
    rank: tuple[float, int] = field(init=False)
    """Earliest deadline first, equal ones in the order of arrival."""

    def __post_init__(self) -> None:
        self.rank = (min(self.deadline, self.arrived + PATIENCE_S), self.number)


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is known about a model's batches: its t(b), and the sizes worth launching.

    `sizes` are profiled ones in ascending order, none past the knee.
    """

    profile: Profile
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, profile: Profile, max_batch: int) -> Limits:
        """Limits of a profiled model that takes at most `max_batch` items, 1 for no merging."""
        most = min(profile.knee, max_batch)
        return cls(profile, tuple(b for b, _ in profile.samples if b <= most) or (1,))

    def seconds(self, items: int) -> float:
        """Predicted service time."""
        return self.profile.milliseconds(items) / 1000


@dataclass(frozen=True, slots=True)
class Decision(Generic[E]):
    """Requests to answer as expired, a batch to launch, and when to decide again.

    `launch` is empty where it is better to wait: until an arrival, the end of a running batch,
    or `wait_until`, whichever comes first. Infinite: no time of its own.
    """

    expired: list[E]
    launch: list[E]
    wait_until: float = math.inf


def enqueue(waiting: list[E], entry: E) -> None:
    """Add an entry to a queue that is kept in the order of `rank`."""
    if not waiting or waiting[-1].rank < entry.rank:
        waiting.append(entry)
    else:
        insort(waiting, entry, key=_rank)


def decide(waiting: Sequence[E], limits: Limits, now: float, free_at: float | None) -> Decision[E]:
    """Decide about a queue in the order of `rank`.

    `free_at` is when the accelerator is expected to finish what it has, None where it is idle.
    """
    expired = expired_of(waiting, now)
    if expired:
        waiting = [entry for entry in waiting if entry.deadline > now]
    if not waiting:
        return Decision(expired, [])
    start = now if free_at is None else max(now, free_at)
    batch = _largest_batch(waiting, limits, start)
    if free_at is None:
        return Decision(expired, batch)
    items = sum(entry.items for entry in batch)
    if batch[0].kind is None or items >= limits.sizes[-1]:
        return Decision(expired, batch)
    latest_growth = min(entry.deadline for entry in batch) - limits.seconds(items + 1)
    if start >= latest_growth:
        return Decision(expired, batch)
    return Decision(expired, [], min(latest_growth, *(entry.deadline for entry in waiting)))


def expired_of(waiting: Sequence[E], now: float) -> list[E]:
    """Entries whose deadline has passed, of a queue in the order of `rank`."""
    out: list[E] = []
    for entry in waiting:
        if entry.rank[0] > now:
            break
        if entry.deadline <= now:
            out.append(entry)
    return out


def _largest_batch(waiting: Sequence[E], limits: Limits, start: float) -> list[E]:
    """The first entry, and the entries next in rank that fit into a profiled size with it.

    None joins that would make another late. The first entry is launched even if it is larger
    than any size, or bound to be late: the prediction may be wrong.
    """
    head = waiting[0]
    if head.kind is None or len(waiting) == 1:
        return [head]
    batch, items, good = [head], head.items, 1
    due = head.deadline
    if start + limits.seconds(items) > due:
        due = math.inf
    for entry in waiting[1:]:
        if entry.kind != head.kind:
            continue
        items += entry.items
        due = min(due, entry.deadline)
        if items > limits.sizes[-1] or start + limits.seconds(items) > due:
            break
        batch.append(entry)
        if items in limits.sizes:
            good = len(batch)
    return batch[:good]


def _rank(entry: Entry) -> tuple[float, int]:
    return entry.rank
