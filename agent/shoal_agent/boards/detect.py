"""Which board this is: the families in order, the most particular first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from shoal_agent.boards.base import Board
from shoal_agent.boards.generic import GenericBoard

Probe = Callable[[Path], "Board | None"]
"""Looks below a root folder and returns its board, or None where it is another family."""

FAMILIES: Sequence[Probe] = (GenericBoard.probe,)


def detect(root: Path = Path("/"), families: Sequence[Probe] = FAMILIES) -> Board:
    """The first family that recognises the machine below `root`, else the generic board."""
    for probe in families:
        board = probe(root)
        if board is not None:
            return board
    return GenericBoard(root)
