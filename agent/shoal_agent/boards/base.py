"""What the agent asks of a board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from shoal_shared.messages import Accelerator
from shoal_shared.messages import Board as BoardDescription


@dataclass(frozen=True)
class BoardFacts:
    """What a board has; it does not change while the agent runs. Memory in bytes.

    `toolkits` maps drivers and toolkits to their versions: "l4t", "jetpack", "cuda", "tensorrt",
    "cann", "npu-driver", "qnn" and the like. `target` names the chip that code is compiled for,
    as "nvidia-sm87", "ascend-310b4" or "qualcomm-soc57"; empty where nothing is compiled.
    `notes` are sentences on what the board has but cannot be used, or could not be read.
    """

    description: BoardDescription
    cores: int
    memory_bytes: int
    accelerators: tuple[Accelerator, ...] = ()
    toolkits: Mapping[str, str] = field(default_factory=dict)
    power_mode: str = ""
    target: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BoardReading:
    """A moment of a board; None where the board cannot say.

    Loads are fractions of one since the reading before, memory in bytes, temperature of the
    hottest sensor in °C, power in W.
    """

    cpu_load: float
    memory_used_bytes: int
    temperature_c: float | None = None
    power_w: float | None = None
    accelerator_load: float | None = None
    accelerator_memory_used_bytes: int | None = None


class Board(Protocol):
    """A device's hardware. Readings are real or None, never guessed."""

    @property
    def facts(self) -> BoardFacts: ...

    def read(self) -> BoardReading:
        """Read load and sensors; takes a few milliseconds at most, so what needs a program such
        as `npu-smi` is read beside it and handed out as it was last."""

    def is_throttled(self) -> bool:
        """Whether heat or power slows the board down, now or since the call before; cheap,
        asked twice a second, and by one caller only, for what it counts is counted once."""
