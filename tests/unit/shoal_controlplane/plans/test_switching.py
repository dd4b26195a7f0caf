"""Epochs and plans that take over from one another."""

from __future__ import annotations

import pytest
from support.fleet import MB
from support.plans import Rooms, served

from shoal_controlplane.deployments.service import DeploymentChange
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.shaping import SUSTAIN_S
from shoal_controlplane.plans.switching import AVOID_S, DRAIN_S, LOADING_S, RETRY_S, SETTLE_S
from shoal_shared.status import DeploymentState, ReplicaState


async def test_a_stage_counts_only_once_its_device_has_seen_the_goal(rooms: Rooms) -> None:
    await served(rooms)
    rooms.deaf.add("d2")
    rooms.drafter.ms = {"d3": 1.0}
    rooms.join("d4")
    await rooms.run()
    rooms.clock.advance(SUSTAIN_S + SETTLE_S)
    await rooms.run()
    assert rooms.current()[0] == 1, "d2 has loaded its stage, but does not know its new role"


async def test_a_fallback_takes_over_at_once_and_the_old_epoch_is_over(rooms: Rooms) -> None:
    await served(rooms)
    rooms.leave("d1")
    await rooms.controller.step()
    assert rooms.current() == (2, (("d3",), ("d2",)))
    assert rooms.offered() == [2]
    assert rooms.entry().state is PlanState.DEGRADED
    assert rooms.entry().reason == "d1 lost: epoch 2 took over"
    assert rooms.plan_store.plans["cat"].current.epoch == 2
    rooms.join("d1")
    rooms.obey()
    await rooms.step()
    assert 1 not in rooms.offered(), "never again, though its devices are all there"
    assert rooms.told() == ["plan.ready", "plan.degraded"]
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    epoch, devices = rooms.current()
    assert (epoch, devices) == (4, (("d3",), ("d2",))), "new fallbacks, so a new epoch"
    assert set(rooms.plan_store.plans["cat"].fallbacks) == {"d2", "d3"}
    assert rooms.entry().state is PlanState.READY
    assert rooms.told() == ["plan.ready", "plan.degraded", "plan.changed"]


async def test_a_device_that_does_two_stages_for_another_is_relieved(rooms: Rooms) -> None:
    await served(rooms, "d1", "d2")
    rooms.leave("d1")
    await rooms.controller.step()
    assert rooms.current() == (2, (("d2",), ("d2",)))
    assert rooms.offered() == [2]
    rooms.join("d3")
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    rooms.clock.advance(SUSTAIN_S)
    await rooms.run()
    epoch, (first, second) = rooms.current()
    assert epoch > 3
    assert {*first, *second} == {"d2", "d3"}


async def test_without_a_way_round_there_is_a_new_plan(rooms: Rooms) -> None:
    # d3 has no room beside what it does already, nor have the others.
    rooms.join("d1", "d2", memory=90 * MB)
    await rooms.create()
    await rooms.run()
    assert rooms.offered() == [1]
    rooms.leave("d1")
    await rooms.controller.step()
    assert rooms.offered() == []
    assert rooms.service.view("cat").state is DeploymentState.DEGRADED
    assert rooms.entry().reason == "requests wait for a new plan"
    served_model = rooms.table.find("cat")
    assert served_model is not None
    assert served_model.sharded, "so that the gateway lets requests wait"
    await rooms.made()
    for _ in range(5):
        rooms.clock.advance(RETRY_S)
        await rooms.step()
    assert rooms.entry().state is PlanState.PENDING
    assert rooms.entry().reason == "There is no plan: needs 2 devices"
    assert rooms.told() == ["plan.ready", "plan.lost", "plan.pending"]
    rooms.join("d3", memory=90 * MB)
    await rooms.run()
    epoch, devices = rooms.current()
    assert epoch == 2
    assert devices == (("d2",), ("d3",))
    assert rooms.told()[3:] == ["plan.ready"]


async def test_make_before_break(rooms: Rooms) -> None:
    await served(rooms)
    await rooms.service.edit("cat", DeploymentChange(version="2"), None)
    await rooms.step()
    assert rooms.offered(version="1") == [1, 2, 3]
    assert rooms.service.view("cat").state is DeploymentState.PROGRESSING
    await rooms.step()
    assert rooms.offered(version="1") == [1, 2, 3], "until the new one is ready"
    rooms.obey()
    await rooms.step()
    assert rooms.offered(version="2") == [4, 5, 6]
    assert rooms.offered(version="1") == [1, 2, 3], "it answers what is under way"
    assert rooms.service.view("cat").state is DeploymentState.READY
    assert rooms.plans.due_in(rooms.clock()) == pytest.approx(SETTLE_S), "its stages are measured"
    rooms.clock.advance(DRAIN_S)
    await rooms.step()
    assert rooms.offered(version="1") == []
    assert rooms.epochs("d1") == {4, 6}, "it is not in the one for its own loss"
    assert {m.version[0] for m in rooms.desired("d1").models} == {"2"}
    assert rooms.told() == ["plan.ready", "plan.changed"]


async def test_an_abandoned_epoch_does_not_come_back_while_its_plan_drains(rooms: Rooms) -> None:
    await served(rooms)
    rooms.plans.abandoned(rooms.pipeline(), "d1", "stage 0 is 9 times too slow")
    await rooms.run()
    await rooms.service.edit("cat", DeploymentChange(version="2"), None)
    await rooms.run()
    assert rooms.entry().draining is not None
    assert rooms.offered(version="1") == [2]


