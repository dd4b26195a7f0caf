"""A batch, five unequal devices, one of which turns slow midway, and how early it could end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal_shared.profiles import Profile, fit

DEVICES_MS = {
    "jetson-agx-orin": (0.48, 0.156),
    "jetson-orin-nx": (0.70, 0.379),
    "jetson-agx-xavier": (1.56, 0.463),
    "ascend-310": (0.525, 0.524),
    "jetson-nano": (4.0, 27.0),
}
"""t(b) = a + c*b: ResNet-50 (Ascend: MobileNetV1), measured by others; the last is a guess from
its 36 frames a second."""

MOST = 64
JITTER = 0.083
"""Coefficient of variation, as seen on a Snapdragon 8 Gen 3."""

SLOW_FACTOR = 5.0
HOP_MS = 0.25
"""Of a message each way: a broker on the same machine."""

Speed = Callable[[float], float]
"""How many times longer than usual things take at a time (ms)."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`slow_from_ms` is infinite where no device turns slow."""

    items: int
    profiles: dict[str, Profile]
    straggler: str
    slow_from_ms: float
    seed: int

    def work_ms(self, device: str, items: int, start_ms: float, jitter: float) -> float:
        """Time for a piece that starts at `start_ms`; what is left when the device turns slow
        takes longer."""
        usual = self.profiles[device].milliseconds(items) * jitter
        before = self.slow_from_ms - start_ms
        if device != self.straggler or usual <= before:
            return usual
        fast = max(0.0, before)
        return fast + (usual - fast) * SLOW_FACTOR

    def jitter(self, device: str, piece: int) -> float:
        """The same for the same piece of a device, whatever the policy."""
        rng = random.Random(f"{self.seed}/{device}/{piece}")
        return max(0.5, rng.gauss(1.0, JITTER))


def profile(intercept_ms: float, slope_ms: float) -> Profile:
    """As a device would measure it."""
    sizes = [1 << n for n in range(MOST.bit_length())]
    return fit([(b, intercept_ms + slope_ms * b) for b in sizes])


def draw(seed: int, items: int, *, slow: bool) -> Scenario:
    """The devices with speeds that vary by a third; the second fastest turns slow when half of
    the batch could be done."""
    rng = random.Random(seed)
    profiles = {}
    for device, (a, c) in DEVICES_MS.items():
        factor = rng.uniform(0.8, 1.25)
        profiles[device] = profile(a * factor, c * factor)
    ranked = sorted(profiles, key=lambda device: profiles[device].milliseconds(MOST))
    usual = Scenario(items, profiles, ranked[1], float("inf"), seed)
    if not slow:
        return usual
    return Scenario(items, profiles, ranked[1], ideal_ms(usual) / 2, seed)


def ideal_ms(scenario: Scenario) -> float:
    """When the batch could end at best: items flow like a liquid, in the largest batches, with
    no way to go, no jitter, and all that will happen known beforehand."""
    rates = {d: MOST / p.milliseconds(MOST) for d, p in scenario.profiles.items()}
    whole = sum(rates.values())
    done_before = whole * scenario.slow_from_ms
    if done_before >= scenario.items:
        return scenario.items / whole
    slow = whole - rates[scenario.straggler] * (1 - 1 / SLOW_FACTOR)
    return scenario.slow_from_ms + (scenario.items - done_before) / slow


def equal_shares(scenario: Scenario) -> dict[str, int]:
    """As many items for each device."""
    return _whole(scenario, [1.0] * len(scenario.profiles))


def proportional_shares(scenario: Scenario) -> dict[str, int]:
    """Items by what each device computes in the same time."""
    return _whole(scenario, [MOST / p.milliseconds(MOST) for p in scenario.profiles.values()])


def _whole(scenario: Scenario, weights: Sequence[float]) -> dict[str, int]:
    total, given, passed, shares = sum(weights), 0, 0.0, {}
    for device, weight in zip(scenario.profiles, weights, strict=True):
        passed += weight
        until = round(scenario.items * passed / total)
        shares[device] = until - given
        given = until
    return shares
