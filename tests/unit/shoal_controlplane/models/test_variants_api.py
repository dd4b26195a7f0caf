"""Variants and golden outputs of a version, through the routes of the models room."""

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
from sqlmodel import Session, SQLModel, select

from shoal_controlplane.api import problem
from shoal_controlplane.api.idempotency import Idempotency, IdempotentAnswer
from shoal_controlplane.database import Database
from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.artifact_routes import artifact_routes
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.filecheck import check_file
from shoal_controlplane.models.findings import Findings
from shoal_controlplane.models.routes import routes
from shoal_controlplane.models.service import ModelService
from shoal_controlplane.models.tables import ModelVariantRow, ModelVersionRow
from shoal_shared.golden import Case, Golden, encode

VERSION = "/api/v1/models/m/versions/1"
VARIANTS = f"{VERSION}/variants"


def model(
    scale: float = 1.0,
    batch: int | str = "N",
    name: str = "x",
    kind: int = TensorProto.FLOAT,
    width: int = 3,
) -> bytes:
    """y = x * scale over 3 numbers."""
    constant = numpy_helper.from_array(
        np.full(width, scale, helper.tensor_dtype_to_np_dtype(kind)), "c"
    )
    graph = helper.make_graph(
        [helper.make_node("Mul", [name, "c"], ["y"])],
        "graph",
        [helper.make_tensor_value_info(name, kind, [batch, width])],
        [helper.make_tensor_value_info("y", kind, [batch, width])],
        [constant],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


def compiled(**attributes: Any) -> bytes:
    """A model whose one node holds code for a chip."""
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="code", **attributes
    )
    value = helper.make_tensor_value_info
    shape = [1, 3]
    graph = helper.make_graph([node], "g", [value("x", 1, shape)], [value("y", 1, shape)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


def golden(inputs: dict[str, Any] | None = None, outputs: dict[str, Any] | None = None) -> bytes:
    x = np.ones((2, 3), np.float32)
    return encode(Golden((Case(inputs or {"x": x}, outputs or {"y": x}),)))


MODEL, FASTER, THIRD = model(), model(1.001), model(1.002)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def inspect_here(path: Path, format_name: str) -> Findings:
    outcome = check_file(path, format_name)
    if outcome.findings is None:
        raise InvalidError(outcome.error)
    return outcome.findings


class Room:
    """The models room alone, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(f"sqlite:///{folder / 'test.db'}")
        tables = [t.__table__ for t in (ModelVersionRow, ModelVariantRow, IdempotentAnswer)]  # type: ignore[attr-defined]
        SQLModel.metadata.create_all(self.database.engine, tables)
        self.store = ArtifactStore(folder / "artifacts")
        self.service = self.new_service()
        app = FastAPI()
        problem.install(app)
        app.include_router(routes(self.service, Idempotency(self.database)))
        app.include_router(artifact_routes(self.store))
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def new_service(self) -> ModelService:
        """As after a start: with a store of its own over the same files."""

        async def in_use(_name: str, _version: str) -> str | None:
            return None

        store = ArtifactStore(self.folder / "artifacts")
        return ModelService(self.database, store, in_use, lambda: 1e9, inspect_here)

    @property
    def artifacts(self) -> set[str]:
        return {f"sha256:{path.name}" for path in (self.folder / "artifacts/sha256").iterdir()}

    async def upload(self, data: bytes) -> str:
        path = f"/artifacts/{digest(data).replace(':', '/')}"
        assert (await self.http.put(path, content=data)).is_success
        return digest(data)

    async def push(self, data: bytes = MODEL, **rest: Any) -> httpx.Response:
        body = {"name": "m", "version": "1", "digest": await self.upload(data), **rest}
        return await self.http.post("/api/v1/models", json=body)

    async def add(self, data: bytes, name: str = "fast", **rest: Any) -> httpx.Response:
        headers = rest.pop("headers", {})
        body = {"name": name, "digest": await self.upload(data), **rest}
        return await self.http.post(VARIANTS, json=body, headers=headers)

    async def show(self) -> Any:
        return (await self.http.get(VERSION)).json()


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path)
    yield room
    await room.http.aclose()
    room.database.close()


async def test_variants_come_and_go(room: Room) -> None:
    await room.push()
    heard: list[int] = []
    room.service.subscribe(lambda: heard.append(1))
    added = await room.add(FASTER, note="twice as fast", target="nvidia-sm87")
    assert (added.status_code, added.headers["etag"]) == (201, '"2"')
    assert added.json() == await room.show()
    assert added.json()["variants"] == [
        {
            "name": "fast",
            "digest": digest(FASTER),
            "size_bytes": len(FASTER),
            "format": "onnx",
            "target": "nvidia-sm87",
            "note": "twice as fast",
            "created_at": "2001-09-09T01:46:40Z",
        }
    ]
    again = await room.add(FASTER, target="nvidia-sm87")
    assert (again.status_code, again.headers["etag"]) == (200, '"2"')
    await room.add(THIRD, "another")
    assert [v["name"] for v in (await room.show())["variants"]] == ["another", "fast"]
    assert await room.new_service().all() == await room.service.all()
    assert (
        await room.http.delete(f"{VARIANTS}/fast", headers={"If-Match": '"2"'})
    ).status_code == 412
    assert (
        await room.http.delete(f"{VARIANTS}/fast", headers={"If-Match": '"3"'})
    ).status_code == 204
    assert len(heard) == 3
    assert room.artifacts == {digest(MODEL), digest(THIRD)}
    assert await room.new_service().all() == await room.service.all()
    missing = await room.http.delete(f"{VARIANTS}/fast")
    assert missing.status_code == 404
    assert "only another" in missing.json()["detail"]


async def test_a_name_holds_one_file(room: Room) -> None:
    await room.push()
    await room.add(FASTER)
    for other in ({"data": THIRD}, {"data": FASTER, "target": "nvidia-sm87"}):
        answer = await room.add(**other)
        assert answer.status_code == 409
        assert "remove it first" in answer.json()["detail"]


async def test_an_idempotency_key_and_if_match_at_adding(room: Room) -> None:
    await room.push()
    stale = await room.add(FASTER, headers={"If-Match": '"7"'})
    assert stale.status_code == 412
    keyed = {"Idempotency-Key": "k", "If-Match": '"1"'}
    answers = [await room.add(FASTER, headers=keyed) for _ in range(2)]
    assert [(a.status_code, a.headers["etag"]) for a in answers] == [(201, '"2"')] * 2


@pytest.mark.parametrize(
    ("data", "rest", "reason"),
    [
        (model(name="z"), {}, "has no input 'x'"),
        (model(kind=TensorProto.FLOAT16), {}, "is FP16, but FP32 in the reference"),
        (model(width=4), {}, "has the shape [-1, 4], but [-1, 3] in the reference"),
        (b"not a model", {}, "neither an ONNX nor a TFLite"),
        (MODEL[:-9], {}, "The variant 'fast' cannot be used: "),
        (compiled(), {}, "name it as the target"),
        (compiled(embed_mode=0), {"target": "qualcomm-soc57"}, "in another file"),
        (FASTER, {"name": "reference"}, "give the variant another name"),
        (FASTER, {"name": "../x"}, "is not valid"),
        (FASTER, {"target": "Qualcomm"}, "small letters"),
        (FASTER, {"target": "a/b"}, "small letters"),
        (FASTER, {"note": "\x1b[2J"}, "one line"),
    ],
)
async def test_what_does_not_fit_is_refused_and_not_kept(
    room: Room, data: bytes, rest: dict[str, Any], reason: str
) -> None:
    before = (await room.push()).json()
    answer = await room.add(data, **rest)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert await room.show() == before
    if not rest:
        assert room.artifacts == {digest(MODEL)}


async def test_an_output_more_than_the_reference_is_refused(room: Room) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [name]) for name in ("y", "z")],
        "g",
        [value("x", 1, ["N", 3])],
        [value("y", 1, ["N", 3]), value("z", 1, ["N", 3])],
    )
    await room.push()
    answer = await room.add(helper.make_model(graph).SerializeToString())
    assert answer.status_code == 422
    assert "has the output 'z', which the reference has not" in answer.json()["detail"]


async def test_a_compiled_variant_has_fixed_sizes_and_a_target(room: Room) -> None:
    await room.push()
    answer = await room.add(compiled(), "npu", target="qualcomm-soc57")
    assert answer.status_code == 201
    assert answer.json()["variants"][0]["target"] == "qualcomm-soc57"


async def test_sizes_that_are_fixed_in_the_reference_must_be_equal(room: Room) -> None:
    await room.push(model(batch=1))
    assert (await room.add(model(2.0, batch=2))).status_code == 422
    assert (await room.add(model(2.0, batch="N"))).status_code == 422
    assert (await room.add(model(2.0, batch=1))).status_code == 201


async def test_a_compiled_file_is_no_reference(room: Room) -> None:
    answer = await room.push(compiled())
    assert answer.status_code == 422
    assert "as a variant with its target" in answer.json()["detail"]
    assert room.artifacts == set()


async def test_eight_variants_at_most(room: Room) -> None:
    await room.push()
    for number in range(8):
        assert (await room.add(FASTER, f"v{number}")).status_code == 201
    answer = await room.add(FASTER, "v8")
    assert answer.status_code == 422
    assert "at most 8" in answer.json()["detail"]


async def test_variants_at_once(room: Room) -> None:
    await room.push()
    answers = await asyncio.gather(*(room.add(FASTER, f"v{number}") for number in range(3)))
    assert {a.headers["etag"] for a in answers} == {'"2"', '"3"', '"4"'}
    assert len((await room.show())["variants"]) == 3


async def test_a_push_brings_variants_and_golden_outputs(room: Room) -> None:
    cases = golden()
    body: dict[str, Any] = {
        "variants": [{"name": "fast", "digest": await room.upload(FASTER)}],
        "golden": {"digest": await room.upload(cases)},
    }
    first = await room.push(**body)
    assert first.status_code == 201
    document = first.json()
    assert [v["name"] for v in document["variants"]] == ["fast"]
    assert document["golden"] == {
        "digest": digest(cases),
        "size_bytes": len(cases),
        "cases": 1,
        "absolute": 0.001,
        "relative": 0.02,
    }
    assert await room.new_service().all() == await room.service.all()
    assert (await room.push(**body)).json() == document
    assert (await room.push()).status_code == 200  # says nothing else
    other = {"digest": await room.upload(golden({"x": np.zeros((1, 3), np.float32)}))}
    refused = await room.push(golden=other)
    assert refused.status_code == 409
    assert "another set of golden outputs" in refused.json()["detail"]
    more = [{"name": "third", "digest": await room.upload(THIRD)}]
    refused = await room.push(variants=more)
    assert refused.status_code == 409
    assert "shoal model variant add" in refused.json()["detail"]


CARD: dict[str, Any] = {
    "model": {"name": "m", "tolerance": 0.5},
    "input": {"kind": "image", "tensor": "x", "layout": "NCHW", "size": [1, 1],
              "resize": "stretch"},
    "output": {"kind": "labels", "tensor": "y", "labels": ["a", "b", "c"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("card", "given", "expected"),
    [
        (CARD, {}, (0.5, 0.02)),
        ({**CARD, "golden": {"relative": 0.1}}, {}, (0.5, 0.1)),
        ({**CARD, "golden": {"absolute": 0.25, "relative": 0.1}}, {}, (0.25, 0.1)),
        ({**CARD, "golden": {"absolute": 0.25}}, {"absolute": 0.0}, (0.0, 0.02)),
        ({**CARD, "golden": {"absolute": 0.25}}, {"relative": 1.0}, (0.25, 1.0)),
        (None, {"relative": 1.0}, (0.001, 1.0)),
    ],
)
async def test_the_tolerance_is_that_of_the_push_else_of_the_card(
    room: Room, card: Any, given: dict[str, float], expected: tuple[float, float]
) -> None:
    answer = await room.push(card=card, golden={"digest": await room.upload(golden()), **given})
    found = answer.json()["golden"]
    assert (found["absolute"], found["relative"]) == expected


X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no golden file", "cannot be used"),
        (golden()[:-8], "cannot be used"),
        (golden({"z": X}), "The golden input 'z' is none of the model: it has 'x'"),
        (golden({"x": X, "z": X}), "The golden input 'z'"),
        (golden(outputs={"z": X}), "The golden output 'z'"),
        (golden({"x": X.astype(np.float64)}), "is FP64, but FP32 in the model"),
        (golden({"x": X[:, :2]}), "has the shape [2, 2], but [-1, 3] in the model"),
        (golden(outputs={"y": X[0]}), "has the shape [3]"),
    ],
)
async def test_golden_cases_must_fit_the_model(room: Room, data: bytes, reason: str) -> None:
    answer = await room.push(golden={"digest": await room.upload(data)})
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert room.artifacts == set()


async def test_every_artifact_of_a_push_must_be_there(room: Room) -> None:
    absent = digest(b"absent")
    for rest in ({"golden": {"digest": absent}}, {"variants": [{"name": "a", "digest": absent}]}):
        answer = await room.push(**rest)
        assert answer.status_code == 409
        assert absent in answer.json()["detail"]
    bad = await room.push(variants=[{"name": n, "digest": absent} for n in ("a", "a")])
    assert "given twice" in bad.json()["detail"]
    assert digest(MODEL) in room.artifacts  # it may be used by the next attempt


async def test_a_deleted_version_drops_what_nothing_else_uses(room: Room) -> None:
    cases = {"digest": await room.upload(golden())}
    fast = [{"name": "fast", "digest": await room.upload(FASTER)}]
    await room.push(golden=cases, variants=fast)
    # The variant of one version is the reference of another, and the golden cases are shared.
    await room.push(FASTER, version="2", golden=cases)
    assert (await room.http.delete(VERSION)).status_code == 204
    assert room.artifacts == {digest(FASTER), cases["digest"]}
    with Session(room.database.engine) as session:
        assert session.exec(select(ModelVariantRow)).all() == []
    await room.push(MODEL, version="1", variants=fast)
    assert (await room.http.delete("/api/v1/models/m/versions/2")).status_code == 204
    assert room.artifacts == {digest(FASTER), digest(MODEL)}


async def test_what_a_failed_variant_shares_with_a_version_stays(room: Room) -> None:
    await room.push()
    await room.push(model(width=4), version="2")
    answer = await room.add(model(width=4))
    assert answer.status_code == 422
    assert room.artifacts == {digest(MODEL), digest(model(width=4))}
