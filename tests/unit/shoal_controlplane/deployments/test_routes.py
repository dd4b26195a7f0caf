from __future__ import annotations

from typing import Any

import pytest
from support.fleet import capabilities, model_version, replica, reported, variant

from shoal_shared.messages import Accelerator
from shoal_shared.placement import of_nodes

Plane = Any  # of conftest.py, which tests cannot import


async def create(plane: Plane, **body: Any) -> Any:
    return await plane.http.post("/deployments", json={"model": "cat", **body})


async def test_create_and_show(plane: Plane) -> None:
    answer = await create(
        plane, version="1", replicas=2, select={"site": "berlin"}, slo_ms=50, options={"threads": 2}
    )
    assert answer.status_code == 201
    assert answer.headers["location"] == "/api/v1/deployments/cat"
    shown = (await plane.http.get("/deployments/cat")).json()
    assert shown == answer.json()
    assert shown["name"] == "cat"
    assert (shown["replicas"], shown["all"], shown["slo_ms"]) == (2, False, 50)
    assert shown["options"] == {"threads": 2}
    assert shown["state"] == "pending"
    assert shown["placements"] == []


async def test_placements_show_what_devices_report(plane: Plane) -> None:
    plane.join("d1")
    await create(plane, version="1")
    await plane.controller.step()
    plane.obey("d1")
    await plane.controller.step()
    [placement] = (await plane.http.get("/deployments/cat")).json()["placements"]
    assert placement["device"] == "d1"
    assert placement["state"] == "ready"
    assert placement["providers"] == ["CPU"]
    assert placement["profile"]["knee"] == 2


async def test_an_accelerator_may_be_required(plane: Plane) -> None:
    plane.join("d1")
    shown = (await create(plane, version="1", require_accelerator=True)).json()
    assert shown["require_accelerator"] is True
    await plane.controller.step()
    shown = (await plane.http.get("/deployments/cat")).json()
    assert shown["reason"] == (
        "needs a device with an accelerator, the one that has a runtime for onnx has none"
    )
    changed = await plane.http.patch("/deployments/cat", json={"require_accelerator": False})
    assert changed.json()["require_accelerator"] is False
    assert changed.json()["revision"] == 2
    await plane.controller.step()
    assert plane.goals("d1") == {"cat:1"}
    assert (await create(plane, name="two")).json()["require_accelerator"] is False


async def test_a_model_in_stages(plane: Plane) -> None:
    answer = await create(
        plane, shards="auto", objective="latency", shapes={"x": [1, 3]}, select={"site": "berlin"}
    )
    assert answer.status_code == 201
    shown = (await plane.http.get("/deployments/cat")).json()
    assert (shown["shards"], shown["objective"]) == ("auto", "latency")
    assert shown["shapes"] == {"x": [1, 3]}
    assert (shown["state"], shown["placements"], shown["all"]) == ("pending", [], False)
    shown = (await create(plane, name="two", shards=3)).json()
    assert (shown["shards"], shown["objective"], shown["shapes"]) == (3, "throughput", {})
    whole = (await create(plane, name="whole")).json()
    assert whole["shards"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"shards": 0},
        {"shards": 33},
        {"shards": "some"},
        {"shards": 2, "replicas": 2},
        {"shards": "auto", "all": True},
        {"objective": "latency"},
        {"shapes": {"x": [1, 3]}},
        {"shards": 2, "objective": "price"},
        {"shards": 2, "shapes": {"x": [0]}},
    ],
)
async def test_what_shards_cannot_be(plane: Plane, wrong: dict[str, Any]) -> None:
    answer = await create(plane, **wrong)
    assert answer.status_code == 422
    assert (await plane.http.get("/deployments/cat")).status_code == 404


async def test_placements_show_where_a_replica_runs(plane: Plane) -> None:
    plane.join("d1")
    await create(plane, version="1")
    await plane.controller.step()
    plane.fleet.observe("d1", capabilities(accelerators=(Accelerator(kind="npu", name="310B"),)))
    cpu = replica(placement=of_nodes({"CPU": 97}), variant="reference", notes=("no driver",))
    plane.fleet.observe("d1", reported(cpu))
    await plane.controller.step()
    [placement] = (await plane.http.get("/deployments/cat")).json()["placements"]
    assert placement["placement"] == {"accelerated": 0.0, "proof": "graph", "nodes": {"CPU": 97}}
    assert (placement["variant"], placement["notes"]) == ("reference", ["no driver"])
    assert placement["fallback"] is True


