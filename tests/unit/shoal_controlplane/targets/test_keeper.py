"""From what operators and deployments say to what the clouds are told."""

from __future__ import annotations

import asyncio
from typing import Any

from support.fleet import model_version

from shoal_controlplane.gateway.table import ServedModel


def served(name: str, *targets: str) -> ServedModel:
    model = model_version(name)
    return ServedModel(name, "1", model.platform, model.signature, model.max_batch, offload=targets)


async def test_the_clouds_are_told_of_targets_models_and_pins(room: Any) -> None:
    await room.add(cap_per_hour=2.5, max_replicas=3)
    room.models.stored["dog", "1"] = model_version("dog", digest="sha256:" + "cd" * 32)
    room.table.publish([served("cat", "aks", "ray"), served("bird")])
    await room.http.put("/targets/aks/models/dog/1")
    await room.http.patch("/targets/aks/models/dog/1", json={"replicas": 2})
    await room.keeper.step()
    [plan] = room.clouds.plans
    assert (plan.settings.name, plan.cap_per_hour, plan.settings.max_replicas) == ("aks", 2.5, 3)
    cat, dog = room.clouds.wanted
    assert (cat.model.key, cat.targets) == (("cat", "1"), ("aks", "ray"))
    assert (dog.model.key, dog.targets) == (("dog", "1"), ("aks",))
    assert str(dog.model.artifact) == "/artifacts/sha256:" + "cd" * 32
    assert dog.model.url == "http://s/sha256:" + "cd" * 32
    assert (dog.model.max_batch, dog.model.batches) == (8, (1, 2, 4, 8))
    assert room.clouds.pinned == {("aks", ("dog", "1")): 2}


async def test_what_is_no_news_is_not_told_again(room: Any) -> None:
    await room.add()
    await room.keeper.step()
    await room.keeper.step()
    assert room.clouds.calls == ["targets"]


async def test_a_restart_knows_what_was_done_by_hand(room: Any) -> None:
    await room.add()
    await room.http.put("/targets/aks/models/cat/1")
    room.store.targets, room.store.manual = {}, {}
    again = room.make_keeper()
    await again.start()
    await again.stop()
    assert [plan.settings.name for plan in room.clouds.plans] == ["aks"]
    assert [wanted.targets for wanted in room.clouds.wanted] == [("aks",)]


async def test_a_model_that_was_deleted_leaves_its_targets(room: Any) -> None:
    await room.add()
    await room.http.put("/targets/aks/models/cat/1")
    await room.keeper.step()
    room.models.stored.clear()
    await room.keeper.step()
    assert (room.clouds.wanted, room.store.manual) == ([], {})


async def test_one_bad_step_is_not_the_last(room: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("shoal_controlplane.targets.keeper.RETRY_S", 0.001)
    told = asyncio.Event()
    faults = iter([RuntimeError("once")])

    def set_targets(plans: Any) -> None:
        for fault in faults:
            raise fault
        told.set()

    await room.keeper.start()
    await room.add()
    monkeypatch.setattr(room.clouds, "set_targets", set_targets)
    room.keeper.wake()
    try:
        async with asyncio.timeout(5):
            await told.wait()
    finally:
        await room.keeper.stop()
