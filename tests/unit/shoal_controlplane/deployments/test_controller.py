from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError
from support.fleet import MB, FakeModels, capabilities, model_version, replica, reported, telemetry

from shoal_controlplane.deployments import store as store_module
from shoal_controlplane.deployments.picture import UNMEASURED
from shoal_controlplane.deployments.service import DeploymentChange, NewDeployment
from shoal_shared.messages import Desired
from shoal_shared.status import DeploymentState, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

Plane = Any  # of conftest.py, which tests cannot import


async def test_from_a_deployment_to_requests(plane: Plane) -> None:
    plane.join("d1", "d2")
    await plane.service.create(NewDeployment(model="cat", version="1", replicas=2))
    await plane.controller.step()
    assert plane.goals("d1") == plane.goals("d2") == {"cat:1"}
    assert plane.table.find("cat") is not None, "known, but not ready"
    assert plane.serving() == []
    plane.obey("d1", state=ReplicaState.LOADING)
    plane.obey("d2")
    await plane.controller.step()
    assert plane.serving() == ["d2"]
    assert plane.service.view("cat").state is DeploymentState.PROGRESSING
    plane.obey("d1")
    await plane.controller.step()
    assert plane.serving() == ["d1", "d2"]
    view = plane.service.view("cat")
    assert (view.state, view.ready, view.reason) == (DeploymentState.READY, 2, "")
    assert plane.told() == ["deployment.created", "deployment.ready"]


