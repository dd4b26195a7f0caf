"""How full a model's devices are: windows of 50 ms, and a state machine with hysteresis.

Pure: one figure a window in, a level out. The figure is

    rho = (work on the devices + work turned away, as of the whole horizon) / (capacity * horizon)

so that 1 means: what comes now is answered just within the horizon, and nothing more fits. The
model is saturated from when rho was above 0.9 in 3 of 5 windows, and no longer when it was below
0.7 for 2 s. In between, above 0.75 in 3 of 5 windows and rising over them, clouds get warm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from shoal_controlplane.gateway.clouds import Level

WINDOW_S = 0.05
DEFAULT_HORIZON_MS = 250.0
"""Where a model has no SLO."""

MAX_RHO = 100.0
"""Stands for infinitely full, such as where work comes and no device is there."""


@dataclass(frozen=True, slots=True)
class SaturationSettings:
    """`votes` of the last `windows` windows decide on the way up, `leave_s` on the way down."""

    enter: float = 0.9
    rising: float = 0.75
    leave: float = 0.7
    votes: int = 3
    windows: int = 5
    leave_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Load:
    """One device of a model: the milliseconds of work before a new request, as 95 of 100 such
    predictions allow for, and the items a second that it can do of this model."""

    backlog_ms: float
    items_per_s: float


def fullness(loads: Sequence[Load], turned_away_per_s: float, horizon_ms: float) -> float:
    """rho of devices, all of which get requests now; `turned_away_per_s` in items.

    A device counts by what it can do: a slow one with much work is not a full fleet.
    """
    capacity = sum(load.items_per_s for load in loads)
    if capacity <= 0:
        return MAX_RHO if turned_away_per_s > 0 else 0.0
    work_ms = sum(load.backlog_ms * load.items_per_s for load in loads)
    return min(MAX_RHO, work_ms / (capacity * horizon_ms) + turned_away_per_s / capacity)


class Saturation:
    """The state machine of one model."""

    def __init__(self, settings: SaturationSettings | None = None) -> None:
        self._settings = settings or SaturationSettings()
        self._rhos: deque[float] = deque(maxlen=self._settings.windows)
        self._low_since: float | None = None
        self.level = Level.CALM

    def step(self, rho: float, now: float) -> bool:
        """Take in the figure of a window; whether the level has changed."""
        s, before = self._settings, self.level
        self._rhos.append(rho)
        if rho >= s.leave:
            self._low_since = None
        elif self._low_since is None:
            self._low_since = now
        if self._votes(s.enter):
            self.level = Level.SATURATED
        elif self._low_since is not None and now - self._low_since >= s.leave_s:
            self.level = Level.CALM
        elif before is Level.CALM and self._votes(s.rising) and self._rhos[0] < rho <= s.enter:
            # Above `enter` the next window or two tell whether it is more than that.
            self.level = Level.RISING
        return self.level is not before

    def _votes(self, limit: float) -> bool:
        return sum(rho > limit for rho in self._rhos) >= self._settings.votes


@dataclass(frozen=True, slots=True)
class Picture:
    """How a model fares. `since` is the wall time of the last change of level, 0 before the
    first one. `edge`, `spilled` by target, and `shed` are shares of the items of the last second;
    `items_per_s` is how many there were, and `excess_per_s` those of them that the devices did
    not take."""

    level: Level = Level.CALM
    since: float = 0.0
    rho: float = 0.0
    items_per_s: float = 0.0
    excess_per_s: float = 0.0
    edge: float = 0.0
    spilled: Mapping[str, float] = field(default_factory=dict)
    shed: float = 0.0

    @property
    def sentence(self) -> str:
        """Such as "saturated since 12:03:10: rho 1.31; spilling 22 % to aks-west, shedding 3 %",
        the time in UTC."""
        text = self.level.value
        if self.since:
            text += f" since {datetime.fromtimestamp(self.since, timezone.utc):%H:%M:%S}"
        text += f": rho {self.rho:.2f}"
        parts = [f"spilling {_percent(s)} to {t}" for t, s in sorted(self.spilled.items()) if s]
        if self.shed:
            parts.append(f"shedding {_percent(self.shed)}")
        return f"{text}; {', '.join(parts)}" if parts else text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"
