"""When a board counts as throttled, and when its models are to be measured again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_shared.clock import Clock

HOLD_S = 5.0
"""Without a sign for this long, a board no longer counts as throttled: signs come in bursts."""
AGAIN_S = 30.0
"""While it lasts, models are measured again after this long: heat changes slowly."""


@dataclass(frozen=True)
class Step:
    """`changed`: the board began or ceased to throttle. `measure`: measure the models anew."""

    changed: bool = False
    measure: bool = False


class HeatWatch:
    """Follows a board's signs of throttling, looked at a few times a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_sign = 0.0
        self._measured_at = 0.0
        self.throttled = False
        """Whether the board counts as throttled."""

    def see(self, sign: bool) -> Step:
        """Take in whether the board shows a sign of throttling now."""
        now = self._clock()
        if sign:
            self._last_sign = now
        throttled = sign or (self.throttled and now - self._last_sign < HOLD_S)
        changed = throttled is not self.throttled
        self.throttled = throttled
        measure = changed or (throttled and now - self._measured_at >= AGAIN_S)
        if measure:
            self._measured_at = now
        return Step(changed, measure)
