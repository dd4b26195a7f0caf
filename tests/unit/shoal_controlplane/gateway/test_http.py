"""The Open Inference Protocol over HTTP, before a real gateway whose devices the test plays."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from support import asgi
from support.gateway import World, model, row, spec

from shoal_controlplane.errors import InvalidError, UnavailableError
from shoal_controlplane.gateway.http import COMPRESS_FROM, InferenceApp
from shoal_shared import oip
from shoal_shared.oip import Tensor
from shoal_shared.signature import ModelSignature
from shoal_shared.status import InferCode
from shoal_shared.tensors import NUMPY

X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
INFER = "/v2/models/cat/infer"


class Site:
    """`cat` returns its input, `all` too for every datatype, `idle` has no device."""

    def __init__(self) -> None:
        self.world = world = World("d1", "d2")
        every = ModelSignature(
            inputs=tuple(spec(f"x-{d}", d, -1) for d in NUMPY),
            outputs=tuple(spec(f"y-{d}", d, -1) for d in NUMPY),
        )
        world.table.publish(
            [
                model(replicas=world.replicas, labels={"y": ("cat", "dog", "fish")}),
                model(version="0", replicas=world.replicas),
                model("all", signature=every, replicas=world.replicas, max_batch=1024),
                model("idle"),
            ]
        )
        world.link.on_sent = self.device
        self.app = InferenceApp(world.gateway, max_body=1 << 20)

    def device(self, sent: Any) -> None:
        outputs = [
            Tensor(t.name.replace("x", "y", 1), t.datatype, t.data) for t in sent.request.inputs
        ]
        if sent.request.outputs:
            names = [o.name for o in sent.request.outputs]
            outputs = [t for t in outputs if t.name in names]
        self.world.link.answer(sent, *outputs, batch=4)

    async def get(self, path: str, method: str = "GET", **more: Any) -> asgi.Response:
        response = await asgi.call(self.app, method, path, **more)
        assert response is not None
        return response

    async def post(self, path: str, body: Any = b"", **more: Any) -> asgi.Response:
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        return await self.get(path, "POST", body=raw, **more)


@pytest.fixture
def site() -> Site:
    return Site()


def binary_request(*tensors: Tensor, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    request = oip.InferRequest(list(tensors), parameters=parameters)
    buffers, length = oip.encode_request(request)
    return b"".join(buffers), {oip.HEADER_LENGTH: str(length)}


def decoded(response: asgi.Response) -> dict[str, Tensor]:
    length = response.headers.get("inference-header-content-length")
    reply = oip.decode_reply(response.body, None if length is None else int(length))
    return {t.name: t for t in reply.outputs}


async def test_json_in_and_out(site: Site) -> None:
    response = await site.post(INFER, {"id": "42", "inputs": [X]})
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.pop("parameters") == {"device": body_device(site), "service_us": 10_000}
    assert body == {
        "model_name": "cat",
        "model_version": "1",
        "id": "42",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}],
    }


def body_device(site: Site) -> str:
    return site.world.link.sent[-1].device


async def test_no_id_is_made_up(site: Site) -> None:
    assert "id" not in (await site.post(INFER, {"inputs": [X]})).json()


async def test_a_version_in_the_path(site: Site) -> None:
    response = await site.post("/v2/models/cat/versions/0/infer", {"inputs": [X]})
    assert response.json()["model_version"] == "0"


async def test_binary_in_and_json_out(site: Site) -> None:
    body, headers = binary_request(row(1, 2, 3))
    response = await site.post(INFER, body, headers=headers)
    assert response.json()["outputs"][0]["data"] == [1, 2, 3]
    assert "inference-header-content-length" not in response.headers


async def test_binary_out_for_all(site: Site) -> None:
    body, headers = binary_request(row(1, 2, 3), binary_data_output=True)
    response = await site.post(INFER, body, headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    assert response.body[length:] == np.array([1, 2, 3], np.float32).tobytes()


@pytest.mark.parametrize("default", [None, True, False])
@pytest.mark.parametrize("own", [None, True, False])
async def test_an_output_decides_for_itself(
    site: Site, default: bool | None, own: bool | None
) -> None:
    wanted: dict[str, Any] = {"name": "y"}
    if own is not None:
        wanted["parameters"] = {"binary_data": own}
    body: dict[str, Any] = {"inputs": [X], "outputs": [wanted]}
    if default is not None:
        body["parameters"] = {"binary_data_output": default}
    response = await site.post(INFER, body)
    expected = own if own is not None else bool(default)
    assert ("inference-header-content-length" in response.headers) == expected
    assert decoded(response)["y"].data.tolist() == [[1, 2, 3]]


def some(datatype: str) -> np.ndarray:
    """Two elements that are text or numbers in JSON, too."""
    if datatype == "BYTES":
        return np.array([b"a", b""], object)
    if datatype == "BF16":
        return np.array([0x3F80, 0xC000], np.uint16)
    return np.ones(2, NUMPY[datatype])


@pytest.mark.parametrize("binary", [True, False])
async def test_every_datatype(site: Site, binary: bool) -> None:
    inputs = [Tensor(f"x-{d}", d, some(d)) for d in NUMPY]
    body, headers = binary_request(*inputs, binary_data_output=binary)
    outputs = decoded(await site.post("/v2/models/all/infer", body, headers=headers))
    for tensor in inputs:
        assert outputs[tensor.name.replace("x", "y", 1)].data.tolist() == tensor.data.tolist()


async def test_outputs_mixed_and_in_the_order_asked_for(site: Site) -> None:
    request = {
        "inputs": [
            {"name": f"x-{d}", "datatype": d, "shape": [1], "data": ["t"] if d == "BYTES" else [1]}
            for d in NUMPY
            if d != "BOOL"
        ]
        + [{"name": "x-BOOL", "datatype": "BOOL", "shape": [1], "data": [True]}],
        "outputs": [
            {"name": "y-INT8", "parameters": {"binary_data": True}},
            {"name": "y-BYTES"},
            {"name": "y-FP64", "parameters": {"binary_data": True}},
        ],
    }
    response = await site.post("/v2/models/all/infer", request)
    outputs = decoded(response)
    assert list(outputs) == ["y-INT8", "y-BYTES", "y-FP64"]
    assert [t.data.tolist() for t in outputs.values()] == [[1], [b"t"], [1.0]]
    header = json.loads(response.body[: int(response.headers["inference-header-content-length"])])
    assert ["data" in o for o in header["outputs"]] == [False, True, False]


async def test_classification(site: Site) -> None:
    wanted = {"name": "y", "parameters": {"classification": 2}}
    response = await site.post(INFER, {"inputs": [X], "outputs": [wanted]})
    (output,) = response.json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    assert output["data"] == ["3.000000:2:fish", "2.000000:1:dog"]


async def test_bytes_that_json_cannot_carry(site: Site) -> None:
    inputs = []
    for d in NUMPY:
        data = np.array([b"\xff"], object) if d == "BYTES" else np.zeros(1, NUMPY[d])
        inputs.append(Tensor(f"x-{d}", d, data))
    body, headers = binary_request(*inputs)
    response = await site.post("/v2/models/all/infer", body, headers=headers)
    assert response.status == 400
    assert response.error == "output 'y-BYTES' holds bytes that are not UTF-8: ask for binary data"


def large(site: Site) -> bytes:
    """A request whose answer is worth packing."""
    n = COMPRESS_FROM // 4
    site.world.table.publish(
        [
            model(
                signature=ModelSignature(
                    inputs=(spec("x", "FP32", -1, n),), outputs=(spec("y", "FP32", -1, n),)
                ),
                replicas=site.world.replicas,
            )
        ]
    )
    x = {"name": "x", "datatype": "FP32", "shape": [1, n], "data": [0.5] * n}
    return json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}}).encode()


@pytest.mark.parametrize("accepted", [None, "", "identity", "br", "gzip;q=0", "gzip;q=x"])
async def test_no_compression_unless_asked_for(site: Site, accepted: str | None) -> None:
    headers = {} if accepted is None else {"accept-encoding": accepted}
    response = await site.post(INFER, large(site), headers=headers)
    assert "content-encoding" not in response.headers
    assert decoded(response)["y"].data.size == COMPRESS_FROM // 4


@pytest.mark.parametrize(
    ("accepted", "used"),
    [
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("br, deflate;q=0.5, gzip;q=0.1", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
    ],
)
async def test_large_answers_are_packed_where_asked_for(
    site: Site, accepted: str, used: str
) -> None:
    response = await site.post(INFER, large(site), headers={"accept-encoding": accepted})
    assert response.headers["content-encoding"] == used
    assert len(response.body) < COMPRESS_FROM // 10
    unpack = gzip.decompress if used == "gzip" else zlib.decompress
    length = int(response.headers["inference-header-content-length"])
    reply = oip.decode_reply(unpack(response.body), length)
    assert set(reply.outputs[0].data.ravel().tolist()) == {0.5}


async def test_small_answers_are_not_packed(site: Site) -> None:
    response = await site.post(INFER, {"inputs": [X]}, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in response.headers


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/cat/ready"])
async def test_health(site: Site, path: str) -> None:
    response = await site.get(path)
    assert (response.status, response.body) == (200, b"")


async def test_a_model_without_devices(site: Site) -> None:
    response = await site.get("/v2/models/idle/ready")
    assert (response.status, response.error) == (503, "no device serves idle:1 now")
    response = await site.post("/v2/models/idle/infer", {"inputs": [X]})
    assert (response.status, response.headers["retry-after"]) == (503, "1")


async def test_metadata_config_and_statistics(site: Site) -> None:
    for _ in range(3):
        await site.post(INFER, {"inputs": [X]})
    assert (await site.get("/v2")).json()["name"] == "shoal"
    about = (await site.get("/v2/models/cat")).json()
    assert (about["name"], about["versions"]) == ("cat", ["0", "1"])
    assert (await site.get("/v2/models/cat/versions/1/config")).json()["max_batch_size"] == 8
    stats = (await site.get("/v2/models/cat/versions/1/stats")).json()["model_stats"]
    assert [s["inference_count"] for s in stats] == [3]
    assert stats[0]["inference_stats"]["success"]["count"] == 3
    assert stats[0]["batch_stats"][0]["batch_size"] == 4
    assert stats[0]["last_inference"] == 1_700_000_000_000
    assert len((await site.get("/v2/models/cat/stats")).json()["model_stats"]) == 2
    assert len((await site.get("/v2/models/stats")).json()["model_stats"]) == 4


async def test_the_repository(site: Site) -> None:
    (entry,) = (await site.post("/v2/repository/index")).json()
    assert entry["name"] == "cat"
    for verb in ("load", "unload"):
        response = await site.post(f"/v2/repository/models/cat/{verb}", b"{}")
        assert (response.status, response.body) == (200, b"")
    assert site.world.repository.calls == [("load", "cat"), ("unload", "cat")]
    response = await site.post("/v2/repository/models/dog/load")
    assert (response.status, response.error) == (404, "there is no model 'dog': push it first")
    for error, status in ((InvalidError("bad"), 400), (UnavailableError("later"), 503)):
        site.world.repository.error = error
        response = await site.post("/v2/repository/models/cat/load")
        assert (response.status, response.error) == (status, str(error))


async def test_a_device_that_refuses(site: Site) -> None:
    link = site.world.link
    link.on_sent = lambda sent: link.refuse(sent, InferCode.INVALID, "x must be positive")
    response = await site.post(INFER, {"inputs": [X]})
    assert (response.status, response.error) == (400, "x must be positive")
    link.on_sent = lambda sent: link.refuse(sent, InferCode.OVERLOADED, "the queue is full")
    response = await site.post(INFER, {"inputs": [X]})
    assert (response.status, response.headers["retry-after"]) == (429, "1")
    stats = (await site.get("/v2/models/cat/versions/1/stats")).json()["model_stats"][0]
    assert stats["inference_stats"]["fail"]["count"] == 2


async def test_a_device_that_claims_a_batch_that_cannot_be(site: Site) -> None:
    link = site.world.link
    for claimed in (0, 3, 10**9):
        link.on_sent = lambda sent, batch=claimed: link.answer(sent, batch=batch)  # type: ignore[misc]
        await site.post(INFER, {"inputs": [X]})
    stats = (await site.get("/v2/models/cat/versions/1/stats")).json()["model_stats"][0]
    assert [b["batch_size"] for b in stats["batch_stats"]] == [1, 3, 8]


async def test_a_device_that_forgets_an_output(site: Site) -> None:
    link = site.world.link
    link.on_sent = lambda sent: link.answer(sent, row(1, name="z"))
    for outputs in ([{"name": "y"}], []):
        response = await site.post(INFER, {"inputs": [X], "outputs": outputs})
        assert response.status == 500
        assert response.error == "the device did not return output 'y'"


@pytest.mark.parametrize("parameters", [{"sequence_id": 7}, {"sequence_id": "s"}])
async def test_a_sequence_is_not_tried_twice(site: Site, parameters: dict[str, Any]) -> None:
    link = site.world.link
    link.on_sent = lambda sent: link.refuse(sent, InferCode.INTERNAL)
    await site.post(INFER, {"inputs": [X], "parameters": parameters})
    assert len(link.sent) == 1
    await site.post(INFER, {"inputs": [X]})
    assert len(link.sent) == 3


@pytest.mark.parametrize(
    ("parameter_us", "header_ms", "seconds"),
    [
        (None, None, 30.0),
        (2_000_000, None, 2.0),
        (None, "1500", 1.5),
        (2_000_000, "1500", 1.5),
        (1_000_000, "1500", 1.0),
        (0, None, 30.0),
        (10**15, None, 3600.0),
    ],
)
async def test_timeouts(
    site: Site, parameter_us: int | None, header_ms: str | None, seconds: float
) -> None:
    body: dict[str, Any] = {"inputs": [X]}
    if parameter_us is not None:
        body["parameters"] = {"timeout": parameter_us}
    headers = {} if header_ms is None else {"shoal-timeout-ms": header_ms}
    assert (await site.post(INFER, body, headers=headers)).status == 200
    told = site.world.link.sent[-1].request.parameters["timeout"] / 1e6
    assert seconds - 1 < told <= seconds
