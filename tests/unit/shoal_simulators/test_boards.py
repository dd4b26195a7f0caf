from __future__ import annotations

import pytest

from shoal_agent.boards.base import BoardFacts, BoardReading
from shoal_shared.messages import Board
from shoal_simulators.boards import VirtualBoard
from shoal_simulators.profiles import PROFILES

GB = 1_000_000_000


class Host:
    """A machine with 16 GB, of which so many are used."""

    def __init__(self, used_bytes: int) -> None:
        self._used_bytes = used_bytes
        self.facts = BoardFacts(Board(family="generic", model="host"), 4, 16 * GB)

    def read(self) -> BoardReading:
        return BoardReading(0.5, self._used_bytes, temperature_c=70.0, power_w=9.0)

    def is_throttled(self) -> bool:
        return True


@pytest.mark.parametrize(("used", "part"), [(0, 0.0), (4 * GB, 0.25), (16 * GB, 1), (20 * GB, 1)])
def test_of_its_memory_the_same_part_is_used_as_of_the_hosts(used: int, part: float) -> None:
    profile = PROFILES["jetson-nano"]
    board = VirtualBoard(profile, Host(used))
    assert board.facts.memory_bytes == profile.memory_bytes
    assert board.read().memory_used_bytes == round(part * profile.memory_bytes)


def test_it_has_the_hosts_load_but_neither_its_heat_nor_its_power() -> None:
    board = VirtualBoard(PROFILES["ascend-310"], Host(0))
    reading = board.read()
    assert (reading.cpu_load, reading.temperature_c, reading.power_w) == (0.5, None, None)
    assert not board.is_throttled()
