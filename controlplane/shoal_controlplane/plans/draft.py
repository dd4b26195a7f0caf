"""A plan as it would be: computed for the fleet as it is now, before anything changes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.cuts.analysis import Analysis
from shoal_controlplane.planner.partition.problem import Outcome, Problem


class Basis(str, enum.Enum):
    """What the times of a type of board rest on, best first."""

    MEASURED = "measured"
    """Parts of the model were measured on such a board."""
    SCALED = "scaled"
    """The whole model was measured on it, and shared out among the segments by the roofline."""
    ESTIMATED = "estimated"
    """Nothing was measured: a roofline from what the board says of itself."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What the planner was asked, and what it found. `basis` is by type of device, in the order of
    `problem.types`; `boards` names the board of each type, as "jetson/Jetson Orin Nano". `notes`
    are sentences on what the planner left out."""

    model: ModelVersion
    select: Mapping[str, str]
    analysis: Analysis
    problem: Problem
    outcome: Outcome
    basis: tuple[Basis, ...]
    boards: tuple[str, ...]
    notes: tuple[str, ...] = ()
