"""Deployments that name targets: stored, shown, refused, and what the gateway gets of them."""

from __future__ import annotations

from typing import Any

import pytest
from support.fleet import model_version

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.picture import served_models
from shoal_controlplane.gateway.clouds import Level
from shoal_controlplane.gateway.saturation import Picture

Plane = Any  # of conftest.py, which tests cannot import


@pytest.fixture
def targets(plane: Plane) -> set[str]:
    """The targets that there are."""
    plane.targets |= {"aks", "ray"}
    return plane.targets


async def create(plane: Plane, **body: Any) -> Any:
    return await plane.http.post("/deployments", json={"model": "cat", "version": "1", **body})


async def test_targets_are_kept_in_their_order_and_each_once(
    plane: Plane, targets: set[str]
) -> None:
    shown = (await create(plane, offload=["ray", "aks", "ray"])).json()
    assert shown["offload"] == ["ray", "aks"]
    await plane.store.load()
    assert plane.store.deployments["cat"].offload == ("ray", "aks")
    assert plane.store.offloading("aks") == {"cat": ("cat", "1")}
    assert plane.store.offloading("gke") == {}


@pytest.mark.parametrize("offload", [["aks", "gke"], [""], ["x" * 65], "aks", [1], ["aks"] * 17])
async def test_targets_that_are_not_there_are_refused(
    plane: Plane, targets: set[str], offload: Any
) -> None:
    answer = await create(plane, offload=offload)
    assert answer.status_code == 422
    if "gke" in offload:
        assert "There is no target 'gke' to offload to" in answer.json()["detail"]
    assert plane.store.deployments == {}


async def test_targets_can_be_changed(plane: Plane, targets: set[str]) -> None:
    await create(plane, offload=["aks"])
    answer = await plane.http.patch("/deployments/cat", json={"offload": ["ray"]})
    assert (answer.json()["offload"], answer.json()["revision"]) == (["ray"], 2)
    answer = await plane.http.patch("/deployments/cat", json={"offload": ["gke"]})
    assert answer.status_code == 422
    answer = await plane.http.patch("/deployments/cat", json={"offload": []})
    assert answer.json()["offload"] == []
    # A change of something else leaves them.
    await plane.http.patch("/deployments/cat", json={"offload": ["aks"]})
    answer = await plane.http.patch("/deployments/cat", json={"replicas": 2})
    assert answer.json()["offload"] == ["aks"]


async def test_how_full_the_devices_are_is_shown(plane: Plane) -> None:
    spilled = {"aks": 0.22}
    full = Picture(Level.SATURATED, plane.clock.wall(), 1.31, 410.0, 90.0, 0.75, spilled, 0.03)
    plane.full["cat", "1"] = full
    shown = (await create(plane)).json()["saturation"]
    assert (shown["level"], shown["rho"], shown["shed"]) == ("saturated", 1.31, 0.03)
    assert shown["spilled"] == {"aks": 0.22}
    assert shown["since"].startswith("2023-11-14T22:15:00")
    assert shown["sentence"].endswith("rho 1.31; spilling 22 % to aks, shedding 3 %")


async def test_where_nothing_comes_it_is_calm_since_ever(plane: Plane) -> None:
    shown = (await create(plane)).json()["saturation"]
    assert (shown["level"], shown["since"], shown["rho"]) == ("calm", None, 0)


def deployment(name: str, version: str = "1", **more: Any) -> Deployment:
    return Deployment(name, "cat", version, 1, {}, 0.0, **more)


def test_of_several_deployments_the_least_slo_and_all_targets_count() -> None:
    deployments = [
        deployment("a", slo_ms=80.0, offload=("ray", "aks")),
        deployment("b", slo_ms=50.0, offload=("aks", "gke")),
        deployment("c"),
        deployment("d", "2"),
    ]
    models = {("cat", v): model_version(version=v) for v in ("1", "2")}
    one, two = served_models([], deployments, models, {})
    assert (one.slo_ms, one.offload) == (50.0, ("ray", "aks", "gke"))
    assert (two.slo_ms, two.offload) == (None, ())


async def test_the_gateway_is_told(plane: Plane, targets: set[str]) -> None:
    await create(plane, slo_ms=50, offload=["aks"])
    await plane.controller.step()
    served = plane.table.find("cat", "1")
    assert (served.slo_ms, served.offload) == (50.0, ("aks",))
    await plane.http.patch("/deployments/cat", json={"offload": []})
    await plane.controller.step()
    assert plane.table.find("cat", "1").offload == ()
