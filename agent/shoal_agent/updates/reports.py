"""What the device reports of its models, within the size that a document may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from shoal_agent.updates.goals import Key, Slot, key_of, same_settings
from shoal_shared.messages import (
    MessageError,
    ModelGoal,
    ReplicaReport,
    Reported,
    encode_document,
)
from shoal_shared.status import ReplicaState


def reports(wanted: Sequence[ModelGoal], slots: Mapping[Key, Slot]) -> tuple[ReplicaReport, ...]:
    """What to report: every goal, then what still runs although no goal asks for it."""
    out: list[ReplicaReport] = []
    shown: set[Key] = set()
    for goal in wanted:
        slot = slots.get(key_of(goal))
        if slot is not None and same_settings(slot.goal, goal):
            shown.add(key_of(goal))
            out.append(_report(goal, slot))
        elif any(g is not goal and key_of(g) == key_of(goal) for g in wanted) and slot is not None:
            out.append(_conflict(goal))
        else:
            out.append(_report(goal, Slot(goal)))
    out += [_report(s.goal, s) for k, s in slots.items() if k not in shown and s.loaded]
    return tuple(out)


def _report(goal: ModelGoal, slot: Slot) -> ReplicaReport:
    loaded = slot.loaded
    return ReplicaReport(
        deployment=goal.deployment,
        model=goal.model,
        version=goal.version,
        digest=goal.digest,
        state=slot.state,
        reason=slot.reason,
        providers=loaded.providers if loaded else (),
        memory_bytes=loaded.memory_bytes if loaded else 0,
        profile=loaded.profile if loaded else None,
        variant=loaded.variant if loaded else "",
        runtime=loaded.runtime if loaded else "",
        placement=loaded.placement if loaded else None,
        golden_error=loaded.golden_error if loaded else None,
        compiled=loaded.compiled if loaded else "",
        load_s=loaded.load_s if loaded else 0.0,
        notes=loaded.notes if loaded else (),
    )


def _conflict(goal: ModelGoal) -> ReplicaReport:
    return ReplicaReport(
        deployment=goal.deployment,
        model=goal.model,
        version=goal.version,
        digest=goal.digest,
        state=ReplicaState.FAILED,
        reason="another deployment on this device runs the same version with other settings",
    )


def encoded_size_fits(reported: Reported) -> bool:
    """Whether the document is within the limit."""
    try:
        encode_document(reported)
    except MessageError:
        return False
    return True


def fit(reported: Reported) -> Reported:
    """Shorten the document until it is within the limit, the least useful first.

    First go the ends of long reasons and notes, then the samples of profiles (their fit stays),
    then provider names, nodes and reasons; last the models at the end, which a goal within its
    own limit never needs.
    """
    for shorten in _STEPS:
        reported = msgspec.structs.replace(
            reported, models=tuple(shorten(m) for m in reported.models)
        )
        if encoded_size_fits(reported):
            return reported
    while not encoded_size_fits(reported):
        reported = msgspec.structs.replace(reported, models=reported.models[:-1])
    return reported


def _reason(limit: int) -> Callable[[ReplicaReport], ReplicaReport]:
    def shorten(model: ReplicaReport) -> ReplicaReport:
        notes = tuple(_cut(note, limit) for note in model.notes[:3] if limit)
        return msgspec.structs.replace(model, reason=_cut(model.reason, limit), notes=notes)

    return shorten


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return text[: max(0, limit - 1)] + "…" if limit else ""


def _without_samples(model: ReplicaReport) -> ReplicaReport:
    if model.profile is None:
        return model
    profile = msgspec.structs.replace(model.profile, samples=())
    return msgspec.structs.replace(model, profile=profile)


def _without_providers(model: ReplicaReport) -> ReplicaReport:
    placement = model.placement and msgspec.structs.replace(model.placement, nodes={})
    return msgspec.structs.replace(model, providers=(), placement=placement, runtime="")


_STEPS = (_reason(300), _reason(80), _without_samples, _without_providers, _reason(0))
