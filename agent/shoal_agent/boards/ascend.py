"""Huawei Ascend: 310, 310B, 310P and 910, on boards of their own or as cards in a server.

Recognised by the driver's device nodes, the PCI ids of cards, or the device tree.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

from shoal_agent.boards.base import Board, BoardFacts, BoardReading
from shoal_agent.boards.generic import GenericBoard
from shoal_agent.boards.npusmi import NpuSmi, NpuSmiReader
from shoal_agent.boards.sysfs import Sysfs, read_text
from shoal_shared.messages import Accelerator
from shoal_shared.messages import Board as BoardDescription

PATIENCE_S = 2.0
"""What the first use of `facts` waits for `npu-smi`, which usually takes less than a second."""

_MANAGER = "dev/davinci_manager"
_CHIP_NODES = "dev/davinci[0-9]*"
_TREE_CHIP = re.compile(r"ascend[-_ ]?(\d{3}\w{0,4})", re.ASCII)
_TREE = re.compile(r"ascend[-_ ]?(?:310|910)|atlas[- ]?[2589]00")
_VENDOR = "0x19e5"
# Huawei's own scripts tell chips by these device ids: `get_npu_type` of ais_bench (d100, d500,
# d107) and ascend-deployer (d801 to d803).
_PCI = {
    "0xd100": "310",
    "0xd107": "310B",
    "0xd500": "310P",
    "0xd801": "910",
    "0xd802": "910B",
    "0xd803": "910_93",
}
# Of CANN up to 8.3, as of 8.5, and what only runs models.
_INSTALLED = (
    "usr/local/Ascend/ascend-toolkit/latest/*-linux/ascend_toolkit_install.info",
    "usr/local/Ascend/cann/*-linux/ascend_toolkit_install.info",
    "usr/local/Ascend/nnrt/latest/*-linux/ascend_nnrt_install.info",
    "usr/local/Ascend/nnae/latest/*-linux/ascend_nnae_install.info",
)
# A2 and A3 are 910B1 to 910B4 and 910_9…; a chip of the first 910 is called 910B, too.
_SECOND_910 = re.compile(r"910(?:B\d|_9|C)")
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
        if npu_smi is not None:
            npu_smi.latest()

    @classmethod
    def probe(cls, root: Path) -> AscendBoard | None:
        """The board, if the system below `root` shows an Ascend chip."""
        files = Sysfs(root)
        tree = files.text("proc/device-tree/compatible") + files.text("proc/device-tree/model")
        found = _has_driver(files) or _cards(files) or _TREE.search(tree.lower())
        return cls(root) if found else None

    @functools.cached_property
    def facts(self) -> BoardFacts:
        return self._find(self._npu_smi.latest(PATIENCE_S) if self._npu_smi else None)

    def is_throttled(self) -> bool:
        return self._host.is_throttled()

    def read(self) -> BoardReading:
        reading = self._host.read()
        answer = self._npu_smi.latest() if self._npu_smi else None
        chips = answer.chips if answer else ()
        heat = [reading.temperature_c, *(chip.temperature_c for chip in chips)]
        power = [c.power_w for c in chips if c.power_w is not None]
        loads = [c.load for c in chips if c.load is not None]
        own = any(c.memory_bytes for c in chips)
        return dataclasses.replace(
            reading,
            temperature_c=max((t for t in heat if t is not None), default=None),
            power_w=round(sum(power), 2) if power else None,
            accelerator_load=max(loads) if loads else None,
            accelerator_memory_used_bytes=sum(c.memory_used_bytes for c in chips) if own else None,
        )

    def _find(self, answer: NpuSmi | None) -> BoardFacts:
        cards = _cards(self._files)
        if answer:
            names = [_sharper(chip.name, cards) for chip in answer.chips]
            memory = [chip.memory_bytes for chip in answer.chips]
        else:
            names = self._from_files(cards)
            memory = [0] * len(names)
        toolkits = self._toolkits(answer)
        host = self._host.facts
        chip = names[0]
        return dataclasses.replace(
            host,
            description=BoardDescription(
                family="ascend",
                model=host.description.model[:_MAX_NAME],
                soc=f"Ascend {chip}".strip(),
            ),
            accelerators=tuple(
                Accelerator(
                    kind="npu",
                    name=f"Ascend {name}".strip(),
                    memory_bytes=size,
                    precisions=_precisions(name),
                )
                for name, size in zip(names, memory, strict=True)
            ),
            toolkits=toolkits,
            target=f"ascend-{chip.lower().replace('_', '-')}" if chip else "",
            notes=(*host.notes, *self._problems(answer, toolkits)),
        )

    def _from_files(self, cards: list[str]) -> list[str]:
        """Series of each chip as bus, device tree and nodes tell them; empty where unknown.

        A card may have more than one chip, and a node for each.
        """
        match = _TREE_CHIP.search(self._files.text("proc/device-tree/compatible").lower())
        names = cards or [match[1].upper() if match else ""]
        if len(set(names)) == 1:
            names = names[:1] * max(len(names), len(self._files.glob(_CHIP_NODES)))
        return names

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
        if not _has_driver(self._files):
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


def _has_driver(files: Sysfs) -> bool:
    return files.exists(_MANAGER) or bool(files.glob(_CHIP_NODES))


def _cards(files: Sysfs) -> list[str]:
    """Series of the chips on the PCI bus, one for each card."""
    found = []
    for vendor in files.glob("sys/bus/pci/devices/*/vendor"):
        if read_text(vendor) == _VENDOR:
            name = _PCI.get(read_text(vendor.with_name("device")))
            if name:
                found.append(name)
    return found


def _sharper(name: str, cards: list[str]) -> str:
    """`npu-smi` calls an A3's chip just Ascend910; the bus knows more of it."""
    return next((card for card in cards if card.startswith(name)), name)


def _precisions(name: str) -> tuple[str, ...]:
    """What the chip's cube unit multiplies in; bf16 as of A2 (Ascend C's `ToBfloat16`)."""
    if _SECOND_910.match(name):
        return ("fp32", "bf16", "fp16", "int8")
    return ("fp16", "int8")


_conforms: type[Board] = AscendBoard
