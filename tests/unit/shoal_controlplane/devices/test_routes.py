from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from support.fleet import (
    OFFLINE,
    FakeClock,
    FakeLink,
    capabilities,
    open_database,
    replica,
    reported,
    status,
    telemetry,
)

from shoal_controlplane.api import problem
from shoal_controlplane.devices.keeper import FleetKeeper
from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.devices.routes import device_routes
from shoal_controlplane.devices.service import DeviceService
from shoal_controlplane.mqtt.publisher import GoalPublisher
from shoal_shared.messages import Accelerator
from shoal_shared.placement import of_nodes
from shoal_shared.topics import Topics


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.fleet = LiveFleet(self.clock, self.clock.wall)
        self.database = open_database(folder)
        self.link = FakeLink()
        self.link.connected = True
        publisher = GoalPublisher(self.link, Topics("test"))
        self.service = DeviceService(self.fleet, self.database, publisher, {"d1": 4}.get)
        app = FastAPI()
        app.include_router(device_routes(self.service))
        problem.install(app)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test/api/v1"
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    made.fleet.observe("d1", status())
    yield made
    await made.http.aclose()
    made.database.close()


async def test_show(world: World) -> None:
    world.fleet.observe("d1", capabilities(labels={"site": "berlin"}, notes=("hot",)))
    world.fleet.observe("d1", telemetry(models={"cat:1": (5, 1, 0)}))
    world.fleet.observe("d1", reported(replica(), goal=3))
    answer = await world.http.get("/devices/d1")
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"1"'
    shown = answer.json()
    assert shown["condition"] == "online"
    assert shown["board"] == {
        "family": "jetson",
        "model": "orin-nano",
        "soc": "",
        "simulated": False,
    }
    assert (shown["goal"], shown["goal_seen"]) == (4, 3)
    assert shown["disk_free_bytes"] == 4000_000_000, "telemetry is newer than capabilities"
    assert shown["telemetry"]["models"] == {"cat:1": [5, 1, 0]}
    assert shown["replicas"][0]["profile"]["knee"] == 2
    assert shown["labels"] == {"site": "berlin"}
    assert shown["first_seen"].endswith("Z")


async def test_show_tells_where_models_run(world: World) -> None:
    gpu = Accelerator(
        kind="gpu", name="Orin", precisions=("fp16", "int8"), compute_capability="8.7",
        transfer_bytes_per_s=1e10,
    )  # fmt: skip
    world.fleet.observe(
        "d1", capabilities(accelerators=(gpu,), toolkits={"cuda": "12.6"}, power_mode="MAXN")
    )
    world.fleet.observe("d1", telemetry(accelerator_memory_used_bytes=5))
    on_npu = replica(
        model="fast", variant="int8", runtime="onnxruntime 1.32.0 qnn-htp",
        placement=of_nodes({"QNN": 97}), golden_error=0.01, compiled="shared", load_s=0.5,
    )  # fmt: skip
    on_cpu = replica(placement=of_nodes({"CPU": 97}), notes=("no driver",))
    world.fleet.observe("d1", reported(on_npu, on_cpu, replica(model="old")))
    shown = (await world.http.get("/devices/d1")).json()
    assert shown["accelerators"] == [msgspec.to_builtins(gpu) | {"precisions": ["fp16", "int8"]}]
    assert (shown["toolkits"], shown["power_mode"]) == ({"cuda": "12.6"}, "MAXN")
    assert shown["telemetry"]["accelerator_memory_used_bytes"] == 5
    fast, slow, old = shown["replicas"]
    assert fast["placement"] == {"accelerated": 1.0, "proof": "graph", "nodes": {"QNN": 97}}
    assert (fast["variant"], fast["runtime"]) == ("int8", "onnxruntime 1.32.0 qnn-htp")
    assert (fast["golden_error"], fast["compiled"], fast["load_s"]) == (0.01, "shared", 0.5)
    assert (fast["fallback"], fast["notes"]) == (False, [])
    assert (slow["fallback"], slow["notes"]) == (True, ["no driver"])
    assert (old["fallback"], old["placement"]) == (False, None)


