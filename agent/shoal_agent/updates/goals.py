"""Goals: what makes a document acceptable, which models are the same, how far one has come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shoal_agent.serving.service import Loaded
from shoal_agent.updates.store import is_digest
from shoal_shared.messages import Desired, ModelGoal
from shoal_shared.names import checked_name
from shoal_shared.status import ReplicaState

MAX_BATCH = 4096

Key = tuple[str, str]
"""Model and version: what the serving side holds at most once."""


def key_of(goal: ModelGoal) -> Key:
    return goal.model, goal.version


def same_settings(a: ModelGoal, b: ModelGoal) -> bool:
    """Whether a device that runs `a` needs to do nothing to run `b`."""
    return (a.digest, a.format, a.max_batch, a.options) == (
        b.digest,
        b.format,
        b.max_batch,
        b.options,
    )


def check_desired(desired: Desired) -> None:
    """Check what decoding does not. Raises `ValueError` with one sentence."""
    if desired.goal < 0:
        raise ValueError(f"goal number {desired.goal} is negative")
    for goal in desired.models:
        checked_name(goal.deployment, "deployment")
        checked_name(goal.model, "model")
        checked_name(goal.version, "version")
        if not is_digest(goal.digest):
            raise ValueError(f"digest {goal.digest[:80]!r} of {goal.model} is not a SHA-256")
        if goal.size < 1:
            raise ValueError(f"size {goal.size} of {goal.model} is not positive")
        if not 1 <= goal.max_batch <= MAX_BATCH:
            raise ValueError(f"max_batch of {goal.model} is not between 1 and {MAX_BATCH}")


@dataclass
class Slot:
    """One model and version on this device, on its way to `goal` or away.

    `path` is set once the artifact is verified, `loaded` once it serves. `busy` while an effect
    works on it: a fetch without `path`, else a load or an unload.
    """

    goal: ModelGoal
    local: bool = False
    state: ReplicaState = ReplicaState.QUEUED
    reason: str = ""
    path: Path | None = None
    loaded: Loaded | None = None
    busy: bool = False
    failures: int = 0
    retry_at: float = 0.0
