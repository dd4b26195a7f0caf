"""When a failing target gets no requests for a while, and when it is tried again.

Pure: outcomes and clock readings in. As the router does with devices: after enough failures in a
row it is ejected for a time that doubles up to a limit, then probed by a single request.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """Times in seconds."""

    failures: int = 2
    pause_s: float = 1.0
    max_pause_s: float = 60.0


class Breaker:
    """Of one model on one target."""

    def __init__(self, settings: BreakerSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._failures = 0
        self._ejections = 0
        self._probing = False
        self.until = 0.0
        """Ejected until then; 0 where it is not."""

    def admits(self, now: float) -> bool:
        """Whether it gets requests: it is not ejected, or may be probed."""
        return not self.until or (now >= self.until and not self._probing)

    def begin(self) -> bool:
        """A request is sent; whether it is a probe, which the outcome repeats."""
        probe = bool(self.until)
        self._probing = self._probing or probe
        return probe

    def succeeded(self) -> None:
        """It answered: everything is forgotten."""
        self._failures = self._ejections = 0
        self._probing = False
        self.until = 0.0

    def released(self, probe: bool) -> None:
        """A request ended without telling anything."""
        if probe:
            self._probing = False

    def failed(self, now: float, probe: bool) -> None:
        """It is to blame for a failure. Failures of requests that were on their way when it was
        ejected do not prolong that."""
        if probe:
            self.eject(now)
        elif now >= self.until:
            self._failures += 1
            if self._failures >= self._settings.failures:
                self.eject(now)

    def eject(self, now: float, pause_s: float | None = None) -> None:
        """Eject it at once, for `pause_s` where it said so itself."""
        s = self._settings
        if pause_s is None:
            pause_s = min(s.max_pause_s, s.pause_s * 2**self._ejections)
            pause_s *= self._rng.uniform(0.8, 1.2)
        self._ejections = min(self._ejections + 1, 16)
        self._failures = 0
        self._probing = False
        self.until = max(self.until, now + pause_s)
