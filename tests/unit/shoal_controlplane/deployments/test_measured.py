"""What was measured is kept by file, board and runtime, and places what comes later."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError
from support.fleet import (
    MB,
    PROFILE,
    capabilities,
    model_version,
    replica,
    reported,
    telemetry,
    variant,
)

from shoal_controlplane.deployments import store as store_module
from shoal_controlplane.deployments.measured import Measured, Measurements, measured_by
from shoal_controlplane.deployments.service import NewDeployment
from shoal_controlplane.devices.live import Device
from shoal_shared.messages import Board
from shoal_shared.placement import of_nodes
from shoal_shared.profiles import Profile, fit
from shoal_shared.status import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

Plane = Any  # of conftest.py, which tests cannot import


def row(digest: str = "a", board: str = "orin", ms: float = 5.0, **changes: Any) -> Measured:
    facts: dict[str, Any] = {
        "runtime": "r",
        "profile": fit([(1, ms)]),
        "memory_bytes": 1,
        "accelerated": 1.0,
        "updated_at": 0.0,
    }
    return Measured(digest, board, **facts | changes)


def test_only_news_is_saved() -> None:
    kept = Measurements()
    kept.note(row())
    assert kept.take_unsaved(9) == {("a", "orin", "r"): row()}
    kept.note(row(updated_at=9.0))
    assert kept.take_unsaved(9) == {}
    kept.note(row(ms=6.0))
    assert len(kept) == len(kept.take_unsaved(9)) == 1


def test_the_oldest_give_way() -> None:
    kept = Measurements(capacity=2)
    kept.load([row("a"), row("b")])
    kept.note(row("a", ms=9.0))
    kept.note(row("c"))
    assert [len(kept.of(digest)) for digest in "abc"] == [1, 0, 1]
    assert kept.take_unsaved(9)["b", "orin", "r"] is None


def test_the_fastest_file_and_runtime_of_a_board_counts() -> None:
    kept = Measurements()
    batch = Profile(samples=(), intercept_ms=8.0, slope_ms=1.0, knee=8)
    for measured in (
        row("a", ms=5.0),
        row("b", ms=3.0),
        row("b", runtime="old", profile=batch),
        row("b", board="pi", ms=90.0),
        row("c", ms=0.1),
    ):
        kept.note(measured)
    assert {b: m.item_ms for b, m in kept.best("ab").items()} == {"orin": 2.0, "pi": 90.0}
    assert kept.best(["nothing"]) == {}


def test_files_that_are_gone_are_forgotten_and_saved_so() -> None:
    kept = Measurements()
    kept.load([row("a"), row("b"), row("b", board="pi")])
    kept.keep({"a", "other"})
    assert len(kept) == 1
    assert kept.take_unsaved(1) == {("b", "orin", "r"): None}
    kept.put_back([("b", "orin", "r")])
    assert len(kept.take_unsaved(9)) == 2


CAT = model_version(variants=(variant("int8"),))
MODELS = {("cat", "1"): CAT}
DEVICE = Device("d1", 0.0, 50.0, 0.0, capabilities=capabilities())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"variant": "reference"}, "reference"),
        ({"variant": "int8"}, "int8"),
        ({"variant": "gone"}, None),
        ({"variant": ""}, None),
        ({"variant": "int8", "profile": None}, None),
        ({"variant": "int8", "digest": "sha256:" + "0" * 64}, None),
        ({"variant": "int8", "model": "dog"}, None),
        ({"variant": "int8", "state": ReplicaState.PROFILING}, None),
    ],
)
def test_what_a_report_says_of_which_file(changes: dict[str, Any], name: str | None) -> None:
    digests = {"reference": CAT.digest, "int8": CAT.variants[0].digest}
    report = replica(**{"runtime": "ort", "placement": of_nodes({"QNN": 1}), **changes})
    found = list(measured_by(replace(DEVICE, reported=reported(report)), MODELS))
    if name is None:
        assert found == []
        return
    key = (digests[name], "jetson/orin-nano", "ort")
    assert found == [Measured(*key, PROFILE, 40 * MB, 1.0, updated_at=50.0)]


def test_a_device_that_throttles_says_nothing_about_its_type_of_board() -> None:
    device = replace(DEVICE, reported=reported(replica(variant="int8")))
    assert len(list(measured_by(device, MODELS))) == 1
    assert list(measured_by(replace(device, telemetry=telemetry(throttled=True)), MODELS)) == []
    assert list(measured_by(replace(device, capabilities=None), MODELS)) == []


def boards(plane: Plane, **models: str) -> None:
    for name, model in models.items():
        plane.join(name)
        plane.fleet.observe(name, capabilities(board=Board(family="x", model=model)))


async def measure(plane: Plane) -> None:
    """A deployment on all boards is measured, then deleted; its devices forget it."""
    await plane.service.create(NewDeployment(model="cat", version="1", replicas=None))
    await plane.controller.step()
    for name, ms in (("fast", 2.0), ("slow", 50.0)):
        done = replica(profile=fit([(1, ms)]), variant="reference", memory_bytes=30 * MB)
        plane.fleet.observe(name, reported(done))
    await plane.controller.step()
    await plane.service.delete("cat")
    for name in ("fast", "slow"):
        plane.fleet.observe(name, reported(goal=9))
    await plane.controller.step()


async def test_a_new_deployment_is_placed_by_what_was_measured_before(
    plane: Plane, restart: Callable[[], Plane]
) -> None:
    boards(plane, fast="orin", slow="pi")
    await measure(plane)
    again = restart()
    await again.start()
    await again.connect()
    # More memory would win where nothing is known, and the estimate would not fit at all.
    boards(again, a="pi", b="orin")
    again.fleet.observe(
        "b", capabilities(board=Board(family="x", model="orin"), memory_bytes=31 * MB)
    )
    await again.service.create(NewDeployment(model="cat", version="1"))
    await again.controller.step()
    assert again.store.assignment["cat"] == {"b"}
    await again.stop()


async def test_measurements_go_with_their_model_version(
    plane: Plane, restart: Callable[[], Plane]
) -> None:
    boards(plane, fast="orin", slow="pi")
    await measure(plane)
    assert len(plane.store.measured) == 2
    for key in list(plane.models.stored):
        if key in {("cat", "1"), ("dog", "1"), ("face", "1")}:  # all have the same file
            del plane.models.stored[key]
    plane.controller.wake()
    await plane.controller.step()
    assert len(plane.store.measured) == 0
    again = restart()
    await again.start()
    assert len(again.store.measured) == 0
    await again.stop()


async def test_what_could_not_be_saved_is_saved_later(
    plane: Plane, restart: Callable[[], Plane], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise OperationalError("insert", {}, OSError("disk full"))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_save_measured", broken)
        plane.store.measured.note(row(digest=plane.models.stored["cat", "1"].digest))
        with pytest.raises(OperationalError):
            await plane.controller.step()
    await plane.controller.step()
    again = restart()
    await again.start()
    assert len(again.store.measured) == 1
    await again.stop()


async def test_goals_follow_when_a_models_variants_change(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.obey("d1")
    await plane.controller.step()
    first = plane.desired("d1")
    changed = model_version(variants=(variant("int8"),), revision=2)
    plane.models.stored["cat", "1"] = changed
    plane.controller.wake()
    await plane.controller.step()
    second = plane.desired("d1")
    assert second.goal == first.goal + 1
    assert [v.name for v in second.models[0].variants] == ["int8"]
    assert plane.serving() == ["d1"], "what runs goes on while the device looks at the new file"


async def test_a_slowed_device_is_so_in_the_serving_table(plane: Plane) -> None:
    plane.join("d1")
    await plane.service.create(NewDeployment(model="cat", version="1"))
    await plane.controller.step()
    plane.obey("d1")
    await plane.controller.step()
    plane.fleet.observe("d1", telemetry(0))
    plane.controller._woken.clear()
    plane.fleet.observe("d1", telemetry(1, throttled=True))
    assert plane.controller._woken.is_set(), "at once, not with the next change"
    await plane.controller.step()
    [served] = plane.table.find("cat").replicas
    assert served.slowed
    plane.fleet.observe("d1", telemetry(2))
    await plane.controller.step()
    [served] = plane.table.find("cat").replicas
    assert not served.slowed
