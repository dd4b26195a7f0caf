"""The models room through its routes, over a real database and store.

Files are inspected for real, but in this process: `test_inspect.py` is about the child.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from onnx import TensorProto, helper, numpy_helper
from sqlmodel import SQLModel

from shoal_controlplane.api import problem
from shoal_controlplane.api.idempotency import Idempotency, IdempotentAnswer
from shoal_controlplane.database import Database
from shoal_controlplane.errors import InvalidError, NotFoundError
from shoal_controlplane.models.artifact_routes import artifact_routes
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.filecheck import check_file
from shoal_controlplane.models.findings import Findings
from shoal_controlplane.models.routes import routes
from shoal_controlplane.models.service import ModelService
from shoal_controlplane.models.tables import ModelVariantRow, ModelVersionRow


def onnx_model(scale: float = 1.0, batch: int | str = "N") -> bytes:
    """scores = image * scale over 3 numbers."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "scale"], ["scores"])],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(np.full(3, scale, np.float32), "scale")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


TABLES = (ModelVersionRow, ModelVariantRow, IdempotentAnswer)
MODEL, OTHER, FIXED = onnx_model(), onnx_model(2.0), onnx_model(batch=1)
CARD: dict[str, Any] = {
    "model": {"name": "m", "description": "a test", "licence": "Apache-2.0"},
    "input": {
        "kind": "image",
        "tensor": "image",
        "layout": "NCHW",
        "size": [1, 1],
        "resize": "stretch",
    },
    "output": {"kind": "labels", "tensor": "scores", "labels": ["a", "b", "c"]},
}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def inspect_here(path: Path, format_name: str) -> Findings:
    outcome = check_file(path, format_name)
    if outcome.findings is None:
        raise InvalidError(outcome.error)
    return outcome.findings


