"""NVIDIA Jetson: Nano and TX1, TX2, Xavier, Orin and Thor.

Recognised by the device tree or `/etc/nv_tegra_release`; what either leaves open stays empty
and becomes a note.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from shoal_agent.boards import l4t
from shoal_agent.boards.base import Board, BoardFacts, BoardReading
from shoal_agent.boards.cuda import CudaQuery, cuda_accelerators, no_cuda, precisions
from shoal_agent.boards.generic import GenericBoard
from shoal_agent.boards.sysfs import Sysfs, read_number, read_text
from shoal_agent.boards.tegrastats import (
    TegraStats,
    TegrastatsReader,
    is_stuck,
    total_power,
)
from shoal_shared.messages import Accelerator
from shoal_shared.messages import Board as BoardDescription

_MAX_NAME = 80
_PART = re.compile(r"p\d{4}-\d{4}")
_PLAUSIBLE_C = (-40.0, 150.0)
_GIB = 1 << 30

_GPU_NODES = ("dev/nvhost-gpu", "dev/nvgpu", "dev/nvidia0")
_LOAD_FILES = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/bus@0/*.gpu/load",
    "sys/devices/platform/*.g[apv]*/load",
    "sys/devices/*.g[apv]*/load",
    "sys/class/devfreq/*.g[apv]*/device/load",
)
_HWMON_MONITORS = "sys/bus/i2c/drivers/ina[23]*/*/hwmon/hwmon*"
_IIO_MONITORS = "sys/bus/i2c/drivers/ina3221x/*/iio[:_]device*"
_OVER_CURRENT = "sys/class/hwmon/hwmon*/oc*_event_cnt"


@dataclasses.dataclass(frozen=True)
class _Chip:
    soc: str
    gpu: str
    capability: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Module:
    """`gib` are the memory sizes it comes in, `dlas` the deep learning accelerators of each."""

    name: str
    chip: str
    gib: tuple[int, ...] = ()
    dlas: tuple[int, ...] = ()


# https://developer.nvidia.com/cuda-gpus
_CHIPS = {
    "tegra210": _Chip("Tegra210 (X1)", "Maxwell", (5, 3)),
    "tegra186": _Chip("Tegra186 (Parker)", "Pascal", (6, 2)),
    "tegra194": _Chip("Tegra194 (Xavier)", "Volta", (7, 2)),
    "tegra234": _Chip("Tegra234 (Orin)", "Ampere", (8, 7)),
    "tegra264": _Chip("Tegra264 (Thor)", "Blackwell", (11, 0)),
}
_ALIASES = {"tegra23x": "tegra234", "tegra26x": "tegra264"}

_NANO = _Module("Nano", "tegra210", (2, 4), (0, 0))
_TX1 = _Module("TX1", "tegra210")
_TX2 = _Module("TX2", "tegra186")
_TX2_NX = _Module("TX2 NX", "tegra186")
_XAVIER_NX = _Module("Xavier NX", "tegra194", (8, 16), (2, 2))
_AGX_XAVIER = _Module("AGX Xavier", "tegra194", (8, 16, 32, 64), (2, 2, 2, 2))
_ORIN_NANO = _Module("Orin Nano", "tegra234", (4, 8), (0, 0))
_ORIN_NX = _Module("Orin NX", "tegra234", (8, 16), (1, 2))
_AGX_ORIN = _Module("AGX Orin", "tegra234", (32, 64), (2, 2))
_AGX_THOR = _Module("AGX Thor", "tegra264")

# NVIDIA's part numbers in `compatible`, by their beginning.
_PARTS = {
    "p2180": _TX1,
    "p3448": _NANO,
    "p3310": _TX2,
    "p3489": _TX2,
    "p3636": _TX2_NX,
    "p3668": _XAVIER_NX,
    "p2888": _AGX_XAVIER,
    "p2972": _AGX_XAVIER,
    "p3701": _AGX_ORIN,
    "p3767-0000": _ORIN_NX,
    "p3767-0001": _ORIN_NX,
    "p3767-0002": _ORIN_NX,
    "p3767-0003": _ORIN_NANO,
    "p3767-0004": _ORIN_NANO,
    "p3767-0005": _ORIN_NANO,
    "p3834": _AGX_THOR,
}
# Words of `model`, the most particular first.
_WORDS = (
    ("orin nano", _ORIN_NANO),
    ("orin nx", _ORIN_NX),
    ("orin", _AGX_ORIN),
    ("xavier nx", _XAVIER_NX),
    ("xavier", _AGX_XAVIER),
    ("jetson-agx", _AGX_XAVIER),
    ("thor", _AGX_THOR),
    ("tx2 nx", _TX2_NX),
    ("tx2", _TX2),
    ("quill", _TX2),
    ("tx1", _TX1),
    ("nano", _NANO),
)


class JetsonBoard:
    """A Jetson below `root`, where `/sys`, `/proc`, `/etc`, `/usr` and `/var` hang.

    `tegrastats` is asked for what the kernel's files leave open; by default the program below
    `root`. `cuda` is asked once, with the first use of `facts`; by default PyCUDA where `root`
    is this machine's own.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        tegrastats: TegrastatsReader | None = None,
        cuda: CudaQuery | None = None,
    ) -> None:
        self._files = files = Sysfs(root)
        self._generic = GenericBoard(root)
        self._cuda = cuda or (cuda_accelerators if root == Path("/") else no_cuda)
        self._load = next((f for p in _LOAD_FILES for f in files.glob(p) if f.is_file()), None)
        self._rails = _rails(files)
        self._zones = [
            zone / "temp"
            for zone in files.glob("sys/class/thermal/thermal_zone*")
            if not is_stuck(read_text(zone / "type"))
        ]
        self._alerts = [
            device / "cur_state"
            for device in files.glob("sys/class/thermal/cooling_device*")
            if read_text(device / "type").endswith(("-throttle-alert", "-balanced"))
        ]
        self._counters = files.glob(_OVER_CURRENT)
        self._over_current = self._over_current_events()
        program = root / "usr/bin/tegrastats"
        if tegrastats is None and files.exists("usr/bin/tegrastats"):
            command = (str(program), "--interval", "1000")
            tegrastats = TegrastatsReader(command, time.monotonic)
        self._tegrastats = tegrastats

    @classmethod
    def probe(cls, root: Path) -> JetsonBoard | None:
        """A Jetson, or None where nothing says that this is one."""
        files = Sysfs(root)
        model, compatible = _device_tree(files)
        if _chip_name(compatible) or "jetson" in model.lower() or l4t.is_l4t(files):
            return cls(root)
        return None

    @functools.cached_property
    def facts(self) -> BoardFacts:
        files, notes = self._files, list[str]()
        printed, compatible = _device_tree(files)
        module = _module(printed, compatible)
        name = _chip_name(compatible) or (module.chip if module else "")
        chip = _CHIPS.get(name)
        if chip is None:
            notes.append(
                "This is a Jetson, but its device tree does not name a chip that is known: what "
                "its accelerators compute in is unknown."
            )
        toolkits = l4t.toolkits(files)
        if "l4t" not in toolkits:
            notes.append(
                "The release of Jetson Linux is unknown: /etc/nv_tegra_release is missing or "
                "cannot be read."
            )
        memory = _memory_bytes(files) or self._generic.facts.memory_bytes
        if missing := _missing_nodes(files):
            notes.append(
                f"The GPU cannot be used: {missing} is missing. In a container, start it with "
                "the NVIDIA runtime (--runtime nvidia); else check that the drivers of Jetson "
                "Linux are loaded."
            )
        gpus, reason = self._cuda() if not missing else no_cuda()
        if reason:
            notes.append(reason)
        if not gpus:
            gpus = (_gpu(chip),)
        capability = gpus[0].compute_capability.replace(".", "")
        return BoardFacts(
            description=BoardDescription(
                family="jetson",
                model=_model(printed, module, memory),
                soc=chip.soc if chip else "",
            ),
            cores=self._generic.facts.cores,
            memory_bytes=memory,
            accelerators=(*gpus, *_dlas(module, memory)),
            toolkits=toolkits,
            power_mode=l4t.power_mode(files),
            target=f"nvidia-sm{capability}" if capability else "",
            notes=tuple(notes),
        )

    def read(self) -> BoardReading:
        generic = self._generic.read()
        temperature, load, power = self._temperature(), self._gpu_load(), self._power()
        if temperature is None or load is None or power is None:
            stats = self._tegrastats.latest() if self._tegrastats else TegraStats()
            if temperature is None:
                temperature = max(stats.temperatures_c.values(), default=None)
            load = stats.gpu_load if load is None else load
            power = total_power(stats.power_w) if power is None else power
        return dataclasses.replace(
            generic,
            temperature_c=temperature,
            power_w=power,
            accelerator_load=load,
        )

    def is_throttled(self) -> bool:
        """Slowed down by heat or by too high a current: now, or since the call before."""
        return self._is_held_back() or self._generic.is_throttled()

    def close(self) -> None:
        """End `tegrastats`, where it runs."""
        if self._tegrastats:
            self._tegrastats.close()

    def _is_held_back(self) -> bool:
        before, self._over_current = self._over_current, self._over_current_events()
        return self._over_current > before or any((read_number(a) or 0) > 0 for a in self._alerts)

    def _over_current_events(self) -> float:
        return sum(read_number(counter) or 0 for counter in self._counters)

    def _temperature(self) -> float | None:
        low, high = _PLAUSIBLE_C
        values = (value / 1000 for z in self._zones if (value := read_number(z)) is not None)
        return max((celsius for celsius in values if low < celsius < high), default=None)

    def _gpu_load(self) -> float | None:
        """The kernel counts in thousandths."""
        load = read_number(self._load) if self._load else None
        return min(1.0, max(0.0, load / 1000)) if load is not None else None

    def _power(self) -> float | None:
        read = {name: rail() for name, rail in self._rails.items()}
        return total_power({name: watts for name, watts in read.items() if watts is not None})


