from __future__ import annotations

import pytest
from support.plans import Rooms

from shoal_controlplane.errors import NotFoundError
from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.plans.planning import Planner


async def test_drafts_by_name(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    planner = Planner(rooms.models, rooms.drafter)
    facts = {"select": {}, "objective": Objective.LATENCY, "stages": None, "shapes": None}
    assert (await planner.draft("cat", None, **facts)).model.version == "2"  # type: ignore[arg-type]
    draft = await planner.draft("cat", "1", **facts)  # type: ignore[arg-type]
    assert (draft.model.version, draft.problem.objective) == ("1", Objective.LATENCY)
    with pytest.raises(NotFoundError):
        await planner.draft("fox", None, **facts)  # type: ignore[arg-type]
    assert rooms.plan_store.plans == {}
