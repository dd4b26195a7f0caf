from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal_controlplane.deployments.service import NewDeployment
from shoal_controlplane.errors import NotFoundError, UnavailableError
from shoal_shared.status import ReplicaState

Plane = Any  # of conftest.py, which tests cannot import


async def settle() -> None:
    """Let a waiting call reach the point where it waits, through the database's thread too."""
    for _ in range(20):
        await asyncio.sleep(0.002)


async def test_index_lists_every_version_that_was_pushed(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.obey("d1")
    await plane.controller.step()
    index = {
        (e["name"], e["version"]): (e["state"], e["reason"]) for e in await plane.repository.index()
    }
    assert index["cat", "1"] == ("READY", "")
    assert index["cat", "2"] == ("UNAVAILABLE", "not deployed")
    assert len(index) == 4


async def test_load_deploys_on_all_that_fit_and_waits_until_one_serves(plane: Plane) -> None:
    plane.join("d1", "d2")
    loading = asyncio.create_task(plane.repository.load("cat"))
    await settle()
    await plane.controller.step()
    assert plane.goals("d1") == plane.goals("d2") == {"cat:2"}
    assert not loading.done()
    plane.obey("d1")
    await plane.controller.step()
    await asyncio.wait_for(loading, 5)
    await plane.repository.load("cat")
    assert list(plane.store.deployments) == ["cat"]


async def test_load_ends_with_the_reason_when_no_device_can(plane: Plane) -> None:
    plane.join("d1")
    loading = asyncio.create_task(plane.repository.load("face"))
    await settle()
    await plane.controller.step()
    with pytest.raises(UnavailableError, match="no device has a runtime for tflite"):
        await asyncio.wait_for(loading, 5)


async def test_load_ends_only_when_all_replicas_failed(plane: Plane) -> None:
    plane.join("d1", "d2")
    loading = asyncio.create_task(plane.repository.load("cat"))
    await settle()
    await plane.controller.step()
    plane.obey("d1", state=ReplicaState.FAILED, reason="no driver")
    plane.obey("d2", state=ReplicaState.LOADING)
    await plane.controller.step()
    await settle()
    assert not loading.done()
    plane.obey("d2", state=ReplicaState.FAILED, reason="no driver")
    await plane.controller.step()
    with pytest.raises(UnavailableError, match="d1: no driver"):
        await asyncio.wait_for(loading, 5)


async def test_load_waits_a_bounded_time(plane: Plane) -> None:
    plane.join("d1")
    plane.repository._load_timeout_s = 0.01
    with pytest.raises(UnavailableError, match="cat is not ready"):
        await plane.repository.load("cat")


async def test_unload_deletes_all_deployments_of_a_model(plane: Plane) -> None:
    for name, model in (("a", "cat"), ("b", "cat"), ("c", "dog")):
        await plane.service.create(NewDeployment(model=model, name=name))
    await plane.repository.unload("cat")
    assert list(plane.store.deployments) == ["c"]
    await plane.repository.unload("cat")


async def test_unknown_model(plane: Plane) -> None:
    with pytest.raises(NotFoundError):
        await plane.repository.load("nope")
    with pytest.raises(NotFoundError):
        await plane.repository.unload("nope")
