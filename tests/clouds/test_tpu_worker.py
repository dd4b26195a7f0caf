"""The TPU worker: compiled batches, its server, and its process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from clouds.rig import only

pytestmark = [only("tpu")]

jax = pytest.importorskip("jax", reason="needs shoal[tpu]: run `make test-clouds`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs shoal[tpu]: run `make test-clouds`")

import httpx  # noqa: E402
from clouds.tpu_cases import model_of  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from support import onnx_models  # noqa: E402
from support.processes import free_port  # noqa: E402

from shoal_controlplane.offload.tpu.worker import reader  # noqa: E402
from shoal_controlplane.offload.tpu.worker.batcher import MAX_WAITING, Batcher  # noqa: E402
from shoal_controlplane.offload.tpu.worker.compile import CompiledModel, configure  # noqa: E402
from shoal_controlplane.offload.tpu.worker.errors import ModelError, RequestError  # noqa: E402
from shoal_controlplane.offload.tpu.worker.server import Worker  # noqa: E402
from shoal_shared import oip  # noqa: E402
from shoal_shared.oip import InferRequest, Tensor  # noqa: E402

configure("cpu")

TOKEN = "token-of-the-worker"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
DEMO = Path.home() / ".cache/shoal/demo/models"


# Compiled batches.


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("efficientnet-lite0", (2, 3, 224, 224)),
        ("ppocr-rec", (2, 3, 48, 320)),
        ("ppocr-det", (1, 3, 640, 640)),
    ],
)
def test_models_of_the_demo(name: str, shape: tuple[int, ...]) -> None:
    path = DEMO / name / "model.onnx"
    if not path.exists():
        pytest.skip("the demo models are absent: run `make setup`")
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, size=shape).astype(np.float32)
    model = reader.read(path)
    fed = {model.signature.inputs[0].name: x}
    # One item more than asked for is compiled, so what is added is cut, too.
    found = CompiledModel(model, (shape[0] + 1,)).infer(fed)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for got, wanted in zip(found, session.run(None, fed), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


@pytest.fixture
def dense(tmp_path: Path) -> reader.Model:
    return reader.read(onnx_models.dense(tmp_path / "dense.onnx"))


def test_any_number_of_items_is_padded_and_cut(dense: reader.Model) -> None:
    model = CompiledModel(dense, (2, 4))
    model.warm()
    x = np.random.default_rng(0).normal(size=(11, 16)).astype(np.float32)
    (whole,) = CompiledModel(dense, (11,)).infer({"x": x})
    for items in (1, 2, 3, 4, 5, 8, 11):
        assert model.check({"x": x[:items]}) == items
        assert not model.needed({"x": x[:items]})
        (y,) = model.infer({"x": x[:items]})
        np.testing.assert_allclose(y, whole[:items], rtol=1e-5, atol=1e-6)


def test_without_batches_the_first_dimension_is_like_others(dense: reader.Model) -> None:
    model = CompiledModel(dense)
    x = np.ones((3, 16), np.float32)
    assert model.check({"x": x}) == 0
    assert model.needed({"x": x}) == [((3, 16),)]
    assert model.infer({"x": x})[0].shape == (3, 4)


def test_a_model_without_items_takes_no_batches() -> None:
    x = np.zeros((2, 2), np.float32)
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": x}, {}, ["y"])
    with pytest.raises(ModelError, match="no batch dimension"):
        CompiledModel(reader.parse(model), (1,))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, 16)), "z": np.zeros(1)}, "no input 'z'"),
        ({"x": np.zeros((1, 15))}, r"shape \[1, 15\].*takes \[-1, 16\]"),
        ({"x": np.zeros(16)}, "has shape"),
        ({"x": np.zeros((0, 16))}, "no items"),
    ],
)
def test_requests_that_do_not_fit(dense: reader.Model, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        CompiledModel(dense, (1,)).check(inputs)


def test_inputs_with_different_numbers_of_items(tmp_path: Path) -> None:
    model = CompiledModel(reader.read(onnx_models.add(tmp_path / "add.onnx")), (4,))
    inputs = {"a": np.zeros((2, 4), np.float32), "b": np.zeros((3, 4), np.float32)}
    with pytest.raises(RequestError, match="differ in their number of items"):
        model.check(inputs)


@pytest.mark.parametrize("datatype", ["BF16", "FP16", "FP64", "INT64", "UINT8", "BOOL"])
def test_types_go_in_and_out(tmp_path: Path, datatype: str) -> None:
    path = onnx_models.identity(tmp_path / "identity.onnx", datatype)
    model = CompiledModel(reader.read(path), (4,))
    bits = np.arange(6).reshape(3, 2) % 2
    array = bits.astype("u2") * 0x3F80 if datatype == "BF16" else bits
    array = np.asarray(array, oip.tensors.NUMPY[datatype])
    (y,) = model.infer({"x": array})
    assert y.dtype == array.dtype
    np.testing.assert_array_equal(y, array)


def test_shapes_that_were_not_used_for_long_are_forgotten(
    dense: reader.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal_controlplane.offload.tpu.worker.compile.MAX_SHAPES", 2)
    model = CompiledModel(dense)
    for rows in (1, 2, 1, 3):
        model.prepare(((rows, 16),))
    assert model.needed({"x": np.zeros((2, 16))}) == [((2, 16),)]
    assert not model.needed({"x": np.zeros((1, 16))})


def test_open_dimensions_are_compiled_ahead_where_they_are_told(tmp_path: Path) -> None:
    model = reader.read(onnx_models.identity(tmp_path / "identity.onnx", "FP32"))
    told = CompiledModel(model, (1, 2))
    told.warm({"x": (7,)})
    assert not told.needed({"x": np.zeros((2, 7))})
    untold = CompiledModel(model, (1, 2))
    untold.warm()
    assert untold.needed({"x": np.zeros((2, 7))})


# Requests that wait together.


async def test_requests_that_wait_share_a_batch(dense: reader.Model) -> None:
    model = CompiledModel(dense, (1, 8))
    model.warm()
    batcher = Batcher(model)
    sizes: list[int] = []
    infer = model.infer

    def counted(inputs: Any) -> Any:
        sizes.append(len(inputs["x"]))
        return infer(inputs)

    model.infer = counted  # type: ignore[method-assign]
    xs = [np.random.default_rng(i).normal(size=(1, 16)).astype(np.float32) for i in range(12)]
    found = await asyncio.gather(*(batcher.infer({"x": x}) for x in xs))
    for x, (y,) in zip(xs, found, strict=True):
        np.testing.assert_allclose(y, infer({"x": x})[0], rtol=1e-5, atol=1e-6)
    assert sum(sizes) == 12
    assert max(sizes) == 8
    batcher.close()


async def test_one_that_leaves_harms_no_other(dense: reader.Model) -> None:
    batcher = Batcher(CompiledModel(dense, (1, 4)))
    x = np.ones((1, 16), np.float32)
    first = asyncio.ensure_future(batcher.infer({"x": x}))
    second = asyncio.ensure_future(batcher.infer({"x": x}))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)[0].shape == (1, 4)
    assert first.cancelled()
    batcher.close()


# The server.


@pytest_asyncio.fixture
async def client(dense: reader.Model) -> AsyncIterator[httpx.AsyncClient]:
    failures: list[str] = []
    worker = Worker("dense", "2", TOKEN, failures.append)
    model = CompiledModel(dense, (1, 4))
    worker.batcher = Batcher(model)
    transport = httpx.ASGITransport(worker.app())
    async with httpx.AsyncClient(
        transport=transport, base_url="http://worker", headers=HEADERS
    ) as made:
        made.worker = worker  # type: ignore[attr-defined]
        yield made
    worker.batcher.close()
    assert not failures


def request_of(x: Any, **more: Any) -> dict[str, Any]:
    data = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(np.shape(x)),
        "data": np.ravel(x).tolist(),
    }
    return {"inputs": [{**data, **more}]}


async def test_it_answers_json_and_binary(client: httpx.AsyncClient) -> None:
    x = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    answer = await client.post("/v2/models/dense/infer", json={**request_of(x), "id": "7"})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("dense", "2", "7")
    by_json = np.float32(told["outputs"][0]["data"]).reshape(3, 4)
    buffers, length = oip.encode_request(
        InferRequest([Tensor("x", "FP32", x)], parameters={"binary_data_output": True})
    )
    answer = await client.post(
        "/v2/models/dense/versions/2/infer",
        content=b"".join(buffers),
        headers={oip.HEADER_LENGTH: str(length)},
    )
    reply = oip.decode_reply(answer.content, int(answer.headers[oip.HEADER_LENGTH]))
    np.testing.assert_allclose(reply.outputs[0].data, by_json, rtol=1e-6)


async def test_it_says_what_it_has(client: httpx.AsyncClient) -> None:
    told = (await client.get("/v2/models/dense")).json()
    assert told["versions"] == ["2"]
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    assert (await client.get("/v2")).json()["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/dense/versions/2/ready"):
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer tøken"])
async def test_it_demands_its_token(client: httpx.AsyncClient, given: str) -> None:
    headers = {"authorization": given.encode("latin-1", "replace")}
    for method, path in (("GET", "/v2"), ("POST", "/v2/models/dense/infer")):
        answer = await client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert TOKEN not in answer.text
    assert (await client.get("/v2/health/ready", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "not a valid inference request"),
        (request_of([[1.0] * 15]), "has shape"),
        (request_of([[1.0] * 16], name="y"), "no input 'y'"),
        (request_of([[1] * 16], datatype="INT32"), "is INT32 instead of FP32"),
        ({"inputs": request_of([[1.0] * 16])["inputs"] * 2}, "is there twice"),
        ({**request_of([[1.0] * 16]), "outputs": [{"name": "z"}]}, "no output 'z'"),
        (
            {
                **request_of([[1.0] * 16]),
                "outputs": [{"name": "y", "parameters": {"classification": 3}}],
            },
            "does not classify",
        ),
    ],
)
async def test_it_refuses_what_does_not_fit(
    client: httpx.AsyncClient, body: dict[str, Any], said: str
) -> None:
    answer = await client.post("/v2/models/dense/infer", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "999", "1" * 20])
async def test_it_refuses_a_wrong_header_length(client: httpx.AsyncClient, length: str) -> None:
    answer = await client.post(
        "/v2/models/dense/infer", content=b"{}", headers={oip.HEADER_LENGTH: length}
    )
    assert answer.status_code == 400
    assert oip.HEADER_LENGTH in answer.json()["error"]


async def test_it_has_no_other_model(client: httpx.AsyncClient) -> None:
    for path in ("/v2/models/other", "/v2/models/dense/versions/1"):
        answer = await client.get(path)
        assert answer.status_code == 404
        assert "there is no model" in answer.json()["error"]


async def test_it_takes_no_more_than_can_wait(client: httpx.AsyncClient) -> None:
    batcher = client.worker.batcher  # type: ignore[attr-defined]
    batcher._held = MAX_WAITING
    answer = await client.post("/v2/models/dense/infer", json=request_of([[1.0] * 16]))
    batcher._held = 0
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


async def test_it_takes_nothing_when_it_stops_or_compiles(client: httpx.AsyncClient) -> None:
    worker = client.worker  # type: ignore[attr-defined]
    worker.stopping = True
    for path in ("/v2/health/ready", "/v2/models/dense/ready"):
        assert (await client.get(path)).status_code == 503
    worker.stopping, held, worker.batcher = False, worker.batcher, None
    answer = await client.post("/v2/models/dense/infer", json={})
    assert answer.status_code == 503
    assert "being compiled" in answer.json()["error"]
    worker.batcher = held


@pytest.mark.parametrize(
    ("said", "status", "ends"),
    [("INTERNAL: the chip is gone", 503, True), ("RESOURCE_EXHAUSTED: 9 GB", 500, False)],
)
async def test_a_device_that_fails(dense: reader.Model, said: str, status: int, ends: bool) -> None:
    failures: list[str] = []
    worker = Worker("dense", "2", TOKEN, failures.append)
    model = CompiledModel(dense, (1,))
    model.warm()

    def infer(inputs: Any) -> Any:
        raise jax.errors.JaxRuntimeError(said)

    model.infer = infer  # type: ignore[method-assign]
    worker.batcher = Batcher(model)
    transport = httpx.ASGITransport(worker.app())
    async with httpx.AsyncClient(
        transport=transport, base_url="http://worker", headers=HEADERS
    ) as asking:
        answer = await asking.post("/v2/models/dense/infer", json=request_of([[1.0] * 16]))
    worker.batcher.close()
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert failures == ([f"the device failed: {said}"] if ends else [])


async def test_a_shape_that_cannot_be_compiled_is_the_requests_fault(tmp_path: Path) -> None:
    """Halves of an open dimension: an odd one cannot be."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "halves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "M"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "K", 2])],
        [numpy_helper.from_array(np.int64([0, -1, 2]), "shape")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    batcher = Batcher(CompiledModel(reader.parse(proto.SerializeToString()), (1,)))
    assert (await batcher.infer({"x": np.zeros((1, 4), np.float32)}))[0].shape == (1, 2, 2)
    with pytest.raises(ModelError, match="Reshape"):
        await batcher.infer({"x": np.zeros((1, 5), np.float32)})
    batcher.close()


# The process.


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, token: str = TOKEN) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal_controlplane.offload.tpu.worker", *arguments],
            env={**os.environ, "SHOAL_TPU_TOKEN": token},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_it_serves_what_it_fetched_until_it_is_told_to_stop(started: Any, tmp_path: Path) -> None:
    path, port = onnx_models.dense(tmp_path / "dense.onnx"), free_port()
    process = started(str(path), "--name=d", "--batches=1,2", "--platform=cpu", f"--port={port}")
    while "ready: d:1 on cpu" not in (line := process.stdout.readline()):
        assert line, "it ended"
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/d/infer",
        json.dumps(request_of(np.ones((3, 16)))).encode(),
        HEADERS,
    )
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["outputs"][0]["shape"] == [3, 4]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stdout.read() == ""


