"""`npu-smi info`: what Huawei's tool prints of Ascend chips, and how it is asked.

Tables of versions 21 to 25 are read. Their columns differ by chip and version: 310, 310B and
310P have Memory-Usage, 910 (and 310P as of some versions) HBM-Usage beside it.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO, cast

from shoal_shared.clock import Clock

COMMAND = ("npu-smi", "info")
TIMEOUT_S = 10.0
PERIOD_S = 5.0
MAX_AGE_S = 30.0
"""An answer that is older says nothing of now."""

_MIB = 1 << 20
_MAX_BYTES = 256 * 1024
_VERSION = re.compile(r"npu-smi\s+(\S+)")
_CHIP = re.compile(r"\d+\s+(?:Ascend ?)?([0-9][\w-]{0,30})", re.ASCII)
_BUS = re.compile(r"NA|[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_USAGE = re.compile(r"(\d{1,9})\s*/\s*(\d{1,9})")


@dataclass(frozen=True)
class Npu:
    """One chip; memory in bytes, 0 where it has none of its own. None where it says nothing."""

    name: str
    health: str
    power_w: float | None = None
    temperature_c: float | None = None
    load: float | None = None
    memory_used_bytes: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class NpuSmi:
    """What one run of the tool told: its version and the chips, in its order."""

    version: str = ""
    chips: tuple[Npu, ...] = ()


def parse_npu_smi(text: str) -> NpuSmi:
    """Read the table of `npu-smi info`; what is no table gives no chips."""
    version = _VERSION.search(text)
    chips: list[Npu] = []
    head: Npu | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|") or len(cells) != 3:
            continue
        if _BUS.fullmatch(cells[1]):
            if head is not None:
                chips.append(_with_figures(head, cells[1], cells[2]))
            head = None
        elif (match := _CHIP.fullmatch(cells[0])) and cells[1].isalpha():
            power, temperature, *_ = (*cells[2].split(), "", "")
            head = Npu(
                name=match[1],
                health=cells[1],
                power_w=_number(power),
                temperature_c=_number(temperature),
            )
    return NpuSmi(version[1][:40] if version else "", tuple(chips))


def _with_figures(head: Npu, bus: str, figures: str) -> Npu:
    """A chip with the figures of its second line."""
    usages = [(int(used), int(total)) for used, total in _USAGE.findall(figures)]
    # HBM comes last; without a bus of its own, a chip shares the system's memory.
    used, total = usages[-1] if usages and bus != "NA" else (0, 0)
    load = _number((figures.split(maxsplit=1) or [""])[0])
    return replace(
        head,
        load=None if load is None else min(1.0, max(0.0, load / 100)),
        memory_used_bytes=used * _MIB,
        memory_bytes=total * _MIB,
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class NpuSmiReader:
    """Runs the tool beside everything else, for it takes a second and may hang.

    `latest` never blocks for longer than asked; the tool runs at most every `PERIOD_S`, one at
    a time, and is killed after `TIMEOUT_S`.
    """

    def __init__(self, command: Sequence[str] = COMMAND, clock: Clock = time.monotonic) -> None:
        self._command = tuple(command)
        self._clock = clock
        self._answer: NpuSmi | None = None
        self._answered_at = 0.0
        self._asked_at: float | None = None
        self._running: threading.Thread | None = None

    def latest(self, patience_s: float = 0.0) -> NpuSmi | None:
        """The last answer with chips, if it is fresh; None if there is none."""
        self._ask()
        running = self._running
        if self._answer is None and patience_s and running is not None:
            running.join(patience_s)
        if self._answer is None or self._clock() - self._answered_at > MAX_AGE_S:
            return None
        return self._answer

    def _ask(self) -> None:
        now = self._clock()
        is_due = self._asked_at is None or now - self._asked_at >= PERIOD_S
        if is_due and (self._running is None or not self._running.is_alive()):
            self._asked_at = now
            self._running = threading.Thread(target=self._run, name="npu-smi", daemon=True)
            self._running.start()

    def _run(self) -> None:
        try:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return
        timer = threading.Timer(TIMEOUT_S, _kill, (child,))
        timer.daemon = True
        timer.start()
        with child:
            output = cast("IO[bytes]", child.stdout).read(_MAX_BYTES)
            if len(output) == _MAX_BYTES:  # No table is that long.
                _kill(child)
        timer.cancel()
        if child.returncode < 0:
            return  # Killed: the table may lack chips.
        answer = parse_npu_smi(output.decode(errors="replace"))
        if answer.chips:
            self._answer, self._answered_at = answer, self._clock()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the tool with all that it started, which may hold its output open."""
    if child.returncode is None:  # Else its number may be another's.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except OSError:
            pass