def _device_tree(files: Sysfs) -> tuple[str, str]:
    """What the device tree has for `model`, made fit to print, and for `compatible`."""
    model = files.text("proc/device-tree/model")[:_MAX_NAME]
    printable = "".join(c for c in model if c.isascii() and c.isprintable()).strip()
    return printable, files.text("proc/device-tree/compatible")


def _chip_name(compatible: str) -> str:
    for entry in compatible.split("\0"):
        _, _, name = entry.partition("nvidia,")
        name = _ALIASES.get(name, name)
        if name in _CHIPS:
            return name
    return ""


def _module(model: str, compatible: str) -> _Module | None:
    for part in _PART.findall(compatible.lower()):
        module = _PARTS.get(part) or _PARTS.get(part.partition("-")[0])
        if module:
            return module
    lower = model.lower()
    return next((module for word, module in _WORDS if word in lower), None)


def _size(module: _Module, memory_bytes: int) -> int:
    """Index of the smallest memory that the module comes in and that is not below `memory`."""
    gib = memory_bytes / _GIB
    return next((i for i, size in enumerate(module.gib) if gib <= size), len(module.gib) - 1)


def _model(printed: str, module: _Module | None, memory_bytes: int) -> str:
    """As the board prints it; with the module's name and memory where it leaves them out."""
    if module is None:
        return printed or "NVIDIA Jetson"
    model = printed
    if module.name.lower() not in printed.lower():
        model = f"NVIDIA Jetson {module.name}" + (f" ({printed})" if printed else "")
    if module.gib and not re.search(r"\dGB", model):
        model += f" {module.gib[_size(module, memory_bytes)]}GB"
    return model


