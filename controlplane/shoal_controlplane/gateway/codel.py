"""CoDel on measured times: sheds where answers come late although predictions said they would not.

Pure. A sample is the time that an answer took over the time that it might take. If even the least
sample of an interval is above 1, requests are dropped, ever faster as long as that lasts; the ones
of the lowest rank that still comes are dropped first.

Source: RFC 8289, sections 5.2 to 5.5; "sojourn time below target" is "sample below 1" here.
"""

from __future__ import annotations

import math

INTERVAL_S = 0.1
STALE_S = 0.5
"""Without samples for so long, what they told is forgotten."""


class Codel:
    """Of one model, for requests of `ranks` ranks: 0 is the most important."""

    def __init__(self, ranks: int) -> None:
        self._asked_at = [-math.inf] * ranks
        self._sample_at = -math.inf
        self._late_at: float | None = None
        self._dropping = False
        self._next = 0.0
        self._count = 0
        self._last_count = 0

    @property
    def dropping(self) -> bool:
        return self._dropping

    def answered(self, ratio: float, now: float) -> None:
        """An answer came that took `ratio` times as long as it might."""
        if now - self._sample_at > STALE_S:
            self._late_at = None
        self._sample_at = now
        if ratio <= 1.0:
            self._late_at, self._dropping = None, False
        elif self._late_at is None:
            self._late_at = now + INTERVAL_S
        elif now >= self._late_at and not self._dropping:
            self._begin(now)

    def drops(self, rank: int, now: float) -> bool:
        """Whether to drop a request of `rank` that comes now."""
        self._asked_at[rank] = now
        if not self._dropping:
            return False
        if now - self._sample_at > STALE_S:
            self._dropping = False
            return False
        if now < self._next or any(now - at <= INTERVAL_S for at in self._asked_at[rank + 1 :]):
            return False
        self._count += 1
        self._next += INTERVAL_S / math.sqrt(self._count)
        return True

    def _begin(self, now: float) -> None:
        # Where dropping ended only just now, it goes on at about the rate that it had.
        delta = self._count - self._last_count
        recent = now - self._next < 16 * INTERVAL_S
        self._count = delta if delta > 1 and recent else 0
        self._last_count = self._count
        self._dropping = True
        self._next = now