async def test_options_that_leave_no_room_for_variants(plane: Plane) -> None:
    many = tuple(variant("v" * 60 + str(n)) for n in range(8))
    plane.models.stored["cat", "1"] = model_version(variants=many)
    room = {"text": "x" * 2500}
    answer = await create(plane, version="1", options=room)
    assert answer.status_code == 422
    assert "The options and the 8 variants of cat:1 exceed 4096 bytes" in answer.json()["detail"]
    assert (await create(plane, version="2", options=room)).status_code == 201
    answer = await plane.http.patch("/deployments/cat", json={"version": "1"})
    assert answer.status_code == 422
    assert (await create(plane, version="1")).status_code == 201


async def test_profiles_of_a_model_version(plane: Plane) -> None:
    plane.models.stored["cat", "1"] = model_version(variants=(variant("int8"),))
    plane.join("d1", "d2")
    await create(plane, version="1", all=True)
    await plane.controller.step()
    int8 = replica(
        variant="int8", runtime="onnxruntime 1.32.0 qnn-htp", placement=of_nodes({"QNN": 9})
    )
    plane.fleet.observe("d1", reported(int8))
    plane.fleet.observe("d2", reported(replica(variant="reference")))
    path = "/models/cat/versions/1/profiles"
    shown = (await plane.http.get(path)).json()
    assert [(row["variant"], row["runtime"]) for row in shown["items"]] == [
        ("int8", "onnxruntime 1.32.0 qnn-htp"),
        ("reference", ""),
    ]
    first = shown["items"][0]
    assert first["board"] == "jetson/orin-nano"
    assert (first["profile"]["intercept_ms"], first["profile"]["slope_ms"]) == (2.0, 3.0)
    assert (first["accelerated"], shown["items"][1]["accelerated"]) == (1.0, None)
    assert first["memory_bytes"] == 40_000_000
    assert first["updated_at"].endswith("Z")
    page = (await plane.http.get(path, params={"limit": 1})).json()
    assert page["items"] == shown["items"][:1]
    rest = await plane.http.get(path, params={"cursor": page["next_cursor"]})
    assert rest.json()["items"] == shown["items"][1:]
    assert (await plane.http.get("/models/cat/versions/2/profiles")).json()["items"] == []
    assert (await plane.http.get("/models/nope/versions/1/profiles")).status_code == 404


async def test_newest_version_and_names_by_default(plane: Plane) -> None:
    assert (await create(plane)).json()["version"] == "2"
    other = await create(plane, version="1")
    assert other.status_code == 201
    assert other.json()["name"] == "cat-1"
    same = await create(plane)
    assert same.status_code == 409
    assert "Deployment cat serves cat:2 already" in same.json()["detail"]
    assert (await create(plane, name="second")).status_code == 201
    assert (await create(plane, name="second")).status_code == 409