def _gpu(chip: _Chip | None) -> Accelerator:
    if chip is None:
        return Accelerator(kind="gpu", name="NVIDIA GPU")
    return Accelerator(
        kind="gpu",
        name=f"{chip.gpu} GPU",
        precisions=precisions(chip.capability),
        compute_capability="{}.{}".format(*chip.capability),
    )


def _dlas(module: _Module | None, memory_bytes: int) -> tuple[Accelerator, ...]:
    if module is None or not module.dlas:
        return ()
    count = module.dlas[_size(module, memory_bytes)]
    return tuple(
        Accelerator(kind="dla", name=f"DLA {index}", precisions=("fp16", "int8"))
        for index in range(count)
    )


def _memory_bytes(files: Sysfs) -> int:
    total = re.search(r"^MemTotal:\s+(\d{1,12}) kB", files.text("proc/meminfo"), re.MULTILINE)
    return int(total[1]) * 1024 if total else 0


def _missing_nodes(files: Sysfs) -> str:
    if not any(files.exists(node) for node in _GPU_NODES):
        return "each of " + ", ".join(f"/{node}" for node in _GPU_NODES)
    # Thor's driver, that of discrete GPUs, needs no nvmap.
    if not files.exists("dev/nvidia0") and not files.exists("dev/nvmap"):
        return "/dev/nvmap"
    return ""


def _rails(files: Sysfs) -> Mapping[str, Callable[[], float | None]]:
    """Functions that read the W of each rail, by the rail's name."""
    rails: dict[str, Callable[[], float | None]] = {}
    for monitor in files.glob(_HWMON_MONITORS):
        for label in (monitor / f"in{channel}_label" for channel in (1, 2, 3)):
            channel = label.name[2]
            volts, amperes = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
            if name := read_text(label):
                rails[name] = functools.partial(_product, volts, amperes)
        if name := read_text(monitor / "label"):  # One channel, with the power in µW.
            rails[name] = functools.partial(_scaled, monitor / "power1_input", 1e-6)
    for monitor in files.glob(_IIO_MONITORS):
        for channel in ("0", "1", "2"):
            if name := read_text(monitor / f"rail_name_{channel}"):
                power = monitor / f"in_power{channel}_input"
                rails[name] = functools.partial(_scaled, power, 1e-3)
    return rails


def _product(millivolts: Path, milliamperes: Path) -> float | None:
    volts, amperes = read_number(millivolts), read_number(milliamperes)
    return volts * amperes / 1e6 if volts is not None and amperes is not None else None


def _scaled(file: Path, unit: float) -> float | None:
    value = read_number(file)
    return value * unit if value is not None else None


_conforms: type[Board] = JetsonBoard
