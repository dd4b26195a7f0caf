"""Events of what happens on targets."""

from __future__ import annotations

from shoal_controlplane.events.log import EventLog
from shoal_controlplane.offload.manager import Changed
from shoal_controlplane.offload.state import State
from shoal_controlplane.planner.snapshot import ModelKey


def announce(events: EventLog) -> Changed:
    """Who appends an event for each change of state of a model on a target."""

    def changed(target: str, key: ModelKey, state: State, sentence: str) -> None:
        model = ":".join(key)
        why = f": {sentence.rstrip('.')}" if sentence else ""
        events.append(
            f"target.{state.value}",
            target,
            f"{model} on target {target} is {state.value.replace('_', ' ')}{why}.",
            {"model": key[0], "version": key[1], "state": state.value},
        )

    return changed
