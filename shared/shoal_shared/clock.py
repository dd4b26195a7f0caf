"""Time is injected: everything that decides takes its clock as an argument."""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Monotonic seconds since an arbitrary start, such as `time.monotonic` or a loop's `time`."""
