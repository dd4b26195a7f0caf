"""What a target may cost: a token bucket in currency.

Pure: amounts and clock readings in. It fills at the cap per hour and holds what `BURST_S` seconds
fill, so that spikes may be paid at once: in any hour at most the cap and one full bucket are spent.
What runs is charged whatever is left, since it costs; whoever asks `affords` before each charge
never overdraws.
"""

from __future__ import annotations

import math
from collections import deque

BURST_S = 600.0
_HOUR_S = 3600.0
_BIN_S = 60.0
_ROUNDING = 1e-9


class Budget:
    """The bucket of one target; `cap` is in currency per hour, None where there is none."""

    def __init__(self, cap: float | None, now: float) -> None:
        self._cap = cap
        self._level = self._full = (cap or 0.0) * BURST_S / _HOUR_S
        self._at = now
        self._spent: deque[tuple[float, float]] = deque()
        self.spent = 0.0
        """All since the start."""

    @property
    def cap(self) -> float | None:
        return self._cap

    def limit(self, cap: float | None, now: float) -> None:
        """Have another cap from now on; what was spent stays spent."""
        self._refill(now)
        before, self._cap = self._cap, cap
        self._full = (cap or 0.0) * BURST_S / _HOUR_S
        self._level = self._full if before is None else min(self._level, self._full)

    def left(self, now: float) -> float:
        """What can be spent at once; infinite without a cap, negative after an overdraft."""
        if self._cap is None:
            return math.inf
        self._refill(now)
        return self._level

    def affords(self, amount: float, now: float) -> bool:
        """Whether `amount` can be paid. What costs nothing always can."""
        if amount <= 0 or self._cap is None:
            return True
        # What is there counts without looking at the clock.
        enough = amount * (1 - _ROUNDING)
        return self._level >= enough or self.left(now) >= enough

    def charge(self, amount: float, now: float) -> None:
        """`amount` was spent."""
        if amount <= 0:
            return
        self._refill(now)
        self.spent += amount
        if self._cap is not None:
            self._level -= amount
        start = now - now % _BIN_S
        if self._spent and self._spent[-1][0] >= start:
            start, sum_ = self._spent.pop()
            amount += sum_
        self._spent.append((start, amount))

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be paid; infinite if it never can."""
        if self.affords(amount, now):
            return 0.0
        if not self._cap or amount > self._full:
            return math.inf
        return (amount - self.left(now)) / (self._cap / _HOUR_S)

    def runs(self, per_hour: float, seconds: float, now: float) -> int:
        """How many things that cost `per_hour` each can run for the next `seconds`."""
        if self._cap is None or per_hour <= 0:
            return 1_000_000
        filled = self.left(now) + self._cap * seconds / _HOUR_S
        return max(0, math.floor(filled / (per_hour * seconds / _HOUR_S) * (1 + _ROUNDING)))

    def last_hour(self, now: float) -> float:
        """What was spent in the last hour, to a minute."""
        while self._spent and self._spent[0][0] <= now - _HOUR_S - _BIN_S:
            self._spent.popleft()
        return math.fsum(amount for start, amount in self._spent if start > now - _HOUR_S)

    def _refill(self, now: float) -> None:
        if self._cap is not None and now > self._at:
            gained = self._cap * (now - self._at) / _HOUR_S
            self._level = min(self._full, self._level + gained)
        self._at = max(self._at, now)
