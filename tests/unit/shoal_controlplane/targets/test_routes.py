"""Targets over the API: adding, changing, removing, lists."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shoal_controlplane.offload.state import State

SECRET = "AKIA-my-secret-key"


async def test_add_and_show(room: Any) -> None:
    answer = await room.add(
        credential="file:/etc/shoal/aks",
        options={"namespace": "prod"},
        price_per_replica_hour=0.9,
        price_per_request=0.001,
        cap_per_hour=2.5,
        max_replicas=3,
    )
    assert answer.status_code == 201
    assert answer.headers["location"] == "/api/v1/targets/aks"
    assert answer.headers["etag"] == '"1"'
    shown = (await room.http.get("/targets/aks")).json()
    assert shown == answer.json()
    assert shown["options"] == {"namespace": "prod"}
    assert (shown["state"], shown["models"], shown["ready"]) == ("connecting", [], 0)
    assert (shown["price_per_replica_hour"], shown["price_per_request"]) == (0.9, 0.001)
    assert (shown["cap_per_hour"], shown["left"], shown["max_replicas"]) == (2.5, 2.5, 3)
    assert shown["credential"] == "file:/etc/shoal/aks"
    assert room.changes == 1
    events = [(event.kind, event.message) for event in room.events.newest_first()]
    assert events == [("target.added", "Target aks of kind kserve was added.")]


async def test_what_is_added_survives_a_restart(room: Any) -> None:
    await room.add(options={"namespace": "prod"}, cap_per_hour=2.5, credential="env:TOKEN")
    await room.http.put("/targets/aks/models/cat/1")
    before = room.store.targets, room.store.manual
    await room.store.load()
    assert (room.store.targets, room.store.manual) == before


async def test_defaults_of_the_kind_are_shown_and_nothing_has_a_cap(room: Any) -> None:
    shown = (await room.add()).json()
    assert shown["options"] == {"namespace": "shoal"}
    assert (shown["cap_per_hour"], shown["left"], shown["credential"]) == (None, None, "")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "a/b"}, "not valid"),
        ({"name": ""}, "name"),
        ({"kind": "lambda"}, "there is no kind of target 'lambda': use kserve"),
        ({"options": {"region": "west"}}, "option region"),
        ({"options": {"namespace": "x" * 20_000}}, "exceed"),
        ({"credential": SECRET}, "env:NAME"),
        ({"credential": "file:relative"}, "env:NAME"),
        ({"price_per_request": -1}, "price_per_request"),
        ({"cap_per_hour": -1}, "cap_per_hour"),
        ({"max_replicas": 0}, "max_replicas"),
        ({"max_replicas": 1001}, "max_replicas"),
        ({"secret": SECRET}, "secret"),
    ],
)
async def test_what_cannot_be_used_is_refused_in_a_sentence(
    room: Any, body: dict[str, Any], said: str
) -> None:
    answer = await room.http.post("/targets", json={"name": "aks", "kind": "kserve", **body})
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert SECRET not in answer.text
    assert (room.store.targets, room.changes) == ({}, 0)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
async def test_prices_are_numbers(room: Any, number: str) -> None:
    body = f'{{"name": "aks", "kind": "kserve", "price_per_request": {number}}}'
    answer = await room.http.post(
        "/targets", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422


async def test_a_kind_whose_packages_are_missing_says_how_to_get_them(
    room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError("no", name="raypackage")

    monkeypatch.setattr("shoal_controlplane.offload.kinds.importlib.import_module", missing)
    answer = await room.http.post("/targets", json={"name": "lab", "kind": "ray"})
    assert answer.status_code == 422
    assert "pip install 'shoal[ray]'" in answer.json()["detail"]


async def test_a_name_is_taken_once(room: Any) -> None:
    await room.add()
    answer = await room.add(cap_per_hour=7)
    assert answer.status_code == 409
    assert "aks already" in answer.json()["detail"]
    assert room.store.targets["aks"].cap_per_hour is None


async def test_a_creation_may_be_sent_twice(room: Any) -> None:
    body = {"name": "aks", "kind": "kserve"}
    first = await room.http.post("/targets", json=body, headers={"Idempotency-Key": "k"})
    again = await room.http.post("/targets", json=body, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()


async def test_changes_merge_options_and_take_the_cap_away(room: Any) -> None:
    await room.add(options={"namespace": "prod"}, cap_per_hour=2.5, price_per_request=0.5)
    answer = await room.http.patch(
        "/targets/aks",
        json={"price_per_replica_hour": 2, "max_replicas": 4, "credential": "identity"},
    )
    changed = answer.json()
    assert (answer.headers["etag"], changed["revision"]) == ('"2"', 2)
    assert (changed["price_per_replica_hour"], changed["price_per_request"]) == (2, 0.5)
    assert (changed["max_replicas"], changed["credential"]) == (4, "identity")
    assert (changed["cap_per_hour"], changed["options"]) == (2.5, {"namespace": "prod"})
    changed = (await room.http.patch("/targets/aks", json={"cap_per_hour": None})).json()
    assert changed["cap_per_hour"] is None
    changed = (await room.http.patch("/targets/aks", json={"options": {"namespace": None}})).json()
    assert changed["options"] == {"namespace": "shoal"}
    changed = (await room.http.patch("/targets/aks", json={"cap_per_hour": 0})).json()
    assert (changed["cap_per_hour"], changed["revision"]) == (0, 5)
    # What is so already is no change.
    assert (await room.http.patch("/targets/aks", json={"cap_per_hour": 0})).json()["revision"] == 5


async def test_a_change_may_depend_on_what_was_seen(room: Any) -> None:
    await room.add()
    late = {"If-Match": '"7"'}
    answer = await room.http.patch("/targets/aks", json={"max_replicas": 2}, headers=late)
    assert answer.status_code == 412
    assert room.store.targets["aks"].max_replicas == 1
    timely = {"If-Match": '"1"'}
    answer = await room.http.patch("/targets/aks", json={"max_replicas": 2}, headers=timely)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"region": "west"}},
        {"credential": SECRET},
        {"kind": "ray"},
        {"max_replicas": 0},
    ],
)
async def test_a_change_that_cannot_be_used_changes_nothing(
    room: Any, change: dict[str, Any]
) -> None:
    await room.add()
    before = room.store.targets["aks"]
    answer = await room.http.patch("/targets/aks", json=change)
    assert answer.status_code == 422
    assert SECRET not in answer.text
    assert room.store.targets["aks"] == before


async def test_a_target_that_is_named_by_a_deployment_stays(room: Any) -> None:
    await room.add()
    await room.deploy("pets", "aks")
    answer = await room.http.delete("/targets/aks")
    assert answer.status_code == 409
    assert "The deployment pets may offload to target aks" in answer.json()["detail"]
    assert (await room.http.get("/targets/aks")).json()["deployments"] == ["pets"]
    await room.deployments.delete("pets")
    assert (await room.http.delete("/targets/aks")).status_code == 204
    assert (await room.http.get("/targets/aks")).status_code == 404


async def test_with_a_target_goes_what_was_done_there_by_hand(room: Any) -> None:
    await room.add()
    await room.add("other")
    for name in ("aks", "other"):
        await room.http.put(f"/targets/{name}/models/cat/1")
    await room.http.delete("/targets/aks")
    assert [place[0] for place in room.store.manual] == ["other"]
    await room.add()
    assert (await room.http.get("/targets/aks")).json()["models"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/targets/x"),
        ("PATCH", "/targets/x"),
        ("DELETE", "/targets/x"),
        ("POST", "/targets/x/test"),
        ("GET", "/targets/x/models/cat/1"),
        ("PUT", "/targets/x/models/cat/1"),
        ("DELETE", "/targets/x/models/cat/1"),
    ],
)
async def test_an_unknown_target_is_not_found(room: Any, method: str, path: str) -> None:
    answer = await room.http.request(method, path, json={} if method == "PATCH" else None)
    assert answer.status_code == 404
    assert "There is no target 'x'" in answer.json()["detail"]


async def test_lists_go_page_by_page_and_filter(room: Any, pictures: Any) -> None:
    for name in ("c", "a", "b"):
        await room.add(name)
    room.clouds.shown = [pictures.target("a"), pictures.target("b", trouble="DNS")]

    async def names(**query: Any) -> tuple[list[str], Any]:
        body = (await room.http.get("/targets", params=query)).json()
        return [item["name"] for item in body["items"]], body["next_cursor"]

    first, cursor = await names(limit=2)
    assert first == ["a", "b"]
    assert await names(limit=2, cursor=cursor) == (["c"], None)
    assert (await names(state="failed"))[0] == ["b"]
    assert (await names(state="connecting"))[0] == ["c"]
    assert (await names(kind="kserve", state="ready"))[0] == ["a"]
    assert (await names(kind="ray"))[0] == []
    assert (await room.http.get("/targets", params={"state": "great"})).status_code == 422


async def test_a_target_shows_what_is_on_it(room: Any, pictures: Any) -> None:
    await room.add(cap_per_hour=2.5)
    await room.deploy("pets", "aks")
    await room.deploy("dogs", "aks", model="dog")
    room.clouds.shown = [pictures.target("aks", pictures.model(price_per_request=math.inf))]
    shown = (await room.http.get("/targets/aks")).json()
    assert (shown["state"], shown["reason"], shown["where"]) == ("ready", "", "Kubernetes v1.31")
    assert (shown["spent_last_hour"], shown["left"], shown["ready"]) == (0.75, 1.5, 1)
    cat, dog = shown["models"]
    assert (cat["model"], cat["state"], cat["deployments"]) == ("cat", "ready", ["pets"])
    assert (cat["p95_ms"], cat["requests"], cat["failures"]) == (80.0, 12, 2)
    # JSON has no infinity, and nobody drives dog yet.
    assert cat["price_per_request"] is None
    assert (dog["state"], dog["ready"], dog["p95_ms"]) == ("deploying", 0, None)
    assert not cat["placed"] and cat["pinned"] is None


async def test_a_model_that_failed_degrades_its_target(room: Any, pictures: Any) -> None:
    await room.add()
    broken = pictures.model(State.EJECTED, sentence="it is tried again in 3 s")
    room.clouds.shown = [pictures.target("aks", broken)]
    shown = (await room.http.get("/targets/aks")).json()
    assert shown["state"] == "degraded"
    assert shown["reason"] == "cat:1 is ejected: it is tried again in 3 s"
