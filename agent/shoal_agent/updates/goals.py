"""Goals: what makes a document acceptable, which models are the same, how far one has come."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal_agent.serving.resident import Loaded
from shoal_agent.updates.store import is_digest
from shoal_shared.activations import COMPRESSIONS
from shoal_shared.messages import Desired, ModelGoal, RoleGoal
from shoal_shared.names import checked_name
from shoal_shared.oip import MAX_TENSOR_NAME, MAX_TENSORS
from shoal_shared.status import ReplicaState

MAX_BATCH = 4096
MAX_EPOCH = 2**53
MAX_STAGES = 1000
MAX_CREDITS = 1024
_SUM_TOLERANCE = 1e-3

Key = tuple[str, str]
"""Model and version: what the serving side holds at most once."""


def key_of(goal: ModelGoal) -> Key:
    return goal.model, goal.version


def same_settings(a: ModelGoal, b: ModelGoal) -> bool:
    """Whether a device that runs `a` needs to do nothing to run `b`."""
    return a.settings == b.settings


def digests_of(goal: ModelGoal) -> set[str]:
    """Digests of all artifacts that a goal names."""
    golden = {goal.golden.digest} if goal.golden else set()
    return {file.digest for file in goal.files} | golden


def check_desired(desired: Desired) -> None:
    """Check what decoding does not. Raises `ValueError` with one sentence."""
    if desired.goal < 0:
        raise ValueError(f"goal number {desired.goal} is negative")
    for goal in desired.models:
        checked_name(goal.deployment, "deployment")
        checked_name(goal.model, "model")
        checked_name(goal.version, "version")
        for file in goal.files:
            checked_name(file.name, "variant")
            _check_artifact(goal, file.digest, file.size)
        if len({file.name for file in goal.files}) < len(goal.files):
            raise ValueError(f"two variants of {goal.model} share a name")
        if goal.golden is not None:
            _check_artifact(goal, goal.golden.digest, goal.golden.size)
            if not 0 <= min(goal.golden.absolute, goal.golden.relative) < math.inf:
                raise ValueError(f"the tolerance of {goal.model} is not a number of 0 or more")
        if not 1 <= goal.max_batch <= MAX_BATCH:
            raise ValueError(f"max_batch of {goal.model} is not between 1 and {MAX_BATCH}")
    models = {key_of(goal) for goal in desired.models}
    for role in desired.roles:
        _check_role(role, models)
    if len({(r.plan, r.epoch, r.stage, r.replica) for r in desired.roles}) < len(desired.roles):
        raise ValueError("two roles read one topic")


def _check_role(role: RoleGoal, models: Collection[Key]) -> None:
    checked_name(role.plan, "plan")
    what = f"stage {role.stage} of plan {role.plan}"
    for field, value, most in (
        ("epoch", role.epoch, MAX_EPOCH),
        ("stage", role.stage, MAX_STAGES - 1),
        ("replica", role.replica, MAX_STAGES - 1),
    ):
        if not 0 <= value <= most:
            raise ValueError(f"{field} of a stage of plan {role.plan} is not between 0 and {most}")
    if (role.model, role.version) not in models:
        raise ValueError(f"{what} runs a model that the document does not hold")
    if role.next:
        if not all(0 < share < math.inf for share in role.next):
            raise ValueError(f"a share of {what} is not a positive number")
        if abs(sum(role.next) - 1) > _SUM_TOLERANCE:
            raise ValueError(f"the shares of {what} do not sum to 1")
    if len(role.passes) > MAX_TENSORS or len(set(role.passes)) < len(role.passes):
        raise ValueError(f"{what} passes a tensor twice, or more than {MAX_TENSORS}")
    if any(not 0 < len(name) <= MAX_TENSOR_NAME for name in role.passes):
        raise ValueError(f"the name of a tensor of {what} is not valid")
    if not 1 <= role.credits <= MAX_CREDITS:
        raise ValueError(f"credits of {what} is not between 1 and {MAX_CREDITS}")
    if role.compression not in COMPRESSIONS:
        raise ValueError(f"compression {role.compression[:80]!r} of {what} is not known")


def _check_artifact(goal: ModelGoal, digest: str, size: int) -> None:
    if not is_digest(digest):
        raise ValueError(f"digest {digest[:80]!r} of {goal.model} is not a SHA-256")
    if size < 1:
        raise ValueError(f"size {size} of {goal.model} is not positive")


@dataclass
class Slot:
    """One model and version on this device, on its way to `goal` or away.

    `files` maps digests to verified artifacts once all are here, `loaded` is set once it serves.
    `busy` while an effect works on it: a fetch without `files`, else a load or an unload. `stale`
    while it still serves with settings that the goal had before.
    """

    goal: ModelGoal
    local: bool = False
    state: ReplicaState = ReplicaState.QUEUED
    reason: str = ""
    files: Mapping[str, Path] | None = None
    loaded: Loaded | None = None
    busy: bool = False
    stale: bool = False
    failures: int = 0
    retry_at: float = 0.0
