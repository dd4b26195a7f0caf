"""How long requests take by their profiles, and how much longer 95 of 100 of them take.

Pure: samples of actual over expected delay in, a factor out. A histogram with bins of equal ratio
costs O(1) a sample and nothing that grows; its counts halve from time to time, so that it follows
what changes.
"""

from __future__ import annotations

import math

from shoal_shared.profiles import Profile

LEAST_MS = 1e-3
"""Profiles may say 0."""

SHARE = 0.95
PRIOR = 2.0
"""Where nothing is known."""

MIN_SAMPLES = 32
"""With fewer, what others have learnt is the better guess."""

WINDOW = 256
"""Counts halve when there are as many: a sample counts half after 128 others."""

BINS_PER_OCTAVE = 8
_OCTAVES = 8
_BINS = BINS_PER_OCTAVE * _OCTAVES
_REFRESH = 8


class Tail:
    """The 95th percentile of a stream of ratios, within a bin: up to 9 % too high.

    Ratios below 1 count as 1, and those above 256 as 256.
    """

    __slots__ = ("_counts", "_due", "_p95", "_total")

    def __init__(self) -> None:
        self._counts = [0.0] * (_BINS + 1)
        self._total = 0.0
        self._due = MIN_SAMPLES
        self._p95 = PRIOR

    def add(self, ratio: float) -> None:
        """Count one sample, `ratio` >= 0."""
        self._counts[_bin(ratio)] += 1.0
        self._total += 1.0
        self._due -= 1
        if not self._due:
            self._refresh()

    @property
    def known(self) -> bool:
        """Whether there were enough samples."""
        return self._total >= MIN_SAMPLES

    @property
    def p95(self) -> float:
        """At least 1; `PRIOR` while too little is known. As of at most 8 samples ago."""
        return self._p95

    def _refresh(self) -> None:
        self._due = _REFRESH
        left = (1.0 - SHARE) * self._total
        for index in range(_BINS, -1, -1):
            left -= self._counts[index]
            if left < 0:
                self._p95 = 2.0 ** (index / BINS_PER_OCTAVE)
                break
        if self._total >= WINDOW:
            self._counts = [count / 2 for count in self._counts]
            self._total /= 2


def _bin(ratio: float) -> int:
    """The bin whose upper end is the first one at or above `ratio`."""
    if ratio <= 1.0:
        return 0
    return min(_BINS, math.ceil(math.log2(ratio) * BINS_PER_OCTAVE))


def item_ms(profile: Profile) -> float:
    """Milliseconds for one item by itself, more than 0."""
    return max(profile.milliseconds(1), LEAST_MS)


def batched_ms(profile: Profile, items: int) -> float:
    """Milliseconds for `items` items in batches up to the knee."""
    if items <= profile.knee:
        return profile.milliseconds(items)
    full, rest = divmod(items, profile.knee)
    total = full * profile.milliseconds(profile.knee)
    return total + (profile.milliseconds(rest) if rest else 0.0)
