"""Exponential backoff with jitter."""

from __future__ import annotations

import random


class Backoff:
    """Pauses that grow by a factor of two up to a cap.

    Each is drawn evenly between `floor` times its top and the top; a floor of 0 is full jitter,
    which spreads a fleet that lost its broker in the same instant.
    """

    def __init__(
        self, rng: random.Random, *, base_s: float, cap_s: float, floor: float = 0.0
    ) -> None:
        if not (0 < base_s <= cap_s and 0 <= floor <= 1):
            raise ValueError("backoff needs 0 < base <= cap and a floor between 0 and 1")
        self._rng = rng
        self._base_s = base_s
        self._cap_s = cap_s
        self._floor = floor
        self._attempt = 0

    def next(self) -> float:
        """Seconds to pause after one more failure."""
        top = pause_top(self._attempt, base_s=self._base_s, cap_s=self._cap_s)
        self._attempt += 1
        return self._rng.uniform(self._floor * top, top)

    def reset(self) -> None:
        """Begin anew: something succeeded."""
        self._attempt = 0


def pause_top(attempt: int, *, base_s: float, cap_s: float) -> float:
    """Longest pause in seconds after `attempt` earlier failures."""
    # The exponent is bounded because a float overflows after a thousand failures.
    return min(cap_s, base_s * 2.0 ** min(attempt, 64))
