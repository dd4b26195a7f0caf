"""A virtual board: a real one's data sheet over this machine's sensors."""

from __future__ import annotations

from dataclasses import replace

from shoal_agent.boards.base import Board, BoardFacts, BoardReading
from shoal_agent.boards.generic import GenericBoard
from shoal_shared.messages import Accelerator
from shoal_shared.messages import Board as BoardDescription
from shoal_simulators.profiles import PROFILES, RESNET50_MACS, BoardProfile


class VirtualBoard:
    """Looks like the board of a profile and says that it is simulated.

    Load is this machine's, since that is what computes; of its memory the same part is used as of
    this machine's. Temperature is unknown, since the board does not exist.
    """

    def __init__(self, profile: BoardProfile, host: Board | None = None) -> None:
        self._host = host or GenericBoard()
        published = profile.milliseconds(1, RESNET50_MACS)
        self._facts = BoardFacts(
            description=BoardDescription(
                family=profile.family, model=profile.model, soc=profile.soc, simulated=True
            ),
            cores=profile.cores,
            memory_bytes=profile.memory_bytes,
            accelerators=(Accelerator(kind=profile.accelerator, name=profile.soc),),
            notes=(
                "simulated: models are computed for real on this machine's CPU, slowed down to "
                f"the board's published speed (ResNet-50 in {published:.2f} ms) where the CPU "
                "is faster",
            ),
        )

    @classmethod
    def of(cls, board: str) -> VirtualBoard:
        """The virtual board with the key `board` in `PROFILES`."""
        return cls(PROFILES[board])

    @property
    def facts(self) -> BoardFacts:
        return self._facts

    def read(self) -> BoardReading:
        reading = self._host.read()
        used = reading.memory_used_bytes / max(self._host.facts.memory_bytes, 1)
        return replace(
            reading,
            memory_used_bytes=round(min(used, 1.0) * self._facts.memory_bytes),
            temperature_c=None,
            power_w=None,
        )

    def is_throttled(self) -> bool:
        return False
