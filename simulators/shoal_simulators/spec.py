"""What a simulated fleet consists of: `jetson-orin-nano=2,ascend-310=1` or a TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomllib

from shoal_shared.names import is_name
from shoal_simulators.profiles import PROFILES, BoardProfile

MAX_DEVICES = 1000
MAX_MEMORY_MB = 1_000_000

_KEYS = ("board", "name", "count", "labels", "memory_mb")


class SpecError(Exception):
    """The specification cannot be used; the text is one plain sentence."""


@dataclass(frozen=True)
class VirtualDevice:
    """One virtual board: its name, the key of its profile, its labels, and its memory where that
    is not the profile's."""

    name: str
    board: str
    labels: dict[str, str] = field(default_factory=dict)
    memory_mb: int | None = None

    @property
    def profile(self) -> BoardProfile:
        """What it is like."""
        profile = PROFILES[self.board]
        if self.memory_mb is None:
            return profile
        return replace(profile, memory_bytes=self.memory_mb * 1_000_000)


def parse_fleet(text: str) -> list[VirtualDevice]:
    """Devices of a specification, or of the TOML file that it names. Raises `SpecError`.

    A file holds tables `[[device]]` with `board`, and optionally `name`, `count`, `labels` and
    `memory_mb`, the memory of a board that has less or more than its kind, in 10^6 bytes.
    """
    if text.endswith(".toml"):
        return _from_file(Path(text))
    devices: list[VirtualDevice] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        board, sep, count = part.partition("=")
        if sep and not (count.isascii() and count.isdigit()):
            raise SpecError(f"{part!r} is not of the form BOARD=COUNT, such as ascend-310=1")
        devices += _boards(board.strip(), int(count) if sep else 1, None, {}, None, len(devices))
    return _checked(devices)


def _from_file(path: Path) -> list[VirtualDevice]:
    try:
        tables = tomllib.loads(path.read_text()).get("device", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"cannot read the fleet from {path}: {error}") from None
    devices: list[VirtualDevice] = []
    for table in tables if isinstance(tables, list) else []:
        if not isinstance(table, dict) or not set(table) <= set(_KEYS):
            raise SpecError(f"a [[device]] of {path} has keys besides {', '.join(_KEYS)}")
        board, name = table.get("board", ""), table.get("name")
        count, labels = table.get("count", 1), table.get("labels", {})
        memory = table.get("memory_mb")
        if not _is_labels(labels) or type(count) is not int or (name and count != 1):
            raise SpecError(f"the [[device]] with board {board!r} of {path} is not valid")
        if memory is not None and not (type(memory) is int and 1 <= memory <= MAX_MEMORY_MB):
            raise SpecError(
                f"the [[device]] with board {board!r} of {path} has {memory!r} as memory_mb: "
                f"use a whole number from 1 to {MAX_MEMORY_MB}"
            )
        devices += _boards(str(board), count, name, labels, memory, len(devices))
    return _checked(devices)


def _is_labels(labels: Any) -> bool:
    return isinstance(labels, dict) and all(
        is_name(k) and isinstance(v, str) and is_name(v) for k, v in labels.items()
    )


def _boards(
    board: str,
    count: int,
    name: str | None,
    labels: dict[str, str],
    memory_mb: int | None,
    already: int,
) -> list[VirtualDevice]:
    if board not in PROFILES:
        raise SpecError(f"no board is called {board!r}; there are {', '.join(sorted(PROFILES))}")
    if already + count > MAX_DEVICES:
        raise SpecError(f"a simulated fleet has at most {MAX_DEVICES} devices")
    names = [name] if name else [f"{board}-{i + 1}" for i in range(count)]
    return [VirtualDevice(n, board, labels, memory_mb) for n in names]


def _checked(devices: list[VirtualDevice]) -> list[VirtualDevice]:
    if not devices:
        raise SpecError("the fleet has no device: say, for example, jetson-orin-nano=2")
    seen: set[str] = set()
    for device in devices:
        if not isinstance(device.name, str) or not is_name(device.name):
            raise SpecError(f"{device.name!r} cannot name a device")
        if device.name in seen:
            raise SpecError(f"two devices are called {device.name}: give them names in a file")
        seen.add(device.name)
    return devices
