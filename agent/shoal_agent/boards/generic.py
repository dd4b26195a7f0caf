"""Any Linux machine: psutil, and the kernel's files on heat and throttling."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil

from shoal_agent.boards.base import Board, BoardFacts, BoardReading
from shoal_shared.messages import Board as BoardDescription

_PLAUSIBLE_C = (-40.0, 150.0)


class GenericBoard:
    """A board of no known family. `root` is where `/sys` and `/proc` hang."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cpu_before = _cpu_seconds()
        self._throttle_count = self._count_throttling()
        self._facts = BoardFacts(
            description=BoardDescription(
                family="generic", model=self._model(), soc=self._processor()
            ),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=psutil.virtual_memory().total,
        )

    @classmethod
    def probe(cls, root: Path) -> GenericBoard:
        """Fits every machine."""
        return cls(root)

    @property
    def facts(self) -> BoardFacts:
        return self._facts

    def read(self) -> BoardReading:
        memory = psutil.virtual_memory()
        return BoardReading(
            cpu_load=self._cpu_load(),
            memory_used_bytes=memory.total - memory.available,
            temperature_c=self._temperature(),
            throttled=self._is_throttled(),
        )

    def _model(self) -> str:
        tree = self._text("proc/device-tree/model")
        if tree:
            return tree
        vendor = self._text("sys/class/dmi/id/sys_vendor")
        product = self._text("sys/class/dmi/id/product_name")
        return " ".join(filter(None, (vendor, product))) or platform.machine()

    def _processor(self) -> str:
        # The most specific name of a device tree comes first, the chip's last.
        chip = self._text("proc/device-tree/compatible").split("\0")[-1]
        if chip:
            return chip
        for line in self._text("proc/cpuinfo").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
        return ""

    def _cpu_load(self) -> float:
        busy, total = _cpu_seconds()
        busy_before, total_before = self._cpu_before
        self._cpu_before = busy, total
        passed = total - total_before
        return min(1.0, max(0.0, (busy - busy_before) / passed)) if passed > 0 else 0.0

    def _temperature(self) -> float | None:
        low, high = _PLAUSIBLE_C
        readings = [t for _, t in self._zones() if low < t < high]
        return max(readings, default=None)

    def _is_throttled(self) -> bool:
        """Slowed down by heat: now, or since the reading before."""
        before, self._throttle_count = self._throttle_count, self._count_throttling()
        return (
            self._throttle_count > before
            or any(self._over_passive_trip(zone, t) for zone, t in self._zones())
            or any(self._is_slowing(device) for device in self._glob("cooling_device*"))
        )

    def _zones(self) -> Iterator[tuple[Path, float]]:
        for zone in self._glob("thermal_zone*"):
            value = _number(zone / "temp")
            if value is not None:
                yield zone, value / 1000

    def _over_passive_trip(self, zone: Path, temperature: float) -> bool:
        for kind in zone.glob("trip_point_*_type"):
            if _read(kind) == "passive":
                trip = _number(kind.with_name(kind.name.replace("_type", "_temp")))
                if trip is not None and 0 < trip <= temperature * 1000:
                    return True
        return False

    def _is_slowing(self, device: Path) -> bool:
        kind = _read(device / "type").lower()
        if not ("cpufreq" in kind or "processor" in kind or "devfreq" in kind):
            return False
        return (_number(device / "cur_state") or 0) > 0

    def _count_throttling(self) -> float:
        cpus = (self._root / "sys/devices/system/cpu").glob("cpu[0-9]*")
        return sum(_number(c / "thermal_throttle/core_throttle_count") or 0 for c in cpus)

    def _glob(self, pattern: str) -> list[Path]:
        return sorted((self._root / "sys/class/thermal").glob(pattern))

    def _text(self, path: str) -> str:
        return _read(self._root / path)


def _cpu_seconds() -> tuple[float, float]:
    """Seconds of all cores since the start of the machine: (busy, total)."""
    times = psutil.cpu_times()
    # Guests' time is part of user time already.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


_conforms: type[Board] = GenericBoard
