"""How many replicas of a model each of its targets should have.

Pure. Targets get warm when the devices may soon be full, grow for what the devices cannot answer
in time, at once, and shrink step by step when that has been less for a while; the last replica goes
after some time without any need. The order of the targets is the one in which requests prefer
them: the first takes as much as it can bear, the next the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_controlplane.gateway.clouds import Level, Pressure


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """Replicas are to be busy for `utilisation` of their time. One is given up after `down_s`
    without need for it, the last one after `idle_s`. A target that is not warm after `hurry_s` is
    no longer counted on, and the next one gets warm, too."""

    utilisation: float = 0.7
    down_s: float = 10.0
    idle_s: float = 60.0
    hurry_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Place:
    """A target as scaling sees it: what one replica bears, the most replicas that its limit, its
    quota and its budget allow (0 where it cannot be used now), how many answer, and for how long
    it has been getting warm."""

    target: str
    items_per_s: float
    most: int
    ready: int = 0
    warming_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Replicas that a target should have. All of them were needed at `held_at`, or one was given
    up then; any was needed at `used_at`."""

    replicas: int = 0
    held_at: float = -math.inf
    used_at: float = -math.inf


def needed(
    pressure: Pressure, places: Sequence[Place], settings: ScalingSettings
) -> dict[str, int]:
    """Replicas by target that the pressure asks for; targets without are left out."""
    if pressure.level is Level.CALM:
        return {}
    rest = pressure.excess_per_s if pressure.level is Level.SATURATED else 0.0
    found: dict[str, int] = {}
    counted = False
    for place in places:
        if place.most <= 0 or (counted and rest <= 0):
            continue
        each = max(place.items_per_s, 1e-3) * settings.utilisation
        wanted = min(place.most, max(1, math.ceil(rest / each - 1e-9)))
        found[place.target] = wanted
        if place.ready or place.warming_s < settings.hurry_s:
            counted = True
            rest -= wanted * each
    return found


def step(scale: Scale, need: int, most: int, now: float, settings: ScalingSettings) -> Scale:
    """What a target that should have `scale` until now should have from now on, where `need`
    replicas are needed and at most `most` possible."""
    need = min(need, most)
    used_at = now if need else scale.used_at
    if need >= scale.replicas:
        return Scale(need, now, used_at)
    if scale.replicas > most:
        return Scale(most, now, used_at)
    patience = settings.down_s if scale.replicas > 1 else settings.idle_s
    since = scale.held_at if scale.replicas > 1 else used_at
    if now - since < patience:
        return Scale(scale.replicas, scale.held_at, used_at)
    return Scale(scale.replicas - 1, now, used_at)