class Setting:
    """A bare application of the models room; `used` names versions that deployments use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: dict[tuple[str, str], str] = {}
        self.database = Database(f"sqlite:///{folder / 'test.db'}")
        tables = [kind.__table__ for kind in TABLES]  # type: ignore[attr-defined]
        SQLModel.metadata.create_all(self.database.engine, tables)
        self.store = ArtifactStore(folder / "artifacts")
        self.service = self.new_service()
        self.app = FastAPI()
        problem.install(self.app)
        self.app.include_router(routes(self.service, Idempotency(self.database)))
        self.app.include_router(artifact_routes(self.store))

    def new_service(self) -> ModelService:
        """As after a start: with a store of its own over the same files."""

        async def in_use(name: str, version: str) -> str | None:
            return self.used.get((name, version))

        clock, inspector = (lambda: 1_700_000_000.0), inspect_here
        store = ArtifactStore(self.folder / "artifacts")
        return ModelService(self.database, store, in_use, clock, inspector)

    def artifacts(self) -> set[str]:
        return {f"sha256:{path.name}" for path in (self.folder / "artifacts/sha256").iterdir()}


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    setting = Setting(tmp_path)
    yield setting
    setting.database.close()


@pytest.fixture
async def client(setting: Setting) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(setting.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def upload(client: httpx.AsyncClient, data: bytes) -> None:
    answer = await client.put(f"/artifacts/{digest(data).replace(':', '/')}", content=data)
    assert answer.status_code in (200, 201)


async def push(
    client: httpx.AsyncClient, data: bytes = MODEL, name: str = "m", **rest: Any
) -> httpx.Response:
    await upload(client, data)
    body = {"name": name, "digest": digest(data), **rest}
    return await client.post("/api/v1/models", json=body)


async def test_a_pushed_model_is_described(client: httpx.AsyncClient) -> None:
    answer = await push(client, card=CARD)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/api/v1/models/m/versions/1"
    shown = await client.get("/api/v1/models/m/versions/1")
    assert shown.json() == answer.json()
    assert shown.headers["etag"] == answer.headers["etag"] == '"1"'
    tensor = {"datatype": "FP32", "shape": [-1, 3]}
    body = shown.json()
    card = body.pop("card")
    assert body == {
        "name": "m",
        "version": "1",
        "digest": digest(MODEL),
        "size_bytes": len(MODEL),
        "format": "onnx",
        "platform": "onnxruntime_onnx",
        "signature": {
            "inputs": [{"name": "image", **tensor}],
            "outputs": [{"name": "scores", **tensor}],
        },
        "max_batch": 64,
        "opset": 17,
        "parameters": 3,
        "golden": None,
        "variants": [],
        "created_at": "2023-11-14T22:13:20Z",
        "revision": 1,
    }
    assert card["output"]["labels"] == ["a", "b", "c"]


async def test_versions_count_up(client: httpx.AsyncClient) -> None:
    versions = [(await push(client, data)).json()["version"] for data in (MODEL, OTHER)]
    assert versions == ["1", "2"]
    assert (await push(client, version="v10")).status_code == 201
    assert (await push(client, version="10")).status_code == 201
    assert (await push(client)).json()["version"] == "11"
    model = (await client.get("/api/v1/models/m")).json()
    assert model["latest"] == "11"
    assert [entry["version"] for entry in model["versions"]] == ["v10", "1", "2", "10", "11"]


async def test_a_version_never_changes(client: httpx.AsyncClient) -> None:
    first = await push(client, version="1", card=CARD)
    again = await push(client, version="1", card=CARD)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert (await push(client, version="1")).status_code == 200  # says nothing else
    other_card = {**CARD, "model": {"name": "m", "description": "changed"}}
    for changed in (
        {"data": OTHER},
        {"card": other_card},
        {"config": "max_batch_size: 2"},
        {"labels": {"scores": ["x", "y", "z"]}},
    ):
        answer = await push(client, version="1", **changed)
        assert answer.status_code == 409
        assert "new version" in answer.json()["detail"]
    assert (await client.get("/api/v1/models/m/versions/1")).json() == first.json()


async def test_an_artifact_must_be_there_first(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/models", json={"name": "m", "digest": digest(MODEL)})
    assert answer.status_code == 409
    assert "PUT it" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not a model", "neither"),
        (MODEL[:-9], "not"),
        (b"\x08\x08", "no version or no graph"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 50, "TFLite"),
        (b"", "neither"),
    ],
)
async def test_what_is_no_model_is_refused_and_not_kept(
    client: httpx.AsyncClient, setting: Setting, data: bytes, reason: str
) -> None:
    answer = await push(client, data)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert setting.artifacts() == set()
    assert (await client.get("/api/v1/models")).json()["items"] == []


async def test_a_refused_push_spares_the_artifact_of_another_version(
    client: httpx.AsyncClient, setting: Setting
) -> None:
    await push(client)
    assert (await push(client, name="n", format="tflite")).status_code == 422
    assert setting.artifacts() == {digest(MODEL)}


@pytest.mark.parametrize(
    "rest",
    [
        {"name": "../../etc"},
        {"name": ""},
        {"name": "a/b"},
        {"name": "x" * 65},
        {"version": ""},
        {"version": "../1"},
        {"version": "a b"},
        {"digest": "sha256:../../../etc/passwd"},
        {"format": "pickle"},
        {"unknown": 1},
        {"card": {"model": {}}},
        {"card": {**CARD, "input": {**CARD["input"], "tensor": "pixels"}}},
        {"card": {**CARD, "input": {**CARD["input"], "datatype": "UINT8"}}},
        {"card": {**CARD, "output": {**CARD["output"], "tensor": "boxes"}}},
        {"labels": {"image": ["a"]}},
        {"labels": {"scores": []}},
        {"labels": {"scores": ["\x1b[2J"]}},
        {"config": "max_batch_size {"},
        {"config": 'name: "other"'},
        {"config": 'input { name: "pixels" }'},
    ],
)
async def test_bad_pushes(client: httpx.AsyncClient, rest: dict[str, Any]) -> None:
    await upload(client, MODEL)
    body = {"name": "m", "digest": digest(MODEL), **rest}
    answer = await client.post("/api/v1/models", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await client.get("/api/v1/models")).json()["items"] == []


async def test_the_largest_batch(client: httpx.AsyncClient) -> None:
    assert (await push(client)).json()["max_batch"] == 64
    assert (await push(client, config="max_batch_size: 4")).json()["max_batch"] == 4
    assert (await push(client, config="max_batch_size: 0")).json()["max_batch"] == 0
    assert (await push(client, FIXED)).json()["max_batch"] == 0
    assert (await push(client, FIXED, config="max_batch_size: 4")).status_code == 422


async def test_labels_of_card_and_push(client: httpx.AsyncClient, setting: Setting) -> None:
    await push(client, card=CARD)
    assert (await setting.service.get("m")).labels == {"scores": ("a", "b", "c")}
    await push(client, labels={"scores": ["x", "y"]})
    assert (await setting.service.get("m")).labels == {"scores": ("x", "y")}


async def test_lists_have_pages(client: httpx.AsyncClient) -> None:
    for name in ("c", "a", "b"):
        await push(client, name=name)
    await push(client, name="a")
    first = (await client.get("/api/v1/models", params={"limit": 2})).json()
    assert first["items"] == [
        {"name": "a", "latest": "2", "versions": ["1", "2"]},
        {"name": "b", "latest": "1", "versions": ["1"]},
    ]
    query = {"limit": 2, "cursor": first["next_cursor"]}
    second = (await client.get("/api/v1/models", params=query)).json()
    assert [item["name"] for item in second["items"]] == ["c"]
    assert second["next_cursor"] is None


async def test_what_is_not_there(client: httpx.AsyncClient, setting: Setting) -> None:
    await push(client)
    for path in ("x", "x/versions/1", "m/versions/2"):
        assert (await client.get(f"/api/v1/models/{path}")).status_code == 404
    assert (await client.delete("/api/v1/models/m/versions/2")).status_code == 404
    with pytest.raises(NotFoundError, match="only 1"):
        await setting.service.get("m", "2")


async def test_deleting(client: httpx.AsyncClient, setting: Setting) -> None:
    await push(client)
    await push(client, name="n")
    path = "/api/v1/models/m/versions/1"
    setting.used["m", "1"] = "shop"
    busy = await client.delete(path)
    assert busy.status_code == 409
    assert "'shop'" in busy.json()["detail"]
    setting.used.clear()
    assert (await client.delete(path, headers={"If-Match": '"9"'})).status_code == 412
    assert (await client.delete(path, headers={"If-Match": '"1"'})).status_code == 204
    assert (await client.get("/api/v1/models/m")).status_code == 404
    assert setting.artifacts() == {digest(MODEL)}  # n still refers to it
    assert (await client.delete("/api/v1/models/n/versions/1")).status_code == 204
    assert setting.artifacts() == set()


async def test_a_restart_finds_the_same_models(client: httpx.AsyncClient, setting: Setting) -> None:
    await push(client, card=CARD, labels={"scores": ["x", "y", "z"]})
    await push(client, FIXED, name="n", config="max_batch_size: 0")
    assert await setting.new_service().all() == await setting.service.all()


async def test_listeners_hear_of_every_change(client: httpx.AsyncClient, setting: Setting) -> None:
    heard: list[int] = []
    setting.service.subscribe(lambda: heard.append(1))
    await push(client, version="1")
    await push(client, version="1")
    await client.delete("/api/v1/models/m/versions/1")
    assert len(heard) == 2


async def test_pushes_at_once_make_one_version_each(client: httpx.AsyncClient) -> None:
    same = await asyncio.gather(*(push(client, version="5") for _ in range(3)))
    assert sorted(answer.status_code for answer in same) == [200, 200, 201]
    numbered = await asyncio.gather(*(push(client) for _ in range(3)))
    assert {answer.json()["version"] for answer in numbered} == {"6", "7", "8"}


async def test_an_idempotency_key_makes_one_version(client: httpx.AsyncClient) -> None:
    await upload(client, MODEL)
    body, headers = {"name": "m", "digest": digest(MODEL)}, {"Idempotency-Key": "k"}
    answers = [await client.post("/api/v1/models", json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["etag"] == '"1"'
    assert (await client.get("/api/v1/models/m")).json()["latest"] == "1"
