"""The compiled room through its routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from support.compiled import KEY, CompiledRoom, digest_of, document
from support.fleet import DIGEST, model_version, variant

from shoal_controlplane.compiled import service as service_module
from shoal_controlplane.errors import InvalidError, NotFoundError
from shoal_controlplane.models.push import Push
from shoal_controlplane.models.service import ModelService

CODE, OTHER = b"engine" * 1000, b"another engine"
URL = f"/artifacts/compiled/{KEY.hex}"


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[CompiledRoom]:
    room = CompiledRoom(tmp_path)
    yield room
    await room.service.stop()
    room.database.close()


@pytest.fixture
async def http(room: CompiledRoom) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(room.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def upload(http: httpx.AsyncClient, data: bytes) -> None:
    answer = await http.put(f"/artifacts/sha256/{digest_of(data)[7:]}", content=data)
    assert answer.status_code in (200, 201)


async def share(
    http: httpx.AsyncClient, data: bytes, query: str = "", **more: Any
) -> httpx.Response:
    await upload(http, data)
    body = document(data, **more)
    key = msgspec.convert(body["key"], type(KEY)).hex
    return await http.put(f"/artifacts/compiled/{key}{query}", json=body)


def variant_of_key(number: int, digest: str = DIGEST) -> Any:
    return msgspec.structs.replace(KEY, settings=str(number), digest=digest)


async def test_what_is_shared_is_found(http: httpx.AsyncClient, room: CompiledRoom) -> None:
    assert (await http.get(URL)).status_code == 404
    answer = await share(http, CODE)
    assert answer.status_code == 200
    assert answer.json() == {
        "key": msgspec.to_builtins(KEY),
        "hex": KEY.hex,
        "digest": digest_of(CODE),
        "size": len(CODE),
        "device": "orin-1",
        "created_at": "2023-11-14T22:15:00Z",
    }
    assert (await http.get(URL)).json() == answer.json()
    artifact = await http.get(f"/artifacts/sha256/{digest_of(CODE)[7:]}")
    assert artifact.content == CODE
    room.clock.advance(5)
    assert (await share(http, CODE, device="orin-2")).json() == answer.json()


async def test_the_first_one_stays_unless_it_is_bad(
    http: httpx.AsyncClient, room: CompiledRoom
) -> None:
    await share(http, CODE)
    assert (await share(http, OTHER, device="orin-2")).json()["digest"] == digest_of(CODE)
    assert digest_of(OTHER) not in room.store
    replaced = (await share(http, OTHER, "?replace=true", device="orin-2")).json()
    assert (replaced["digest"], replaced["device"]) == (digest_of(OTHER), "orin-2")
    assert digest_of(CODE) not in room.store
    assert (await http.get(URL)).json() == replaced


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"size": 5}, 422, "has 6000 bytes, not 5"),
        ({"digest": "sha256:" + "0" * 64}, 409, "is not here: PUT it"),
        ({"key": msgspec.to_builtins(variant_of_key(1))}, 422, "The key in the body is"),
        ({"key": {**msgspec.to_builtins(KEY), "runtime": "x" * 201}}, 422, "runtime"),
        ({"key": {**msgspec.to_builtins(KEY), "digest": "sha256:AB"}}, 422, "digest"),
        ({"key": {**msgspec.to_builtins(KEY), "target": ""}}, 422, "target"),
        ({"key": {**msgspec.to_builtins(KEY), "more": ""}}, 422, "more"),
        ({"key": {}}, 422, "digest"),
        ({"size": 0}, 422, "size"),
        ({"size": 10**30}, 422, "size"),
        ({"device": "../etc"}, 422, "device '../etc' is not valid"),
        ({"device": "x" * 65}, 422, "device"),
        ({"more": 1}, 422, "more"),
    ],
)
async def test_what_cannot_be_right_is_refused_in_a_sentence(
    http: httpx.AsyncClient, changes: dict[str, Any], status: int, words: str
) -> None:
    await upload(http, CODE)
    answer = await http.put(URL, json=document(CODE) | changes)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert (await http.get(URL)).status_code == 404


@pytest.mark.parametrize("key", ["x", "A" * 64, "0" * 63, "..%2F" + "0" * 59])
async def test_a_key_that_is_none_is_refused(http: httpx.AsyncClient, key: str) -> None:
    assert (await http.get(f"/artifacts/compiled/{key}")).status_code in (404, 422)
    assert (await http.put(f"/artifacts/compiled/{key}", json={})).status_code in (404, 422)


async def test_code_of_a_file_that_no_version_has_is_refused(
    http: httpx.AsyncClient, room: CompiledRoom
) -> None:
    room.models.set(model_version(variants=(variant("int8"),)))
    unknown = variant_of_key(1, "sha256:" + "cd" * 32)
    answer = await share(http, CODE, key=unknown)
    assert answer.status_code == 409
    assert "No version of a model has the file" in answer.json()["detail"]
    assert digest_of(CODE) not in room.store
    assert (await share(http, CODE, key=variant_of_key(1, variant("int8").digest))).is_success


async def test_an_operator_drops_what_is_shared(
    http: httpx.AsyncClient, room: CompiledRoom
) -> None:
    await share(http, CODE)
    await share(http, CODE, key=variant_of_key(1))
    assert (await http.delete(URL)).status_code == 204
    assert (await http.delete(URL)).status_code == 404
    assert digest_of(CODE) in room.store
    await http.delete(f"/artifacts/compiled/{variant_of_key(1).hex}")
    assert digest_of(CODE) not in room.store


async def test_what_is_compiled_of_a_file_is_listed_in_pages(
    http: httpx.AsyncClient, room: CompiledRoom
) -> None:
    other = model_version("dog", digest="sha256:" + "cd" * 32)
    room.models.set(model_version(), other)
    keys = [variant_of_key(number) for number in range(5)]
    for key in keys:
        await share(http, CODE, key=key)
    await share(http, CODE, key=variant_of_key(1, other.digest))
    found: list[str] = []
    cursor = ""
    while True:
        url = f"/artifacts/compiled?digest={DIGEST}&limit=2{cursor}"
        page = (await http.get(url)).json()
        assert len(page["items"]) <= 2
        found += [item["hex"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == sorted(key.hex for key in keys)
    assert (await http.get("/artifacts/compiled")).status_code == 422
    assert (await http.get("/artifacts/compiled?digest=x")).status_code == 422


async def test_the_oldest_make_way(
    http: httpx.AsyncClient, room: CompiledRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_PER_MODEL", 2)
    for number in range(4):
        room.clock.advance(1)
        await share(http, b"code %d" % number, key=variant_of_key(number))
    page = (await http.get(f"/artifacts/compiled?digest={DIGEST}")).json()
    assert {item["key"]["settings"] for item in page["items"]} == {"2", "3"}
    kept = [number for number in range(4) if digest_of(b"code %d" % number) in room.store]
    assert kept == [2, 3]


async def swept(room: CompiledRoom, key: str) -> None:
    """Wait until the entry is gone, and then its artifact."""
    for _ in range(1000):
        try:
            await room.service.get(key)
        except NotFoundError:
            if digest_of(CODE) not in room.store:
                return
        await asyncio.sleep(0.005)
    raise AssertionError("the entry stayed")


async def test_code_goes_with_the_last_version_of_its_file(
    http: httpx.AsyncClient, room: CompiledRoom
) -> None:
    await room.service.start()
    room.models.set(model_version(), model_version(version="2"))
    await share(http, CODE)
    room.models.set(model_version(version="2"))
    room.models.set(
        model_version("dog", digest="sha256:0", variants=(variant("a", digest=DIGEST),))
    )
    await room.service.sweep()
    assert (await http.get(URL)).status_code == 200
    room.models.set()
    await swept(room, KEY.hex)
    assert digest_of(CODE) not in room.store


async def test_a_start_finds_what_was_left_over(
    http: httpx.AsyncClient, room: CompiledRoom
) -> None:
    await share(http, CODE)
    room.models.versions = ()
    await room.service.start()
    await swept(room, KEY.hex)


async def test_neither_room_drops_what_the_other_has(
    http: httpx.AsyncClient, room: CompiledRoom
) -> None:
    async def in_use(name: str, version: str) -> None:
        return None

    async def refuse(path: Path, format_name: str) -> Any:
        raise InvalidError("That is no model.")

    models = ModelService(room.database, room.store, in_use, room.clock.wall, refuse)
    await share(http, CODE)
    with pytest.raises(InvalidError):
        await models.push(Push("cat", digest_of(CODE), format="onnx"))
    assert digest_of(CODE) in room.store
    await upload(http, OTHER)
    with pytest.raises(InvalidError):
        await models.push(Push("cat", digest_of(OTHER), format="onnx"))
    assert digest_of(OTHER) not in room.store
    room.models.set(model_version(), model_version("dog", digest=digest_of(CODE)))
    await http.delete(URL)
    assert digest_of(CODE) in room.store
