"""Any Linux machine: psutil, and the kernel's files on heat and throttling."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path

import psutil

from shoal_agent.boards.base import Board, BoardFacts, BoardReading
from shoal_agent.boards.cuda import CudaQuery, cuda_accelerators, no_cuda
from shoal_agent.boards.sysfs import Sysfs, Thermal
from shoal_shared.messages import Board as BoardDescription


class GenericBoard:
    """A board of no known family. `root` is where `/sys` and `/proc` hang."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = Sysfs(root)
        self._thermal = Thermal(self._files)
        self._cpu_before = _cpu_seconds()
        self._facts = BoardFacts(
            description=BoardDescription(
                family="generic", model=self._model(), soc=self._processor()
            ),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=psutil.virtual_memory().total,
        )

    @classmethod
    def probe(cls, root: Path, cuda: CudaQuery | None = None) -> GenericBoard:
        """Fits every machine; with the GPUs that PyCUDA sees, where that is installed."""
        board = cls(root)
        ask = cuda or (cuda_accelerators if root == Path("/") else no_cuda)
        gpus, reason = ask()
        capability = gpus[0].compute_capability.replace(".", "") if gpus else ""
        board._facts = dataclasses.replace(
            board._facts,
            accelerators=gpus,
            target=f"nvidia-sm{capability}" if capability else "",
            notes=(reason,) if reason else (),
        )
        return board

    @property
    def facts(self) -> BoardFacts:
        return self._facts

    def read(self) -> BoardReading:
        memory = psutil.virtual_memory()
        return BoardReading(
            cpu_load=self._cpu_load(),
            memory_used_bytes=memory.total - memory.available,
            temperature_c=self._thermal.temperature(),
        )

    def is_throttled(self) -> bool:
        return self._thermal.is_throttled()

    def _model(self) -> str:
        tree = self._files.text("proc/device-tree/model")
        if tree:
            return tree
        vendor = self._files.text("sys/class/dmi/id/sys_vendor")
        product = self._files.text("sys/class/dmi/id/product_name")
        return " ".join(filter(None, (vendor, product))) or platform.machine()

    def _processor(self) -> str:
        # The most specific name of a device tree comes first, the chip's last.
        chip = self._files.text("proc/device-tree/compatible").split("\0")[-1]
        if chip:
            return chip
        for line in self._files.text("proc/cpuinfo").splitlines():
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


def _cpu_seconds() -> tuple[float, float]:
    """Seconds of all cores since the start of the machine: (busy, total)."""
    times = psutil.cpu_times()
    # Guests' time is part of user time already.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


_conforms: type[Board] = GenericBoard
