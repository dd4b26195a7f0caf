"""Events of what happens on targets."""

from __future__ import annotations

from typing import Any

from shoal_controlplane.offload.state import State
from shoal_controlplane.targets.changes import announce


async def test_each_change_of_state_is_an_event_of_its_target(room: Any) -> None:
    changed = announce(room.events)
    changed("aks", ("cat", "1"), State.OVER_BUDGET, "its budget is spent.")
    changed("aks", ("cat", "1"), State.COLD, "")
    found = [(e.kind, e.subject, e.message) for e in room.events.newest_first()]
    assert sorted(found) == [
        ("target.cold", "aks", "cat:1 on target aks is cold."),
        (
            "target.over_budget",
            "aks",
            "cat:1 on target aks is over budget: its budget is spent.",
        ),
    ]
