"""Qualcomm Snapdragon and Dragonwing, from the 845 to the 8 Elite and X Elite.

Recognised by `/sys/devices/soc0` or by `qcom,…` in the device tree.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from shoal_agent.boards.base import Board, BoardFacts, BoardReading
from shoal_agent.boards.generic import GenericBoard
from shoal_agent.boards.socs import BY_ID, BY_PART, Soc
from shoal_agent.boards.sysfs import Sysfs, read_number, read_text
from shoal_shared.messages import Accelerator
from shoal_shared.messages import Board as BoardDescription

_FAMILIES = ("snapdragon", "dragonwing")
# The GPU's node in Qualcomm's kernels, and in the mainline's.
_GPU_NODES = ("dev/kgsl-3d0", "dev/dri/renderD128")
# FastRPC to the compute DSP: mainline, then Qualcomm's kernels.
_NPU_NODES = ("dev/fastrpc-cdsp", "dev/fastrpc-cdsp-secure", "dev/adsprpc-smd")
_QNN_FOLDERS = ("opt/qcom/aistack/qairt/*", "opt/qcom/aistack/qnn/*")
_QNN_LIBRARIES = ("usr/lib/libQnnHtp.so", "usr/lib/aarch64-linux-gnu/libQnnHtp.so")
_VERSION = re.compile(r"\d+(\.\d+){1,3}")
_KGSL = "sys/class/kgsl/kgsl-3d0"
_BUSY = re.compile(r"\s*(\d{1,20})\s+(\d{1,20})\s*", re.ASCII)
_PERCENT = re.compile(r"\s*(\d{1,3})\s*%", re.ASCII)
_GROUP = "fastrpc"
_MAX_NAME = 80
_MICRO = 1e-6
_PLAUSIBLE_W = (0.05, 200.0)


class SnapdragonBoard:
    """A board with a Qualcomm chip below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = Sysfs(root)
        self._host = GenericBoard(root)
        self._soc = _soc(self._files)
        self._facts = self._find()

    @classmethod
    def probe(cls, root: Path) -> SnapdragonBoard | None:
        """The board, if the system below `root` shows a Qualcomm chip."""
        files = Sysfs(root)
        family = files.text("sys/devices/soc0/family").lower()
        known = files.number("sys/devices/soc0/soc_id") in BY_ID
        by_tree = any(part.startswith("qcom,") for part in _compatible(files))
        return cls(root) if family.startswith(_FAMILIES) or known or by_tree else None

    @property
    def facts(self) -> BoardFacts:
        return self._facts

    def is_throttled(self) -> bool:
        return self._host.is_throttled()

    def read(self) -> BoardReading:
        return dataclasses.replace(
            self._host.read(), power_w=self._power(), accelerator_load=self._gpu_load()
        )

    def _find(self) -> BoardFacts:
        host, soc = self._host.facts, self._soc
        accelerators, notes = self._accelerators(soc)
        machine = self._files.text("sys/devices/soc0/machine")[:_MAX_NAME]
        name = f"{soc.part} ({soc.name})" if soc else machine
        if soc is None:
            notes.append(
                f"the chip {machine or 'of this board'} is not in Shoal's table, so nothing is "
                "known of its NPU: add it to boards/socs.py"
            )
        return dataclasses.replace(
            host,
            description=BoardDescription(
                family="snapdragon",
                model=(self._files.text("proc/device-tree/model") or name or "Snapdragon")[
                    :_MAX_NAME
                ],
                soc=name,
            ),
            accelerators=tuple(accelerators),
            toolkits=self._toolkits(),
            target=f"qualcomm-soc{soc.qnn}" if soc and soc.has_htp and soc.qnn else "",
            notes=(*host.notes, *notes),
        )

    def _accelerators(self, soc: Soc | None) -> tuple[list[Accelerator], list[str]]:
        found: list[Accelerator] = []
        notes: list[str] = []
        if any(map(self._files.exists, _GPU_NODES)):
            name = f"Adreno {soc.adreno}" if soc else "Adreno"
            found.append(Accelerator(kind="gpu", name=name, precisions=("fp32", "fp16")))
        if soc is None:
            return found, notes
        kind = "HTP" if soc.has_htp else "DSP"
        npu = Accelerator(
            kind="npu", name=f"Hexagon v{soc.hexagon} {kind}", precisions=soc.precisions
        )
        nodes = [self._files.root / node for node in _NPU_NODES if self._files.exists(node)]
        if not nodes:
            notes.append(
                f"the {npu.name} has no FastRPC device node, so it cannot be used: load the "
                "fastrpc driver and its firmware, or pass /dev/fastrpc-cdsp into the container"
            )
            return found, notes
        found.append(npu)
        if not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
            notes.append(
                f"this user may not use /{nodes[0].relative_to(self._files.root)}: sudo usermod "
                f"-aG {_group(nodes[0])} $(id -un), then start the agent again"
            )
        return found, notes

    def _toolkits(self) -> dict[str, str]:
        found = [
            match[0]
            for pattern in _QNN_FOLDERS
            for path in self._files.glob(pattern)
            if (match := _VERSION.match(path.name))
        ]
        if found:
            return {"qnn": max(found, key=lambda v: [int(n) for n in v.split(".")])}
        return {"qnn": "installed"} if any(map(self._files.exists, _QNN_LIBRARIES)) else {}

    def _gpu_load(self) -> float | None:
        # "busy total" in ticks since the last reading, or "37 %".
        busy = _BUSY.fullmatch(self._files.text(f"{_KGSL}/gpubusy"))
        if busy:
            spent, total = int(busy[1]), int(busy[2])
            return min(1.0, spent / total) if total else 0.0
        percent = _PERCENT.fullmatch(self._files.text(f"{_KGSL}/gpu_busy_percentage"))
        return min(1.0, int(percent[1]) / 100) if percent else None

    def _power(self) -> float | None:
        """What the battery gives; None on mains, where it says nothing of the board."""
        for supply in self._files.glob("sys/class/power_supply/*"):
            if read_text(supply / "status") == "Discharging":
                current = read_number(supply / "current_now")
                voltage = read_number(supply / "voltage_now")
                if current is not None and voltage is not None:
                    watts = abs(current) * _MICRO * voltage * _MICRO
                    # Some drivers count in mA against the kernel's rules.
                    if _PLAUSIBLE_W[0] <= watts <= _PLAUSIBLE_W[1]:
                        return round(watts, 2)
        return None


def _soc(files: Sysfs) -> Soc | None:
    number = files.number("sys/devices/soc0/soc_id")
    known = BY_ID.get(int(number)) if number is not None and number.is_integer() else None
    parts = [files.text("sys/devices/soc0/machine").lower()]
    parts += [part.removeprefix("qcom,") for part in _compatible(files) if "qcom," in part]
    return known or next((BY_PART[part] for part in parts if part in BY_PART), None)


def _compatible(files: Sysfs) -> list[str]:
    return files.text("proc/device-tree/compatible").lower().split("\0")


def _group(node: Path) -> str:
    """The group that may use a node. Newer rules of udev give it to "fastrpc" by an ACL, and
    where a node is root's alone, nobody should join that group."""
    try:
        group = node.group()
    except (OSError, KeyError):
        return _GROUP
    return _GROUP if group == "root" else group


_conforms: type[Board] = SnapdragonBoard