async def test_a_candidate_that_cannot_be_loaded_goes_elsewhere(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    rooms.states["d1"] = ReplicaState.FAILED
    await rooms.create()
    await rooms.step()
    await rooms.step()
    rooms.obey()
    await rooms.step()
    assert rooms.entry().avoid == {"d1": rooms.clock() + AVOID_S}
    [told] = [e for e in rooms.events.newest_first() if e.kind == "plan.failed"]
    assert told.message == "The plan of deployment cat could not load on d1: out of memory."
    await rooms.run()
    epoch, devices = rooms.current()
    assert epoch > 3
    assert devices == (("d2",), ("d3",))
    assert rooms.told() == ["plan.failed", "plan.ready"]


async def test_where_nothing_but_a_failing_device_is_left(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    rooms.states["d1"] = ReplicaState.FAILED
    await rooms.create()
    await rooms.run(10)
    tries = len(rooms.cutter.folders), rooms.entry().epoch
    await rooms.run(5)
    assert (len(rooms.cutter.folders), rooms.entry().epoch) == tries, "no busy loop"
    assert rooms.told() == ["plan.failed"], "and no stream of events"
    rooms.states.clear()
    rooms.clock.advance(RETRY_S)
    await rooms.run()
    assert rooms.entry().state is PlanState.READY
    assert rooms.told() == ["plan.failed", "plan.ready"]


async def test_a_stage_that_fails_while_it_serves_is_lost(rooms: Rooms) -> None:
    await served(rooms)
    rooms.states["d2"] = ReplicaState.FAILED
    rooms.obey("d2")
    await rooms.controller.step()
    assert rooms.current() == (3, (("d1",), ("d3",)))
    assert rooms.offered() == [3]
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    assert rooms.current()[1] == (("d1",), ("d3",))
    assert "d2" not in rooms.entry().plans[0].fallbacks


async def test_a_candidate_that_takes_too_long(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    rooms.deaf.add("d2")
    await rooms.create()
    await rooms.run()
    rooms.clock.advance(LOADING_S / 2)
    rooms.join("d4")
    await rooms.run()
    assert rooms.entry().epoch == 3, "it has its time, whatever else happens to the fleet"
    rooms.clock.advance(LOADING_S / 2)
    await rooms.run()
    assert rooms.current()[1] == (("d1",), ("d3",))
    assert set(rooms.entry().avoid) == {"d2"}


async def test_cordoned_devices_leave_the_plan(rooms: Rooms) -> None:
    await served(rooms)
    rooms.fleet.edit("d2", {}, cordoned=True, revision=2)
    await rooms.controller.step()
    assert rooms.current() == (3, (("d1",), ("d3",)))
    rooms.fleet.edit("d2", {}, cordoned=False, revision=3)
    await rooms.step()
    assert 1 not in rooms.offered()


async def test_a_stage_that_is_loaded_anew(rooms: Rooms) -> None:
    await served(rooms)
    rooms.states["d1"] = ReplicaState.LOADING
    rooms.obey("d1")
    await rooms.step()
    assert rooms.offered() == [2], "without it"
    assert rooms.current()[0] == 1, "it may be back in a moment"
    assert rooms.entry().state is PlanState.READY
    rooms.states.clear()
    rooms.obey("d1")
    await rooms.step()
    assert rooms.offered() == [1, 2, 3]
    assert rooms.told() == ["plan.ready"]


async def test_a_stage_that_is_loaded_anew_without_a_way_round(rooms: Rooms) -> None:
    rooms.join("d1", "d2", memory=90 * MB)
    await rooms.create()
    await rooms.run()
    rooms.states["d1"] = ReplicaState.LOADING
    rooms.obey("d1")
    tries = len(rooms.drafter.asked)
    await rooms.run()
    assert rooms.offered() == []
    assert (rooms.entry().state, rooms.entry().reason) == (
        PlanState.LOADING,
        "d1 loads its stage",
    )
    assert len(rooms.drafter.asked) == tries, "a new plan would take longer"
    assert rooms.plans.due_in(rooms.clock()) == pytest.approx(LOADING_S)
    rooms.join("d3", memory=90 * MB)
    await rooms.run()
    assert rooms.entry().candidate is None
    rooms.clock.advance(LOADING_S)
    await rooms.run()
    assert rooms.current()[1] == (("d2",), ("d3",))
    assert rooms.told() == ["plan.ready", "plan.lost", "plan.ready"]


async def test_all_devices_go_at_once(rooms: Rooms) -> None:
    await served(rooms)
    rooms.leave("d1", "d2", "d3")
    await rooms.run()
    assert rooms.offered() == []
    assert rooms.entry().state is PlanState.PENDING
    rooms.join("d1", "d2", "d3")
    await rooms.run()
    assert rooms.offered()[0] > 3
    assert rooms.told() == ["plan.ready", "plan.lost", "plan.pending", "plan.ready"]


async def test_a_candidate_whose_device_goes(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    await rooms.create()
    await rooms.step()
    await rooms.step()
    assert rooms.entry().candidate is not None
    rooms.leave("d2")
    await rooms.run()
    assert rooms.current()[1] == (("d1",), ("d3",))
    assert rooms.epochs("d1") & {1, 2, 3} == set()


async def test_flaps_never_bring_an_old_epoch_back(rooms: Rooms) -> None:
    await served(rooms, "d1", "d2", "d3", "d4")
    over: set[int] = set()
    for n in range(40):
        name = f"d{n % 4 + 1}"
        before = set(rooms.offered())
        rooms.leave(name)
        await rooms.controller.step()
        assert not over & set(rooms.offered())
        over |= before - set(rooms.offered())
        rooms.join(name)
        rooms.obey()
        await rooms.step()
        assert not over & set(rooms.offered())
        rooms.clock.advance(SETTLE_S if n % 3 else 0.1)
        await rooms.run(2)
        assert not over & set(rooms.offered())
    rooms.clock.advance(AVOID_S)
    await rooms.run()
    assert rooms.offered() != []
