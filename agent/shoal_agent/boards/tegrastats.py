"""What NVIDIA's `tegrastats` prints once a second, read beside the agent's own work."""

from __future__ import annotations

import atexit
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, cast

from shoal_shared.clock import Clock

_MAX_LINE_BYTES = 8192
_FRESH_S = 5.0
_RESTART_S = 60.0

# "GR3D_FREQ 37%", "GR3D_FREQ 0%@76", "GR3D_FREQ 12%@[1300,1300]"; Thor's older releases print
# "GR3D_FREQ @[1000,1000,1000]" or nothing. R28 says "GR3D".
_LOAD = re.compile(r"\bGR3D(?:_FREQ)? (\d{1,3})%", re.ASCII)
# "CPU@41.5C", "gpu@47.625C/47.625C", "soc012@55.375C".
_TEMPERATURE = re.compile(r"\b([A-Za-z][\w-]{0,31})@(-?\d{1,4}(?:\.\d{1,6})?)C\b", re.ASCII)
# mW now, on average and at most: "VDD_IN 3056/3056", "VDD_IN 4984mW/4984mW",
# "VIN 28906mW/14453mW/28906mW"; not "RAM 1655/3956MB".
_POWER = re.compile(
    r"\b([A-Z][A-Z0-9_]{1,31}) (-?\d{1,7})(?:mW)?/-?\d{1,7}(?:mW)?(?![\dkMG])", re.ASCII
)

_PLAUSIBLE_C = (-40.0, 150.0)
_TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
_PARTS = (
    frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}),
    frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),
    frozenset({"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}),
)


@dataclass(frozen=True)
class TegraStats:
    """One line: load of the GPU as a fraction of one, °C by sensor, W by rail.

    Sensors that are off or stuck, as the PMIC's, are left out.
    """

    gpu_load: float | None = None
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    power_w: Mapping[str, float] = field(default_factory=dict)


def parse_tegrastats(line: str) -> TegraStats:
    """Take a line of any L4T release apart; what is not in it is empty. Pure."""
    load = _LOAD.search(line)
    low, high = _PLAUSIBLE_C
    return TegraStats(
        gpu_load=min(1.0, int(load[1]) / 100) if load else None,
        temperatures_c={
            name: celsius
            for name, celsius in ((n, float(c)) for n, c in _TEMPERATURE.findall(line))
            if low < celsius < high and not is_stuck(name)
        },
        power_w={name: int(milliwatts) / 1000 for name, milliwatts in _POWER.findall(line)},
    )


def is_stuck(sensor: str) -> bool:
    """Whether a thermal sensor always says the same: the PMIC's, 100 °C or 50 °C."""
    return sensor.upper().startswith("PMIC")


def total_power(rails: Mapping[str, float]) -> float | None:
    """W that the whole module takes, from the power of its rails; None where they don't tell.

    One rail feeds the rest on most boards. AGX Xavier, AGX Orin and Thor without its input's
    monitor have three or six rails beside one another; further ones lie behind these.
    """
    for name in _TOTALS:
        if name in rails:
            return round(max(0.0, rails[name]), 3)
    for names in _PARTS:
        if names <= rails.keys():
            return round(max(0.0, sum(rails[name] for name in names)), 3)
    return None


class TegrastatsReader:
    """Runs `tegrastats` from the first call of `latest` on and keeps its last line.

    Where the program ends or cannot be started, it is tried again at most once a minute.
    """

    def __init__(self, command: Sequence[str], clock: Clock) -> None:
        self._command = command
        self._clock = clock
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._started_at = float("-inf")
        self._line = b""
        self._line_at = float("-inf")
        self._closed = False

    def latest(self) -> TegraStats:
        """What the last line says; empty while there is none of the last 5 s. Never waits."""
        now = self._clock()
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            if not self._closed and not running and now - self._started_at >= _RESTART_S:
                self._started_at = now
                self._thread = threading.Thread(target=self._follow, name="tegrastats", daemon=True)
                self._thread.start()
            line = self._line if now - self._line_at <= _FRESH_S else b""
        return parse_tegrastats(line.decode(errors="replace"))

    def close(self) -> None:
        """End the program. Nothing is started any more."""
        with self._lock:
            self._closed = True
            child = self._child
            if child is not None:
                child.kill()
        atexit.unregister(self.close)

    def _follow(self) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                self._child = child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            except OSError:
                return
            atexit.register(self.close)
        with child:
            lines = cast("IO[bytes]", child.stdout)
            while line := lines.readline(_MAX_LINE_BYTES):
                with self._lock:
                    self._line, self._line_at = line, self._clock()
            child.kill()
        with self._lock:
            self._child = None
        atexit.unregister(self.close)
