"""Service-time profiles: t(b) = a + c*b, measured per model and device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec

KNEE_GAIN = 0.10
"""A larger batch must raise throughput by this fraction, or the knee lies before it."""


# Devices send profiles, and the router computes with them: no NaN, no division by zero.
_Batch = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Measured service time of one model on one device.

    `samples` holds (batch size, milliseconds) pairs in ascending batch size; `intercept_ms`
    and `slope_ms` are a and c of t(b) = a + c*b, both >= 0; `knee` is the largest batch size
    worth waiting for.
    """

    samples: tuple[tuple[_Batch, _Milliseconds], ...]
    intercept_ms: _Milliseconds
    slope_ms: _Milliseconds
    knee: _Batch

    def milliseconds(self, batch: int) -> float:
        """Predicted service time of a batch of `batch` items, in ms."""
        return self.intercept_ms + self.slope_ms * batch


def is_past_knee(samples: Sequence[tuple[int, float]]) -> bool:
    """Whether the last sample shows that a larger batch no longer pays.

    True when items per ms of the last batch size exceed those of the one before by less than
    `KNEE_GAIN`.
    """
    if len(samples) < 2:
        return False
    (b0, t0), (b1, t1) = samples[-2], samples[-1]
    return b1 / max(t1, 1e-6) < (1 + KNEE_GAIN) * b0 / max(t0, 1e-6)


def fit(samples: Sequence[tuple[int, float]]) -> Profile:
    """Fit t(b) = a + c*b by least squares, a and c clamped to >= 0.

    A time of 0 stands for an unknown one. Raises `ValueError` if there is no sample, a batch
    size is not positive, or a time is negative or not finite.
    """
    if not samples or any(b < 1 or not 0 <= t < math.inf for b, t in samples):
        raise ValueError("a profile needs samples of positive batch size and time")
    ordered = sorted(samples)
    n = len(ordered)
    mean_b = sum(b for b, _ in ordered) / n
    mean_t = sum(t for _, t in ordered) / n
    spread = sum((b - mean_b) ** 2 for b, _ in ordered)
    slope = sum((b - mean_b) * (t - mean_t) for b, t in ordered) / spread if spread else mean_t
    slope = max(slope, 0.0)
    intercept = mean_t - slope * mean_b
    if intercept < 0:
        # Through the origin: weigh every size alike, so that t(1) is not lost to t(64).
        intercept, slope = 0.0, sum(t / b for b, t in ordered) / n
    knee = ordered[0][0]
    for i in range(1, n):
        if is_past_knee(ordered[: i + 1]):
            break
        knee = ordered[i][0]
    return Profile(samples=tuple(ordered), intercept_ms=intercept, slope_ms=slope, knee=knee)