def test_a_lacking_operator_ends_it_with_the_name(started: Any, tmp_path: Path) -> None:
    node = helper.make_node("NonMaxSuppression", ["b", "s"], ["y"], name="nms3")
    path = onnx_models.save(
        tmp_path / "nms.onnx",
        [node],
        [
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 5, 4]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 1, 5]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [None, 3])],
    )
    process = started(str(path), "--name=n", "--platform=cpu", "--port=0")
    assert process.wait(60) == 3
    last = process.stdout.read().splitlines()[-1]
    assert "NonMaxSuppression (domain ai.onnx, opset 17, node 'nms3')" in last


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["/nowhere.onnx", "--name=n"], "cannot read /nowhere.onnx", 1),
        (["{good}", "--name=n", f"--digest=sha256:{'0' * 64}"], "lacks digest", 1),
        (["{good}", "--name=n", "--shape=x=3"], "does not fit", 1),
        (["{bad}", "--name=n"], "no ONNX file", 1),
        (["http://127.0.0.1:9/m", "--name=n", "--digest=sha256:00"], "cannot fetch", 1),
        (["http://127.0.0.1:9/m", "--name=n"], "name the digest", 2),
        (["{good}", "--name=n", "--host=0.0.0.0"], "set SHOAL_TPU_TOKEN", 2),
        (["{good}", "--name=n", "--batches=0"], "--batches", 2),
    ],
)
def test_what_it_cannot_serve_ends_it_with_a_sentence(
    started: Any, tmp_path: Path, arguments: list[str], said: str, code: int
) -> None:
    good = onnx_models.dense(tmp_path / "good.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    process = started(
        *(a.format(good=good, bad=bad) for a in arguments), "--platform=cpu", "--port=0", token=""
    )
    assert process.wait(60) == code
    output = process.stdout.read()
    assert said in output.splitlines()[-1]
    assert "Traceback" not in output
