"""Reading what the kernel shows, below a root that tests put in its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PLAUSIBLE_C = (-40.0, 150.0)
_MAX_BYTES = 1 << 20


class Sysfs:
    """Files below `root`, by paths without a leading slash. What cannot be read is empty."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, path: str) -> str:
        """Content without the zero bytes and blanks around it; at most 1 MiB of it."""
        return read_text(self.root / path)

    def number(self, path: str) -> float | None:
        """Content as a number; None where there is none."""
        return read_number(self.root / path)

    def exists(self, path: str) -> bool:
        """Whether there is such a file or device node."""
        try:
            return (self.root / path).exists()
        except OSError:
            return False

    def glob(self, pattern: str) -> list[Path]:
        """Paths that match, in order."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []


class Thermal:
    """Heat and what it does, from `/sys/class/thermal` and the processor's own counts."""

    def __init__(self, files: Sysfs) -> None:
        self._files = files
        self._count = self._throttle_count()

    def temperature(self) -> float | None:
        """°C of the hottest sensor that says something plausible."""
        low, high = _PLAUSIBLE_C
        return max((t for _, t in self._zones() if low < t < high), default=None)

    def is_throttled(self) -> bool:
        """Slowed down by heat: now, or since the call before."""
        before, self._count = self._count, self._throttle_count()
        cooling = self._files.glob("sys/class/thermal/cooling_device*")
        return (
            self._count > before
            or any(_over_passive_trip(zone, t) for zone, t in self._zones())
            or any(_is_slowing(device) for device in cooling)
        )

    def _zones(self) -> Iterator[tuple[Path, float]]:
        for zone in self._files.glob("sys/class/thermal/thermal_zone*"):
            value = read_number(zone / "temp")
            if value is not None:
                yield zone, value / 1000

    def _throttle_count(self) -> float:
        cpus = self._files.glob("sys/devices/system/cpu/cpu[0-9]*")
        return sum(read_number(c / "thermal_throttle/core_throttle_count") or 0 for c in cpus)


def read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace").strip("\0 \n")
    except (OSError, ValueError):
        return ""


def read_number(path: Path) -> float | None:
    try:
        return float(read_text(path))
    except ValueError:
        return None


def _over_passive_trip(zone: Path, temperature: float) -> bool:
    for kind in zone.glob("trip_point_*_type"):
        if read_text(kind) == "passive":
            trip = read_number(kind.with_name(kind.name.replace("_type", "_temp")))
            if trip is not None and 0 < trip <= temperature * 1000:
                return True
    return False


def _is_slowing(device: Path) -> bool:
    kind = read_text(device / "type").lower()
    if not ("cpufreq" in kind or "processor" in kind or "devfreq" in kind):
        return False
    return (read_number(device / "cur_state") or 0) > 0