async def test_names_stay_unique_and_valid_with_long_models(plane: Plane) -> None:
    name = "m" * 64
    for version in ("1", "2", "2" * 60):
        plane.models.stored[name, version] = model_version(name, version)
        answer = await create(plane, model=name, version=version)
        assert answer.status_code == 201
        assert len(answer.json()["name"]) <= 64
    plane.models.stored[name, "2" * 59] = model_version(name, "2" * 59)
    assert (await create(plane, model=name, version="2" * 59)).status_code == 201
    assert len(plane.store.deployments) == 4


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "nope"}, 404),
        ({"version": "9"}, 404),
        ({"model": "../etc"}, 404),
        ({"name": "a/b"}, 422),
        ({"name": ""}, 422),
        ({"replicas": 0}, 422),
        ({"replicas": 1, "all": True}, 422),
        ({"slo_ms": -1}, 422),
        ({"max_batch": 99}, 422),
        ({"max_batch": 0}, 422),
        ({"model": "face", "max_batch": 2}, 422),
        ({"options": {"text": "x" * 5000}}, 422),
        ({"options": []}, 422),
        ({"select": {"a": 1}}, 422),
        ({"select": {f"k{n}": "" for n in range(17)}}, 422),
        ({"colour": "red"}, 422),
    ],
)
async def test_bad_deployments_leave_nothing(plane: Plane, body: Any, status: int) -> None:
    answer = await create(plane, **body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert plane.store.deployments == {}


@pytest.mark.parametrize(
    "options",
    [
        '{"x": NaN}',
        '{"x": Infinity}',
        '{"x": "\\ud800"}',
        '{"\\u0000": 1}',
        '{"a": [[[[1]]]]}',
        '{"x": 1%s}' % ("0" * 400),
    ],
)
async def test_strange_options_are_never_a_server_error(plane: Plane, options: str) -> None:
    answer = await plane.http.post(
        "/deployments",
        content=f'{{"model": "cat", "options": {options}}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code in (201, 422)
    assert (await plane.http.get("/deployments")).status_code == 200


async def test_creation_may_be_sent_twice(plane: Plane) -> None:
    first, second = [
        await plane.http.post(
            "/deployments", json={"model": "cat"}, headers={"Idempotency-Key": "k1"}
        )
        for _ in range(2)
    ]
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    assert second.headers["location"] == "/api/v1/deployments/cat"
    assert len(plane.store.deployments) == 1


async def test_list_pages_and_filters(plane: Plane) -> None:
    plane.join("d1")
    await create(plane, name="a", version="1", select={"site": "berlin"})
    await create(plane, name="b", model="dog")
    await create(plane, name="c", model="face")
    await plane.controller.step()
    plane.obey("d1")
    await plane.controller.step()

    async def names(**params: Any) -> list[str]:
        answer = (await plane.http.get("/deployments", params=params)).json()
        return [item["name"] for item in answer["items"]]

    first = (await plane.http.get("/deployments", params={"limit": 2})).json()
    assert [item["name"] for item in first["items"]] == ["a", "b"]
    assert await names(cursor=first["next_cursor"]) == ["c"]
    assert await names(model="dog") == ["b"]
    assert await names(state="ready") == ["b"]
    assert await names(state="pending") == ["a", "c"]
    assert await names(label="site=berlin") == ["a"]


async def test_change(plane: Plane) -> None:
    await create(plane, version="1")
    answer = await plane.http.patch(
        "/deployments/cat", json={"all": True}, headers={"If-Match": '"1"'}
    )
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"2"'
    assert (answer.json()["all"], answer.json()["replicas"]) == (True, None)
    stale = await plane.http.patch(
        "/deployments/cat", json={"replicas": 1}, headers={"If-Match": '"1"'}
    )
    assert stale.status_code == 412
    same = await plane.http.patch("/deployments/cat", json={"all": True})
    assert same.json()["revision"] == 2, "nothing changed"
    answer = await plane.http.patch(
        "/deployments/cat", json={"replicas": 3, "version": "2", "select": {"a": "b"}}
    )
    shown = answer.json()
    assert (shown["replicas"], shown["version"], shown["select"]) == (3, "2", {"a": "b"})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"version": "9"}, 404),
        ({"replicas": 0}, 422),
        ({"replicas": 1, "all": True}, 422),
        ({"model": "dog"}, 422),
    ],
)
async def test_bad_changes_change_nothing(plane: Plane, body: Any, status: int) -> None:
    before = (await create(plane)).json()
    assert (await plane.http.patch("/deployments/cat", json=body)).status_code == status
    assert (await plane.http.get("/deployments/cat")).json() == before


async def test_all_cannot_end_without_a_number(plane: Plane) -> None:
    await create(plane, all=True)
    answer = await plane.http.patch("/deployments/cat", json={"all": False})
    assert answer.status_code == 422
    assert "how many replicas" in answer.json()["detail"]


async def test_delete(plane: Plane) -> None:
    await create(plane)
    assert (await plane.http.delete("/deployments/cat")).status_code == 204
    assert (await plane.http.get("/deployments/cat")).status_code == 404
    assert (await plane.http.delete("/deployments/cat")).status_code == 404
    assert plane.told() == ["deployment.created", "deployment.deleted"]


async def test_store_knows_who_uses_a_model(plane: Plane) -> None:
    await create(plane, version="1", name="x")
    assert plane.store.using("cat", "1") == plane.store.using("cat") == ["x"]
    assert plane.store.using("cat", "2") == []
