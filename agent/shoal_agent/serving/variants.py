"""Which files of a version could run in which ways on this device. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_shared.messages import ModelGoal, VariantGoal

SetsFor = Callable[[str, Mapping[str, Any]], Sequence[ProviderSet]]
"""Ways to run models of a format with these options. Raises `RuntimeLoadError`."""


@dataclass(frozen=True)
class Candidate:
    """One file of a version and one way to run it."""

    file: VariantGoal
    provider_set: ProviderSet


@dataclass(frozen=True)
class Choice:
    """What may be tried, accelerated ways first, each group in the order of preference; and
    why the rest may not, one sentence each."""

    fast: tuple[Candidate, ...]
    slow: tuple[Candidate, ...]
    refused: tuple[str, ...]

    @property
    def all(self) -> tuple[Candidate, ...]:
        return self.fast + self.slow

    @property
    def files(self) -> tuple[VariantGoal, ...]:
        """The files that are needed to try all of it."""
        return tuple({c.file.name: c.file for c in self.all}.values())


def choose(goal: ModelGoal, sets_for: SetsFor) -> Choice:
    """What a device may try for a goal.

    A file that was compiled for a chip goes only with ways that use that chip. The CPU is left
    out where the goal requires an accelerator.
    """
    fast: list[Candidate] = []
    slow: list[Candidate] = []
    refused: list[str] = []
    for file in goal.files:
        try:
            sets = sets_for(file.format, goal.options)
        except RuntimeLoadError as error:
            refused.append(named(goal, file.name, str(error)))
            continue
        fitting = [s for s in sets if not file.target or s.target == file.target]
        if not fitting:
            chips = " or ".join(sorted({s.target for s in sets if s.target}))
            here = f"this board is {chips}" if chips else "nothing here runs compiled code"
            refused.append(f"variant '{file.name}' is compiled for {file.target}, but {here}")
        fast += [Candidate(file, s) for s in fitting if s.accelerated]
        slow += [Candidate(file, s) for s in fitting if not s.accelerated]
    if goal.require_accelerator:
        if slow and not fast:
            refused.append("no runtime on this device uses an accelerator, which is required")
        slow.clear()
    return Choice(tuple(fast), tuple(slow), tuple(refused))


def named(goal: ModelGoal, name: str, text: str) -> str:
    """`text` with the file that it is about, where there are several."""
    return f"{name}: {text}" if goal.variants else text


def described(goal: ModelGoal, candidate: Candidate, text: str) -> str:
    """`text` with the candidate that it is about."""
    return named(goal, candidate.file.name, f"{candidate.provider_set.name}: {text}")
