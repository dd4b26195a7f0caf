"""Plans from the first draft to their end, over a fleet that does what it is told."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from sqlalchemy import event
from support.fleet import MB
from support.plans import Rooms, digest_of, served, until

from shoal_controlplane.database import Database
from shoal_controlplane.deployments.service import DeploymentChange, NewDeployment
from shoal_controlplane.errors import InvalidError
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.draft import Basis
from shoal_controlplane.plans.keeper import EPOCH_GAP
from shoal_controlplane.plans.shaping import SUSTAIN_S
from shoal_controlplane.plans.switching import AVOID_S, RETRY_S, SETTLE_S
from shoal_shared.profiles import Profile
from shoal_shared.status import DeploymentState

Restart = Callable[[], Rooms]


async def test_the_first_plan_gets_ready(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    await rooms.create()
    assert rooms.service.view("cat").state is DeploymentState.PENDING
    await rooms.step()
    assert rooms.entry().state is PlanState.CUTTING
    await rooms.step()
    assert rooms.entry().state is PlanState.LOADING
    assert rooms.entry().reason == "d1, d2 load their stages"
    assert rooms.offered() == []
    rooms.obey("d1")
    await rooms.step()
    assert rooms.entry().reason == "d2 loads its stage"
    assert rooms.service.view("cat").state is DeploymentState.PROGRESSING
    assert rooms.plan_store.plans == {}, "what never served is not kept"
    rooms.obey("d2", "d3")
    await rooms.step()
    assert rooms.entry().state is PlanState.READY
    assert rooms.current() == (1, (("d1",), ("d2",)))
    assert rooms.offered() == [1, 2, 3], "the current one, then those that take over"
    assert set(rooms.plan_store.plans) == {"cat"}
    assert rooms.service.view("cat").state is DeploymentState.READY
    assert rooms.told() == ["plan.ready"]
    assert rooms.told("deployment.") == ["deployment.created", "deployment.ready"]


async def test_nothing_happens_where_nothing_changed(rooms: Rooms, database: Database) -> None:
    await served(rooms)
    await rooms.run()
    rooms.clock.advance(60)
    await rooms.run()
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    wakes, goals, asked = rooms.wakes, len(rooms.link.published), len(rooms.drafter.asked)
    for _ in range(3):
        await rooms.step()
    assert rooms.wakes == wakes
    assert len(rooms.link.published) == goals
    assert len(rooms.drafter.asked) == asked
    assert [s for s in statements if not s.startswith("SELECT")] == []
    assert rooms.plans.due_in(rooms.clock()) is None


async def test_a_failed_try_is_not_repeated_at_once(rooms: Rooms) -> None:
    rooms.join("d1")
    await rooms.create()
    await rooms.step()
    tries = len(rooms.drafter.asked)
    due = rooms.plans.due_in(rooms.clock())
    assert due == pytest.approx(RETRY_S)
    await rooms.run()
    assert len(rooms.drafter.asked) == tries
    rooms.join("d2")
    await rooms.run()
    assert rooms.entry().state is PlanState.READY, "a change of the fleet has it tried"


async def test_what_cannot_be_made_at_all_is_not_tried_again(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    rooms.drafter.error = InvalidError("It cannot be cut into 2 stages.")
    await rooms.create()
    await rooms.step()
    await rooms.step()
    view = rooms.service.view("cat")
    assert (view.state, view.reason) == (
        DeploymentState.FAILED,
        "It cannot be cut into 2 stages",
    )
    assert rooms.plans.due_in(rooms.clock()) is None
    assert rooms.told() == ["plan.pending"]


async def test_an_error_of_the_program_ends_one_plan_only(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    rooms.drafter.error = RuntimeError("a bug")
    await rooms.create()
    await rooms.step()
    assert rooms.entry().reason == "planning failed: see the log of the control plane"
    rooms.drafter.error = None
    rooms.clock.advance(RETRY_S)
    await rooms.run()
    assert rooms.entry().state is PlanState.READY


async def test_an_old_version_gives_way_where_there_is_no_room_for_both(rooms: Rooms) -> None:
    rooms.join("d1", "d2", memory=110 * MB)
    await rooms.create()
    await rooms.run()
    assert rooms.current()[0] == 1
    await rooms.service.edit("cat", DeploymentChange(version="2"), None)
    await rooms.run()
    assert rooms.entry().state is PlanState.READY
    assert rooms.offered(version="2") == [2]
    assert rooms.offered(version="1") == []


@pytest.mark.parametrize("way", ["select", "version"])
async def test_a_change_while_a_plan_is_made(rooms: Rooms, way: str) -> None:
    rooms.join("d1", "d2", "d3", site="a")
    rooms.join("d4", "d5", site="b")
    await rooms.create()
    await rooms.controller.step()  # Its plan is being made.
    change = DeploymentChange(
        **({"select": {"site": "b"}} if way == "select" else {"version": "2"})
    )
    await rooms.service.edit("cat", change, None)
    await rooms.run()
    plan = rooms.entry().plan
    assert plan is not None
    if way == "select":
        assert plan.current.devices == (("d4",), ("d5",))
    else:
        assert (plan.version, plan.digest) == ("2", digest_of("cat:2"))
    assert rooms.entry().is_current


async def test_other_devices_are_asked_for(rooms: Rooms) -> None:
    rooms.join("d1", "d2", site="a")
    rooms.join("d3", "d4", site="b")
    await rooms.create(select={"site": "a"})
    await rooms.run()
    assert rooms.current()[1] == (("d1",), ("d2",))
    await rooms.service.edit("cat", DeploymentChange(select={"site": "b"}), None)
    await rooms.run()
    assert rooms.current()[1] == (("d3",), ("d4",)), "without waiting for a gain"
    await rooms.service.edit("cat", DeploymentChange(select={"site": "c"}), None)
    await rooms.run()
    view = rooms.service.view("cat")
    assert view.state is DeploymentState.PROGRESSING
    assert view.reason == "There is no plan: needs 2 devices"
    assert rooms.offered() != [], "what it had serves on"


async def test_deleted(rooms: Rooms) -> None:
    await served(rooms)
    await rooms.service.delete("cat")
    await rooms.step()
    assert rooms.plans.entry("cat") is None
    assert rooms.plan_store.plans == {}
    assert rooms.desired("d1").models == rooms.desired("d1").roles == ()
    assert rooms.table.find("cat") is None
    assert rooms.plan_store.digests() != set(), "parts stay with their model"
    kept = rooms.plan_store.digests()
    assert all(digest in rooms.artifacts for digest in kept)
    del rooms.models.stored["cat", "1"]
    await rooms.step()
    assert rooms.plan_store.digests() == set()
    assert not any(digest in rooms.artifacts for digest in kept)


async def test_deleted_while_its_plan_is_made(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    rooms.drafter.basis = {"jetson/d1": Basis.ESTIMATED}
    await rooms.create()
    await until(lambda: rooms.desired("d1").models, rooms)
    task = rooms.entry().task
    assert task is not None
    await rooms.service.delete("cat")
    await rooms.controller.step()
    assert task.cancelled()
    assert rooms.desired("d1").models == ()
    assert rooms.plans.reserved() == {}


async def test_one_of_the_same_name_gets_epochs_of_its_own(rooms: Rooms) -> None:
    await served(rooms)
    await rooms.service.delete("cat")
    rooms.clock.advance(1)
    await rooms.create()
    await rooms.run()
    assert rooms.current()[0] > 3
    assert rooms.offered() == [EPOCH_GAP + 4, EPOCH_GAP + 5, EPOCH_GAP + 6]


async def test_a_restart_goes_on_where_it_was(rooms: Rooms, restart: Restart) -> None:
    await served(rooms)
    await rooms.stop()
    after = restart()
    after.join("d1")
    await after.start()
    assert after.desired("d1").goal == rooms.desired("d1").goal
    await after.step()
    assert after.entry().state is PlanState.LOADING, "not all had their chance to show up"
    after.join("d2", "d3")
    after.obey()
    await after.step()
    assert after.offered() == [1, 2, 3], "even before it is settled"
    after.clock.advance(6)
    await after.run()
    assert after.current() == (1, (("d1",), ("d2",)))
    for device in ("d1", "d2", "d3"):
        assert after.desired(device) == rooms.desired(device)
    assert after.cutter.asked == []
    assert after.told() == [], "what was so at the start is not news"
    after.leave("d1")
    after.clock.advance(SETTLE_S)
    await after.controller.step()
    assert after.current()[0] == 2
    after.clock.advance(SETTLE_S)
    await after.run()
    assert after.current()[0] > EPOCH_GAP, "higher than any that was given out"


async def test_a_restart_before_the_first_plan_was_ready(rooms: Rooms, restart: Restart) -> None:
    rooms.join("d1", "d2")
    await rooms.create()
    await rooms.step()
    await rooms.step()
    assert rooms.epochs("d1") == {1, 3}
    await rooms.stop()
    after = restart()
    after.join("d1", "d2")
    await after.start()
    await after.run()
    assert min(after.epochs("d1")) > 3
    assert after.entry().state is PlanState.READY


async def test_a_restart_in_the_middle_of_a_change(rooms: Rooms, restart: Restart) -> None:
    await served(rooms)
    await rooms.service.edit("cat", DeploymentChange(version="2"), None)
    await rooms.stop()
    after = restart()
    after.join("d1", "d2", "d3")
    await after.start()
    after.obey()
    await after.controller.step()
    assert after.offered(version="1") == [1, 2, 3]
    after.clock.advance(6)
    await after.run()
    assert after.current()[0] > EPOCH_GAP
    assert after.offered(version="2") != []


async def test_devices_that_do_not_come_back_after_a_restart(
    rooms: Rooms, restart: Restart
) -> None:
    await served(rooms)
    await rooms.stop()
    after = restart()
    after.join("d2", "d3")
    await after.start()
    after.obey()
    after.clock.advance(6)
    await after.controller.step()
    assert after.offered() == [2]


async def test_only_a_gain_that_lasts_changes_a_plan(rooms: Rooms) -> None:
    await served(rooms)
    rooms.drafter.ms = {"d4": 5.0, "d5": 5.1}
    rooms.join("d4", "d5")
    await rooms.step()
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    assert rooms.current()[0] == 1
    assert rooms.plans.due_in(rooms.clock()) == pytest.approx(SUSTAIN_S)
    rooms.leave("d4", "d5")
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    rooms.clock.advance(SUSTAIN_S - SETTLE_S)
    await rooms.run()
    assert rooms.current()[0] == 1, "it was gone before it had lasted"
    rooms.join("d4", "d5")
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    rooms.clock.advance(SUSTAIN_S)
    await rooms.run()
    assert rooms.current()[1] == (("d4",), ("d5",))
    assert rooms.told() == ["plan.ready", "plan.changed"]


async def test_a_gain_of_less_than_a_tenth_is_none(rooms: Rooms) -> None:
    await served(rooms)
    rooms.drafter.ms = {"d4": 9.2, "d5": 9.2}
    rooms.join("d4", "d5")
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    rooms.clock.advance(SUSTAIN_S)
    await rooms.run()
    assert rooms.current()[0] == 1
    assert rooms.plans.due_in(rooms.clock()) is None


async def test_a_slow_device_is_avoided(rooms: Rooms) -> None:
    await served(rooms)
    rooms.plans.abandoned(rooms.pipeline(), "d1", "stage 0 is 9 times too slow")
    await rooms.controller.step()
    assert rooms.current() == (2, (("d3",), ("d2",)))
    assert rooms.offered() == [2], "nor any other epoch with that device"
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    assert rooms.drafter.asked[-1]["exclude"] == {"d1"}
    rooms.clock.advance(AVOID_S)
    rooms.join("d4")
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    assert rooms.drafter.asked[-1]["exclude"] == set()


async def test_a_device_that_is_avoided_is_told_of_once(rooms: Rooms) -> None:
    await served(rooms)
    pipeline = rooms.pipeline()
    for _ in range(3):
        rooms.plans.abandoned(pipeline, "d1", "stage 0 is 9 times too slow")
    assert rooms.told() == ["plan.ready", "plan.avoids"]
    told = next(iter(rooms.events.newest_first()))
    assert told.message == ("The plan of deployment cat avoids d1: stage 0 is 9 times too slow.")
    rooms.leave("d2")
    rooms.plans.abandoned(pipeline, "d2", "device d2 went offline")
    assert set(rooms.entry().avoid) == {"d1"}, "who is offline is in no plan anyway"


async def test_a_plan_whose_links_are_in_doubt_is_compared_anew(rooms: Rooms) -> None:
    await served(rooms)
    await rooms.run()
    drafts = len(rooms.drafter.asked)
    rooms.plans.reconsider("cat")
    rooms.plans.reconsider("unknown")
    await rooms.step()
    assert len(rooms.drafter.asked) > drafts
    assert rooms.current()[0] == 1


async def test_what_the_gateway_says_of_plans_that_are_gone(rooms: Rooms) -> None:
    await served(rooms)
    pipeline = rooms.pipeline()
    await rooms.service.delete("cat")
    await rooms.step()
    rooms.plans.abandoned(pipeline, "d1", "it is silent")
    assert rooms.plans.due_in(rooms.clock()) is None


async def test_two_plans_of_which_only_one_fits(rooms: Rooms) -> None:
    rooms.join("d1", "d2", memory=110 * MB)
    await rooms.create()
    await rooms.create("dog", "dog")
    await rooms.run()
    states = {name: entry.state for name, entry in rooms.entries.items()}
    assert states == {"cat": PlanState.READY, "dog": PlanState.PENDING}
    view = rooms.service.view("dog")
    assert "more memory" in view.reason or "missing" in view.reason or "MB" in view.reason
    assert sum(rooms.plans.reserved().values()) < 220 * MB
    await rooms.service.delete("cat")
    rooms.clock.advance(RETRY_S)
    await rooms.run()
    assert rooms.entry("dog").state is PlanState.READY


async def test_plans_and_whole_models_share_memory(rooms: Rooms) -> None:
    rooms.join("d1", "d2", memory=110 * MB)
    await rooms.create()
    await rooms.run()
    await rooms.service.create(NewDeployment(model="dog", version="1"))
    await rooms.run()
    view = rooms.service.view("dog")
    assert view.ready == 0
    assert "MB" in view.reason
    assert rooms.entry().state is PlanState.READY
    await rooms.service.delete("cat")
    await rooms.run()
    assert rooms.service.view("dog").state is DeploymentState.READY
    await rooms.create("cow", "cow")
    await rooms.run()
    assert rooms.entry("cow").state is PlanState.READY
    assert rooms.service.view("dog").state is DeploymentState.READY, "nobody is pushed out"


async def test_parts_are_measured_on_boards_that_are_not_known(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    rooms.drafter.basis = {"jetson/d1": Basis.ESTIMATED}
    await rooms.create()
    await until(lambda: rooms.desired("d1").models, rooms)
    assert rooms.entry().state is PlanState.MEASURING
    assert rooms.entry().reason == "parts of the model are measured on d1"
    jobs = rooms.desired("d1")
    assert jobs.roles == ()
    assert rooms.plans.reserved()["d1"] > 0
    assert rooms.desired("d2").models == ()
    await until(lambda: rooms.obey() or rooms.entry().candidate, rooms)
    assert all(rooms.store.measured.of(m.digest) for m in jobs.models)
    assert rooms.entry().jobs == {}
    await rooms.run()
    assert rooms.entry().state is PlanState.READY
    left = {m.digest for m in rooms.desired("d1").models}
    assert left == {part.digest for part in rooms.entry().plans[0].parts}


async def test_a_device_that_goes_while_it_measures(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    rooms.drafter.basis = {"jetson/d1": Basis.ESTIMATED}
    await rooms.create()
    await until(lambda: rooms.desired("d1").models, rooms)
    rooms.leave("d1")
    await until(lambda: rooms.entry().candidate, rooms)
    assert rooms.entry().jobs == {}
    await rooms.run()
    assert rooms.current()[1] == (("d2",), ("d3",))


async def test_a_lost_plan_does_not_wait_for_measurements(rooms: Rooms) -> None:
    rooms.join("d1", "d2", memory=90 * MB)
    await rooms.create()
    await rooms.run()
    rooms.drafter.basis = {"jetson/d3": Basis.ESTIMATED}
    rooms.join("d3", memory=90 * MB)
    rooms.clock.advance(SETTLE_S)
    await until(lambda: rooms.desired("d3").models, rooms)
    assert rooms.entry().state is PlanState.READY, "it is measured beside what serves"
    rooms.leave("d1")
    await rooms.run()
    assert rooms.current()[1] == (("d2",), ("d3",))


async def test_a_lost_plan_is_mended_with_the_stages_that_it_had(rooms: Rooms) -> None:
    rooms.join("d1", "d2", memory=90 * MB)
    await rooms.create()
    await rooms.run()
    plan = rooms.entry().plan
    assert plan is not None
    cuts = list(rooms.cutter.asked)
    rooms.leave("d1")
    rooms.join("d3", "d4", memory=90 * MB)
    await rooms.run()
    mended = rooms.entry().plan
    assert mended is not None
    assert [p.digest for p in mended.parts] == [p.digest for p in plan.parts]
    assert rooms.cutter.asked == cuts
    assert rooms.current()[0] > plan.last_epoch


async def test_stages_that_take_longer_than_was_thought_have_the_plan_compared(
    rooms: Rooms,
) -> None:
    await served(rooms)
    drafts = len(rooms.drafter.asked)
    device = rooms.fleet.get("d1")
    assert device is not None
    assert device.reported is not None
    slower = Profile(samples=(), intercept_ms=50.0, slope_ms=0.0, knee=1)
    models = tuple(msgspec.structs.replace(m, profile=slower) for m in device.reported.models)
    rooms.fleet.observe("d1", msgspec.structs.replace(device.reported, models=models))
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    assert len(rooms.drafter.asked) > drafts


async def test_a_removed_device_that_joins_again_is_believed(rooms: Rooms) -> None:
    await served(rooms)
    for _ in range(3):
        await rooms.create("dog", "dog")
        await rooms.run()
        await rooms.service.delete("dog")
        await rooms.run()
    rooms.fleet.remove("d3")
    await rooms.run()
    rooms.link.published = [p for p in rooms.link.published if "/d3/" not in p[0]]
    rooms.join("d3")
    rooms.clock.advance(SETTLE_S)
    await rooms.run()
    assert rooms.current()[1] == (("d1",), ("d2",))
    assert rooms.offered()[:3] == [4, 5, 6], "with new fallbacks"