async def test_device_that_has_said_nothing_but_its_presence(world: World) -> None:
    shown = (await world.http.get("/devices/d1")).json()
    assert shown["board"] is None
    assert shown["telemetry"] is None
    assert shown["replicas"] == []


async def test_unknown_device(world: World) -> None:
    for answer in (
        await world.http.get("/devices/nope"),
        await world.http.patch("/devices/nope", json={}),
        await world.http.delete("/devices/nope"),
    ):
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


async def test_list_pages_and_filters(world: World) -> None:
    for n in range(2, 6):
        world.fleet.observe(f"d{n}", status())
        world.fleet.observe(f"d{n}", capabilities(labels={"site": "berlin" if n % 2 else "rome"}))
    world.fleet.observe("d5", status(OFFLINE))

    async def ids(**params: object) -> list[str]:
        found: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            answer = (await world.http.get("/devices", params={**params, **cursor})).json()
            found += [item["id"] for item in answer["items"]]
            if answer["next_cursor"] is None:
                return found
            cursor = {"cursor": answer["next_cursor"]}

    assert await ids(limit=2) == ["d1", "d2", "d3", "d4", "d5"]
    assert await ids(limit=1, label="site=berlin") == ["d3", "d5"]
    assert await ids(label=["site=berlin", "x=y"]) == []
    assert await ids(state="offline") == ["d5"]
    assert (await world.http.get("/devices", params={"label": "site"})).status_code == 422
    assert (await world.http.get("/devices", params={"state": "asleep"})).status_code == 422


async def test_labels_merge_and_cordon(world: World) -> None:
    answer = await world.http.patch(
        "/devices/d1", json={"labels": {"site": "berlin", "rack": "7"}, "cordoned": True}
    )
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"2"'
    answer = await world.http.patch("/devices/d1", json={"labels": {"rack": None}})
    assert answer.json()["labels"] == {"site": "berlin"}
    assert answer.json()["condition"] == "cordoned"
    again = LiveFleet(world.clock, world.clock.wall)
    await FleetKeeper(again, world.database).start()
    loaded = again.get("d1")
    assert loaded is not None
    assert (loaded.operator_labels, loaded.cordoned) == ({"site": "berlin"}, True)


async def test_if_match(world: World) -> None:
    answer = await world.http.patch(
        "/devices/d1", json={"cordoned": True}, headers={"If-Match": '"9"'}
    )
    assert answer.status_code == 412
    device = world.fleet.get("d1")
    assert device is not None
    assert not device.cordoned


@pytest.mark.parametrize(
    "body",
    [
        {"labels": {"a b": "x"}},
        {"labels": {"a": "x" * 129}},
        {"labels": {"a": "line\nbreak"}},
        {"labels": {f"k{n}": "x" for n in range(65)}},
        {"labels": []},
        {"colour": "red"},
    ],
)
async def test_bad_changes_change_nothing(world: World, body: dict[str, object]) -> None:
    before = world.fleet.get("d1")
    assert (await world.http.patch("/devices/d1", json=body)).status_code == 422
    assert world.fleet.get("d1") is before


async def test_only_an_offline_device_can_be_removed(world: World) -> None:
    answer = await world.http.delete("/devices/d1")
    assert answer.status_code == 409
    assert "online" in answer.json()["detail"]
    world.fleet.observe("d1", status(OFFLINE))
    world.link.connected = False
    assert (await world.http.delete("/devices/d1")).status_code == 503
    world.link.connected = True
    assert (await world.http.delete("/devices/d1")).status_code == 204
    assert world.fleet.get("d1") is None
    cleared = {
        topic.rpartition("/")[2] for topic, body, _, retain in world.link.published if retain
    }
    assert cleared == {"status", "capabilities", "desired", "reported"}
    assert all(body == b"" for _, body, _, _ in world.link.published)
    again = LiveFleet(world.clock, world.clock.wall)
    await FleetKeeper(again, world.database).start()
    assert len(again) == 0
