"""Which board this is: the families in order, the most particular first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from shoal_agent.boards.ascend import AscendBoard
from shoal_agent.boards.base import Board
from shoal_agent.boards.generic import GenericBoard
from shoal_agent.boards.jetson import JetsonBoard
from shoal_agent.boards.snapdragon import SnapdragonBoard
from shoal_agent.service.logs import fields

log = logging.getLogger("boards")

Probe = Callable[[Path], "Board | None"]
"""Looks below a root folder and returns its board, or None where it is another family."""

FAMILIES: Sequence[Probe] = (
    JetsonBoard.probe,
    AscendBoard.probe,
    SnapdragonBoard.probe,
    GenericBoard.probe,
)


def detect(root: Path = Path("/"), families: Sequence[Probe] = FAMILIES) -> Board:
    """The first family that recognises the machine below `root`, else the generic board.

    A family that fails on what it finds is passed over: the device still serves on its CPU.
    """
    for probe in families:
        try:
            board = probe(root)
        except Exception as error:
            log.warning("a board could not be read", extra=fields(probe=probe, error=error))
            continue
        if board is not None:
            return board
    return GenericBoard(root)
