from __future__ import annotations

from dataclasses import replace

import pytest
from support.fleet import PROFILE, status
from support.plans import Rooms

from shoal_controlplane.deployments.service import DeploymentChange
from shoal_controlplane.plans.active import ActivePlan, PlanState
from shoal_controlplane.plans.shown import state_of
from shoal_shared.status import ReplicaState


def found(rooms: Rooms) -> ActivePlan:
    active = rooms.plans.find("cat")
    assert active is not None
    assert rooms.plans.active() == [active]
    return active


async def test_before_there_is_a_plan(rooms: Rooms) -> None:
    assert rooms.plans.find("cat") is None
    await rooms.create()
    await rooms.step()
    active = found(rooms)
    assert (active.name, active.model, active.version) == ("cat", "cat", "1")
    assert (active.state, active.reason) == (
        PlanState.PENDING,
        "There is no plan: needs 2 devices",
    )
    assert (active.plan, active.epoch, active.partition) == (None, 0, None)
    assert dict(active.states) == {}


async def test_one_that_serves(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    await rooms.create()
    await rooms.step()
    await rooms.step()
    rooms.obey("d1")
    active = found(rooms)
    assert dict(active.states) == {(0, "d1"): "ready", (1, "d2"): "queued"}
    await rooms.run()
    active = found(rooms)
    assert (active.state, active.epoch) == (PlanState.READY, 1)
    assert active.plan == rooms.entry().plan
    assert active.partition is not None
    assert [s.devices for s in active.partition.stages] == [("d1",), ("d2",)]
    assert dict(active.spares) == {"d3": (0, 1)}
    assert [(f.lost, f.epoch, f.devices) for f in active.fallbacks] == [
        ("d1", 2, (("d3",), ("d2",))),
        ("d2", 3, (("d1",), ("d3",))),
    ]
    assert all(0 < f.rate < 1e3 for f in active.fallbacks)
    assert active.credits == active.plan.credits


async def test_an_epoch_that_is_over_is_no_fallback(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    await rooms.create()
    await rooms.run()
    rooms.leave("d3")
    await rooms.controller.step()
    assert found(rooms).fallbacks == ()
    await rooms.run()


async def test_what_comes_next_is_priced_apart(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    await rooms.create()
    await rooms.run()
    before = found(rooms).partition
    assert before is not None
    await rooms.service.edit("cat", DeploymentChange(version="2"), None)
    await rooms.step()
    active = found(rooms)
    assert rooms.entry().candidate is not None
    assert active.version == "1"
    assert (active.draft, active.partition) == (None, None), "the draft is of another model"
    entry = rooms.entry()
    assert entry.draft is not None
    model = replace(entry.draft.model, digest=active.plan.digest) if active.plan else None
    assert model is not None
    entry.draft = replace(entry.draft, model=model)
    partition = found(rooms).partition
    assert partition is not None
    assert [s.devices for s in partition.stages] == [s.devices for s in before.stages]
    assert {s.compute_ms for s in partition.stages} == {PROFILE.milliseconds(1)}, "as reported"


async def test_a_plan_after_a_restart_has_no_draft(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    await rooms.create()
    await rooms.run()
    rooms.entry().draft = rooms.entry().partition = None
    active = found(rooms)
    assert (active.draft, active.partition) == (None, None)
    assert active.plan is not None


async def test_stages_as_their_devices_tell(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    await rooms.create()
    await rooms.step()
    plan = rooms.entry().candidate
    assert plan is not None
    queued = ReplicaState.QUEUED
    assert state_of(plan, 0, "d9", rooms.fleet.get) == (queued, "the device is offline", None)
    assert state_of(plan, 0, "d1", rooms.fleet.get)[:2] == (
        queued,
        "the device has not answered yet",
    )
    rooms.states["d1"] = ReplicaState.FAILED
    await rooms.controller.step()
    rooms.obey()
    state, reason, report = state_of(plan, 0, "d1", rooms.fleet.get)
    assert (state, reason) == (ReplicaState.FAILED, "out of memory.")
    assert report is not None
    rooms.fleet.observe("d1", status(boot="b2"))
    assert state_of(plan, 0, "d1", rooms.fleet.get)[0] is queued


@pytest.mark.parametrize("stage", [0, 1])
async def test_a_device_that_does_both_stages_has_no_spare(rooms: Rooms, stage: int) -> None:
    rooms.join("d1", "d2")
    await rooms.create()
    await rooms.run()
    rooms.leave(rooms.current()[1][stage][0])
    await rooms.controller.step()
    active = found(rooms)
    assert dict(active.spares) == {}
    assert active.state is PlanState.DEGRADED