async def test_goal_number_grows_only_when_the_content_changes(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.obey("d1")
    first = plane.desired("d1")
    count = len(plane.link.published)
    for _ in range(3):
        plane.fleet.observe("d1", capabilities(labels={"changed": "yes"}))
        await plane.controller.step()
    assert len(plane.link.published) == count
    await plane.service.create(NewDeployment(model="dog"))
    await plane.controller.step()
    second = plane.desired("d1")
    assert first is not None
    assert second is not None
    assert second.goal > first.goal
    assert plane.goals("d1") == {"cat:1", "dog:1"}


async def test_replica_moves_when_its_device_stays_away(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.obey("d1")
    plane.join("d2")
    await plane.controller.step()
    plane.leave("d1")
    await plane.controller.step()
    assert plane.serving() == [], "requests stop at once"
    assert plane.goals("d2") == set(), "it may be back in a moment"
    plane.clock.advance(5.1)
    await plane.controller.step()
    assert plane.goals("d2") == {"cat:1"}
    assert plane.goals("d1") == set(), "retained, so that it unloads when it returns"
    plane.obey("d2")
    await plane.controller.step()
    assert plane.service.view("cat").state is DeploymentState.READY
    assert plane.told() == ["deployment.created", "deployment.ready", "deployment.ready"]


async def test_failed_replica_moves_and_does_not_come_back_soon(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.obey("d1", state=ReplicaState.FAILED, reason="the driver is broken")
    await plane.controller.step()
    view = plane.service.view("cat")
    assert (view.state, view.reason) == (DeploymentState.FAILED, "d1: the driver is broken")
    plane.join("d2")
    await plane.controller.step()
    assert (plane.goals("d1"), plane.goals("d2")) == (set(), {"cat:1"})
    plane.obey("d1")
    plane.leave("d2")
    plane.clock.advance(60)
    await plane.controller.step()
    assert plane.goals("d1") == set(), "its failure is remembered though it no longer reports it"
    plane.clock.advance(600)
    await plane.controller.step()
    assert plane.goals("d1") == {"cat:1"}
    assert "deployment.failed" in plane.told()


async def test_replica_that_went_missing_degrades(plane: Plane) -> None:
    plane.join("d1", "d2")
    await plane.service.create(NewDeployment(model="cat", version="1", replicas=2))
    await plane.controller.step()
    plane.obey("d1", "d2")
    await plane.controller.step()
    plane.leave("d1")
    plane.clock.advance(6)
    await plane.controller.step()
    view = plane.service.view("cat")
    assert view.state is DeploymentState.DEGRADED
    assert view.reason == "needs 2 devices, 1 is online"
    assert plane.told()[-1] == "deployment.degraded"


async def test_cordoned_device_serves_no_more(plane: Plane) -> None:
    plane.join("d1", "d2")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    [owner] = [n for n in ("d1", "d2") if plane.goals(n)]
    plane.obey(owner)
    plane.fleet.edit(owner, {}, cordoned=True, revision=2)
    await plane.controller.step()
    assert plane.serving() == []
    assert plane.goals(owner) == set()


async def test_deleted_deployment_is_unloaded(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.obey("d1")
    await plane.controller.step()
    await plane.service.delete("cat")
    await plane.controller.step()
    assert plane.desired("d1").models == ()
    assert plane.table.find("cat") is None


async def test_old_version_serves_until_the_new_one_is_ready(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.obey("d1")
    await plane.controller.step()
    await plane.service.edit("cat", DeploymentChange(version="2"), None)
    await plane.controller.step()
    assert plane.goals("d1") == {"cat:2"}
    v2 = plane.models.stored["cat", "2"]
    loading = replica(ReplicaState.LOADING, version="2", digest=v2.digest)
    plane.fleet.observe("d1", reported(loading, replica(), goal=2))
    await plane.controller.step()
    assert plane.table.find("cat").version == "1", "it still runs"
    plane.obey("d1")
    await plane.controller.step()
    assert plane.table.find("cat").version == "2"
    assert plane.table.find("cat", "1") is None


async def test_model_that_changed_on_the_device_is_not_served(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.fleet.observe("d1", reported(replica(digest="sha256:" + "00" * 32)))
    await plane.controller.step()
    assert plane.serving() == []


async def test_replica_without_a_profile_gets_a_guess(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.fleet.observe("d1", reported(replica(profile=None)))
    await plane.controller.step()
    [served] = plane.table.find("cat").replicas
    assert served.profile is UNMEASURED


async def test_memory_that_others_use_is_not_given_away(plane: Plane) -> None:
    plane.join("d1")
    plane.fleet.observe("d1", telemetry(memory_used_bytes=960 * MB))
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    assert plane.service.view("cat").reason == "needs 54 MB, the largest free is 40 MB"
    plane.fleet.observe("d1", telemetry(1, memory_used_bytes=100 * MB))
    await plane.controller.step()
    assert plane.goals("d1") == {"cat:1"}


async def test_unchanged_picture_is_not_published_again(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    published: list[object] = []
    monkeypatch.setattr(plane.table, "publish", published.append)
    plane.fleet.observe("d1", telemetry())
    await plane.controller.step()
    assert published == []


async def test_restart_changes_nothing_that_runs(
    plane: Plane, restart: Callable[[], Plane]
) -> None:
    plane.join("d1", "d2", "d3")
    await plane.service.create(NewDeployment(model="cat", version="1", replicas=2))
    await plane.service.create(NewDeployment(model="dog", replicas=None))
    await plane.controller.step()
    plane.obey("d1", "d2", "d3")
    await plane.controller.step()
    goals = {name: plane.desired(name) for name in ("d1", "d2", "d3")}
    await plane.keeper.save()

    again = restart()
    await again.start()
    await again.connect()
    assert {name: again.desired(name) for name in goals} == goals, "the same numbers"
    await again.controller.step()
    assert again.service.view("dog").placements, "assignments are known, nobody is re-placed"
    # The devices are heard one after the other, within the time that they get.
    for name in goals:
        again.clock.advance(1.5)
        again.fleet.observe(name, plane_status(plane, name), retained=True)
        await again.controller.step()
    again.clock.advance(1)
    await again.controller.step()
    assert {name: again.desired(name) for name in goals} == goals
    assert again.service.view("cat").state is DeploymentState.READY
    assert again.serving("cat") == plane.serving("cat")
    assert again.told() == [], "no news"
    await again.stop()


def plane_status(plane: Plane, name: str) -> Any:
    from support.fleet import status

    return status(boot=plane.fleet.get(name).boot_id)


async def test_device_that_does_not_return_after_a_restart_loses_its_replica(
    plane: Plane, restart: Callable[[], Plane]
) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    await plane.keeper.save()
    again = restart()
    await again.start()
    await again.connect()
    again.join("d2")
    again.clock.advance(4.9)
    await again.controller.step()
    assert again.goals("d2") == set()
    again.clock.advance(0.2)
    await again.controller.step()
    assert again.goals("d2") == {"cat:1"}
    await again.stop()


async def test_device_that_knows_goals_of_a_lost_database_is_brought_in_line(
    plane: Plane,
) -> None:
    plane.join("d1")
    plane.fleet.observe("d1", reported(replica(model="ghost"), goal=41))
    await plane.controller.step()
    assert plane.desired("d1") == Desired(goal=42)


async def test_goal_is_saved_before_it_is_published(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))

    def broken(*_args: object) -> None:
        raise OperationalError("insert", {}, OSError("disk full"))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_save_goals", broken)
        with pytest.raises(OperationalError):
            await plane.controller.step()
    assert plane.desired("d1") is None
    assert plane.store.assignment == {}, "rolled back together"
    await plane.controller.step()
    assert plane.goals("d1") == {"cat:1"}


async def test_nothing_is_placed_before_the_first_session(
    restart: Callable[[], Plane],
) -> None:
    cold = restart()
    await cold.start()
    cold.join("d1")
    await cold.service.create(NewDeployment(model="cat", version="1"))
    await cold.controller.step()
    assert cold.store.assignment == {}
    view = cold.service.view("cat")
    assert (view.state, view.wanted) == (DeploymentState.PENDING, 1)
    assert view.reason
    await cold.connect()
    await cold.controller.step()
    assert cold.goals("d1") == {"cat:1"}, "with nothing assigned there is no need to wait"
    await cold.stop()


async def test_model_that_is_gone_fails_its_deployment(
    plane: Plane, models: FakeModels, restart: Callable[[], Plane]
) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="dog"))
    await plane.controller.step()
    del models.stored["dog", "1"]
    again = restart()
    await again.start()
    await again.connect()
    again.clock.advance(6)
    await again.controller.step()
    assert again.service.view("dog").state is DeploymentState.FAILED
    models.stored["dog", "1"] = model_version("dog")
    await again.controller.step()
    assert again.service.view("dog").state is not DeploymentState.FAILED
    await again.stop()


async def test_removed_device_is_forgotten(plane: Plane) -> None:
    plane.join("d1", "d2")
    await plane.service.create(NewDeployment(model="cat", version="1", replicas=None))
    await plane.controller.step()
    plane.fleet.remove("d1")
    await plane.controller.step()
    assert plane.store.assignment["cat"] == {"d2"}
    assert plane.store.goal_of("d1") is None


async def test_goal_document_never_exceeds_its_limit(plane: Plane) -> None:
    plane.join("d1")
    for n in range(60):
        name = f"{'m' * 50}-{n}"
        plane.models.stored[name, "1"] = model_version(name, size=1)
        await plane.service.create(NewDeployment(model=name))
    plane.fleet.observe("d1", capabilities(memory_bytes=10**12))
    await plane.controller.step()
    placed = len(plane.goals("d1"))
    assert 10 < placed < 60
    reasons = [v.reason for v in plane.service.find(None, None, {}, None, 100) if v.reason]
    assert sum("goal document" in reason for reason in reasons) == 60 - placed


async def test_loop_steps_when_something_changes_and_survives_a_bad_step(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal_controlplane.deployments import controller as module

    monkeypatch.setattr(module, "DEBOUNCE_S", 0.0)
    monkeypatch.setattr(module, "FAILURE_PAUSE_S", 0.0)
    steps: list[int] = []
    again = asyncio.Event()

    async def step() -> None:
        steps.append(1)
        if len(steps) == 1:
            raise RuntimeError("a defect")
        again.set()

    monkeypatch.setattr(plane.controller, "step", step)
    plane.controller._task = asyncio.create_task(plane.controller._run())
    plane.join("d1")
    await asyncio.wait_for(again.wait(), 5)
    again.clear()
    taken = len(steps)
    plane.fleet.observe("d1", telemetry())
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(steps) == taken, "telemetry is no reason to decide anew"
    plane.leave("d1")
    await asyncio.wait_for(again.wait(), 5)
