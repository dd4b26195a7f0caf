"""A model in service: how it runs here, and its queue and counters."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from shoal_agent.serving.batch import Outcome
from shoal_agent.serving.prepare import Prepared
from shoal_agent.serving.queue import Limits
from shoal_agent.serving.request import Contract
from shoal_agent.serving.scheduler import ModelQueue
from shoal_shared.messages import REFERENCE, ModelGoal
from shoal_shared.placement import Placement
from shoal_shared.profiles import Profile, fit

FIRST_REQUESTS = 5
"""Requests that give the profile of a model which profiling could not run."""


@dataclass(frozen=True)
class Loaded:
    """A model in service, with what its device reports of it: see `ReplicaReport`.

    `measured` is false until its first requests have told how long it takes.
    """

    providers: tuple[str, ...]
    memory_bytes: int
    profile: Profile
    variant: str = REFERENCE
    runtime: str = ""
    placement: Placement | None = None
    golden_error: float | None = None
    compiled: str = ""
    load_s: float = 0.0
    notes: tuple[str, ...] = ()
    measured: bool = True


class Resident(ModelQueue):
    """A model in service: its queue and counters."""

    def __init__(self, goal: ModelGoal, prepared: Prepared, loaded: Loaded) -> None:
        model = prepared.model
        super().__init__(model, Limits.of(loaded.profile, goal.max_batch))
        self.goal = goal
        self.shapes = prepared.shapes
        self.loaded = loaded
        self.contract = Contract.of(model.signature, goal.max_batch)
        self.answered = 0
        self.failed = 0
        self._first_ms: list[float] = []

    def learn(self, outcome: Outcome) -> None:
        """Profile from the first requests where profiling found no input of its own."""
        self._first_ms.append(outcome.seconds * 1000)
        if len(self._first_ms) >= FIRST_REQUESTS:
            profile = fit([(1, statistics.median(self._first_ms))])
            notes = self.loaded.notes[:-1]
            self.loaded = replace(self.loaded, profile=profile, notes=notes, measured=True)
            self.limits = Limits.of(profile, 1)

    def measured_anew(self, profile: Profile) -> None:
        """The board became slower or faster."""
        self.loaded = replace(self.loaded, profile=profile)
        self.limits = Limits.of(profile, self.goal.max_batch)
