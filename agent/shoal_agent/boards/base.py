"""What the agent asks of a board."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shoal_shared.messages import Accelerator
from shoal_shared.messages import Board as BoardDescription


@dataclass(frozen=True)
class BoardFacts:
    """What a board has; it does not change while the agent runs. Memory in bytes."""

    description: BoardDescription
    cores: int
    memory_bytes: int
    accelerators: tuple[Accelerator, ...] = ()
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
    throttled: bool = False
    power_w: float | None = None
    accelerator_load: float | None = None


class Board(Protocol):
    """A device's hardware. Readings are real or None, never guessed."""

    @property
    def facts(self) -> BoardFacts: ...

    def read(self) -> BoardReading:
        """Read load and sensors; takes a few milliseconds at most."""
