"""Huawei Ascend: 310, 310B, 310P and 910, on boards of their own or as cards in a server.

Recognised by the driver's device nodes, the PCI ids of cards, or the device tree.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from shoal_agent.boards.base import Board, BoardFacts, BoardReading
from shoal_agent.boards.generic import GenericBoard
from shoal_agent.boards.npusmi import NpuSmi, NpuSmiReader
from shoal_agent.boards.sysfs import Sysfs, read_text
from shoal_shared.messages import Accelerator
from shoal_shared.messages import Board as BoardDescription

PATIENCE_S = 2.0
"""What the start waits for `npu-smi`, which usually takes less than a second."""

_NODES = ("dev/davinci_manager", "dev/davinci0")
_VENDOR = "0x19e5"
# Device ids of Huawei's Ascend processors (pci.ids, vendor 19e5).
_PCI = {
    "0xd100": "310",
    "0xd105": "310B",
    "0xd500": "310P",
    "0xd801": "910",
    "0xd802": "910B",
    "0xd803": "910_93",
}
_INSTALLED = (
    "usr/local/Ascend/ascend-toolkit/latest/*-linux/ascend_toolkit_install.info",
    "usr/local/Ascend/cann/*-linux/ascend_toolkit_install.info",
    "usr/local/Ascend/nnrt/latest/*-linux/ascend_nnrt_install.info",
)
_VERSION = re.compile(r"^\s*[Vv]ersion\s*=\s*([\w.+-]{1,40})", re.MULTILINE)
_MAX_NAME = 80


class AscendBoard:
    """A machine with Ascend chips. `npu_smi` asks Huawei's tool; None where it must not be run,
    as below another root than the system's."""

    def __init__(self, root: Path = Path("/"), npu_smi: NpuSmiReader | None = None) -> None:
        self._files = Sysfs(root)
        self._host = GenericBoard(root)
        if npu_smi is None and root == Path("/"):
            npu_smi = NpuSmiReader()
        self._npu_smi = npu_smi
        self._facts = self._find(npu_smi.latest(PATIENCE_S) if npu_smi else None)

    @classmethod
    def probe(cls, root: Path) -> AscendBoard | None:
        """The board, if the system below `root` shows an Ascend chip."""
        files = Sysfs(root)
        tree = files.text("proc/device-tree/compatible") + files.text("proc/device-tree/model")
        found = (
            any(map(files.exists, _NODES))
            or bool(_cards(files))
            or "ascend" in tree.lower()
            or "atlas" in tree.lower()
        )
        return cls(root) if found else None

    @property
    def facts(self) -> BoardFacts:
        return self._facts

    def is_throttled(self) -> bool:
        return self._host.is_throttled()

    def read(self) -> BoardReading:
        reading = self._host.read()
        answer = self._npu_smi.latest() if self._npu_smi else None
        chips = answer.chips if answer else ()
        heat = [c.temperature_c for c in chips if c.temperature_c is not None]
        power = [c.power_w for c in chips if c.power_w is not None]
        loads = [c.load for c in chips if c.load is not None]
        own = any(c.memory_bytes for c in chips)
        return dataclasses.replace(
            reading,
            temperature_c=max(heat) if heat else reading.temperature_c,
            power_w=round(sum(power), 2) if power else None,
            accelerator_load=max(loads) if loads else None,
            accelerator_memory_used_bytes=sum(c.memory_used_bytes for c in chips) if own else None,
        )

    def _find(self, answer: NpuSmi | None) -> BoardFacts:
        names = [chip.name for chip in answer.chips] if answer else _cards(self._files)
        names = names or self._from_tree()
        memory = [chip.memory_bytes for chip in answer.chips] if answer else [0] * len(names)
        toolkits = self._toolkits(answer)
        host = self._host.facts
        chip = names[0] if names else ""
        return dataclasses.replace(
            host,
            description=BoardDescription(
                family="ascend",
                model=host.description.model[:_MAX_NAME],
                soc=f"Ascend {chip}" if chip else "Ascend",
            ),
            accelerators=tuple(
                Accelerator(
                    kind="npu",
                    name=f"Ascend {name}",
                    memory_bytes=size,
                    precisions=_precisions(name),
                )
                for name, size in zip(names, memory, strict=True)
            ),
            toolkits=toolkits,
            target=f"ascend-{chip.lower().replace('_', '-')}" if chip else "",
            notes=(*host.notes, *self._problems(answer, toolkits)),
        )

    def _from_tree(self) -> list[str]:
        """The chip of a board with a device tree, as "hisilicon,ascend310b"."""
        match = re.search(
            r"ascend[-_ ]?(\d{3}\w{0,4})", self._files.text("proc/device-tree/compatible").lower()
        )
        return [match[1].upper()] if match else []

    def _toolkits(self, answer: NpuSmi | None) -> dict[str, str]:
        found = {
            "npu-driver": self._version("usr/local/Ascend/driver/version.info")
            or (answer.version if answer else ""),
            "npu-firmware": self._version("usr/local/Ascend/firmware/version.info"),
        }
        for pattern in _INSTALLED:
            for path in self._files.glob(pattern):
                match = _VERSION.search(read_text(path))
                if match:
                    found.setdefault("cann", match[1])
        return {name: version for name, version in found.items() if version}

    def _version(self, path: str) -> str:
        match = _VERSION.search(self._files.text(path))
        return match[1] if match else ""

    def _problems(self, answer: NpuSmi | None, toolkits: dict[str, str]) -> list[str]:
        notes = []
        if not any(map(self._files.exists, _NODES)):
            notes.append(
                "the Ascend chip has no driver (/dev/davinci_manager is missing): install the NPU "
                "driver and firmware for it, or start the container with --device /dev/davinci0 "
                "--device /dev/davinci_manager --device /dev/hisi_hdc --device /dev/devmm_svm"
            )
        elif answer is None and self._npu_smi is not None:
            notes.append(
                "npu-smi does not answer: see whether `npu-smi info` works for this user, and add "
                "the user to the group HwHiAiUser"
            )
        notes += [
            f"npu-smi says that an Ascend {chip.name} is in state {chip.health}: "
            "npu-smi info -t health"
            for chip in (answer.chips if answer else ())
            if chip.health != "OK"
        ]
        if "cann" not in toolkits:
            notes.append(
                "CANN is not installed, so nothing can run on the Ascend chip: install CANN 8.x"
            )
        return notes


def _cards(files: Sysfs) -> list[str]:
    """Chips on the PCI bus."""
    found = []
    for vendor in files.glob("sys/bus/pci/devices/*/vendor"):
        if read_text(vendor) == _VENDOR:
            name = _PCI.get(read_text(vendor.with_name("device")))
            if name:
                found.append(name)
    return found


def _precisions(name: str) -> tuple[str, ...]:
    """What the chip's cube unit computes in (CANN documentation, "Atlas product forms")."""
    if name.startswith(("910B", "910_93", "910C")):
        return ("fp32", "bf16", "fp16", "int8")
    if name.startswith("910"):
        return ("fp16", "int8")
    return ("fp16", "int8", "int4") if name.startswith("310B") else ("fp16", "int8")


_conforms: type[Board] = AscendBoard
