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

MIN_SPEED = 0.001

_KEYS = ("board", "name", "count", "labels", "memory_mb", "speed")


class SpecError(Exception):
    """The specification cannot be used; the text is one plain sentence."""


@dataclass(frozen=True)
class VirtualDevice:
    """One virtual board: its name, the key of its profile, its labels, its memory where that is
    not the profile's, and its speed as a part of the profile's."""

    name: str
    board: str
    labels: dict[str, str] = field(default_factory=dict)
    memory_mb: int | None = None
    speed: float = 1.0

    @property
    def profile(self) -> BoardProfile:
        """What it is like."""
        profile = PROFILES[self.board]
        if self.memory_mb is not None:
            profile = replace(profile, memory_bytes=self.memory_mb * 1_000_000)
        return replace(
            profile,
            intercept_ms=profile.intercept_ms / self.speed,
            slope_ms=profile.slope_ms / self.speed,
        )


def parse_fleet(text: str) -> list[VirtualDevice]:
    """Devices of a specification, or of the TOML file that it names. Raises `SpecError`.

    A file holds tables `[[device]]` with `board`, and optionally `name`, `count`, `labels`,
    `memory_mb`, the memory of a board that has less or more than its kind, in 10^6 bytes, and
    `speed`, the part of its kind's speed that a board in a lower power mode has.
    """
    if text.endswith(".toml"):
        return _from_file(Path(text))
    devices: list[VirtualDevice] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        board, sep, count = part.partition("=")
        if sep and not (count.isascii() and count.isdigit()):
            raise SpecError(f"{part!r} is not of the form BOARD=COUNT, such as ascend-310=1")
        made = _boards(board.strip(), int(count) if sep else 1, None, len(devices))
        devices += [VirtualDevice(name, key) for name, key in made]
    return _checked(devices)


def slowed(devices: list[VirtualDevice], speed: float) -> list[VirtualDevice]:
    """The same boards with `speed` times the speed they have. Raises `SpecError`."""
    if not MIN_SPEED <= speed <= 1:
        raise SpecError(f"boards cannot have {speed:g} of their speed: {MIN_SPEED} to 1")
    return [replace(device, speed=device.speed * speed) for device in devices]


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
        speed = table.get("speed", 1.0)
        if type(speed) not in (int, float) or not MIN_SPEED <= speed <= 1:
            raise SpecError(
                f"the [[device]] with board {board!r} of {path} has {speed!r} as speed: "
                f"use a number from {MIN_SPEED} to 1"
            )
        devices += [
            VirtualDevice(made, key, labels, memory, float(speed))
            for made, key in _boards(str(board), count, name, len(devices))
        ]
    return _checked(devices)


def _is_labels(labels: Any) -> bool:
    return isinstance(labels, dict) and all(
        is_name(k) and isinstance(v, str) and is_name(v) for k, v in labels.items()
    )


def _boards(board: str, count: int, name: str | None, already: int) -> list[tuple[str, str]]:
    """Name and profile of each of `count` boards."""
    if board not in PROFILES:
        raise SpecError(f"no board is called {board!r}; there are {', '.join(sorted(PROFILES))}")
    if already + count > MAX_DEVICES:
        raise SpecError(f"a simulated fleet has at most {MAX_DEVICES} devices")
    return [(n, board) for n in ([name] if name else [f"{board}-{i + 1}" for i in range(count)])]


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
