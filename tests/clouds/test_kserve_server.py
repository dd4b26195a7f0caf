"""What a replica runs, as a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from clouds.models import SIGNATURE, Shelf, Weights
from clouds.rig import only
from onnx import TensorProto, helper
from support import onnx_models
from support.processes import Process, free_port, until

from shoal_controlplane.offload.oipclient import OipClient
from shoal_controlplane.offload.target import Fault, TargetError

pytest.importorskip("kserve", reason="needs shoal[kserve-server]: run `make test-clouds`")

pytestmark = [only("kserve"), pytest.mark.timeout(120)]

TOKEN = "token-of-the-tests-0123456789"
HEADERS = {"authorization": f"Bearer {TOKEN}"}


class Server:
    """The server in a process."""

    def __init__(self, folder: Path, *arguments: str, token: str = TOKEN, ready: bool = True):
        self.port = free_port()
        self.process = Process(
            [
                sys.executable,
                *("-m", "shoal_controlplane.offload.kserve.server"),
                *("--name", "m", "--port", str(self.port), *arguments),
            ],
            folder / "server.log",
            {"SHOAL_SERVER_TOKEN": token},
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.model = f"{self.url}/v2/models/m"
        if ready:
            until(lambda: self._status("/v2/models/m/ready") == 200, "the server's readiness", 60)

    def _status(self, path: str) -> int:
        assert self.process.child.poll() is None, self.process.output
        try:
            return httpx.get(self.url + path, trust_env=False).status_code
        except httpx.HTTPError:
            return 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Shelf) -> Iterator[Server]:
    model = models.model("m", Weights(1))
    arguments = ("--url", model.url, "--digest", model.digest, "--drain-s", "1")
    running = Server(tmp_path_factory.mktemp("server"), *arguments)
    yield running
    running.process.kill()


@pytest_asyncio.fixture
async def client() -> AsyncIterator[OipClient]:
    made = OipClient()
    yield made
    await made.close()


async def test_it_answers_in_binary(server: Server, client: OipClient) -> None:
    for items in (1, 4, 7):
        question = Weights(1).question(items, seed=items)
        reply = await client.infer(server.model, question.request, SIGNATURE, 30, HEADERS)
        question.check(reply)
    question = Weights(1).question(2, outputs=("s",))
    question.check(await client.infer(server.model, question.request, SIGNATURE, 30, HEADERS))


async def test_it_answers_in_json(server: Server) -> None:
    question = Weights(1).question(2)
    inputs = [
        {
            "name": t.name,
            "datatype": t.datatype,
            "shape": list(t.data.shape),
            "data": t.data.ravel().tolist(),
        }
        for t in question.request.inputs
    ]
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"{server.model}/infer", json={"inputs": inputs}, headers=HEADERS)
        assert answer.status_code == 200, answer.text
        metadata = (await http.get(server.model, headers=HEADERS)).json()
    for output in answer.json()["outputs"]:
        array = np.array(output["data"]).reshape(output["shape"])
        np.testing.assert_allclose(array, question.answers[output["name"]], rtol=1e-5, atol=1e-5)
    assert metadata["inputs"] == [
        {"name": "a", "datatype": "FP32", "shape": [-1, 8]},
        {"name": "b", "datatype": "FP32", "shape": [-1, 4]},
    ]


async def test_the_token_is_demanded(server: Server, client: OipClient) -> None:
    request = Weights(1).question().request
    for headers in ({}, {"authorization": "Bearer x"}, {"authorization": TOKEN}):
        with pytest.raises(TargetError) as caught:
            await client.infer(server.model, request, SIGNATURE, 30, headers)
        assert caught.value.fault is Fault.CREDENTIALS
    async with httpx.AsyncClient(trust_env=False) as http:
        for path in ("/", "/metrics", "/v2", "/v2/models/m", "/v2/models/m/ready/x"):
            assert (await http.get(server.url + path)).status_code == 401, path
        unload = f"{server.url}/v2/repository/models/m/unload"
        assert (await http.post(unload)).status_code == 401
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"):
            assert (await http.get(server.url + path)).status_code == 200, path


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 8], "data": [0.0] * 8}]},
        {"inputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [0.0]}]},
        {"inputs": [{"name": "a", "datatype": "INT8", "shape": [1, 8], "data": [0] * 8}]},
        {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 9], "data": [0.0] * 8}]},
        {
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [0.0] * 3},
                {"name": "b", "datatype": "FP32", "shape": [1, 4], "data": [0.0] * 4},
            ]
        },
    ],
)
async def test_what_does_not_fit_is_the_client_s_fault(
    server: Server, body: dict[str, Any]
) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"{server.model}/infer", json=body, headers=HEADERS)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


async def test_too_much_is_refused_before_it_is_read(server: Server) -> None:
    async def ask(head: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            f"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\n"
            f"authorization: Bearer {TOKEN}\r\n{head}\r\n\r\n".encode()
        )
        status = await reader.readline()
        writer.close()
        return status.split()[1]

    async with asyncio.timeout(10):
        assert await ask("content-length: 99999999999") == b"413"
        assert await ask("transfer-encoding: chunked") == b"411"


async def test_text_goes_in_and_out(tmp_path: Path) -> None:
    path = onnx_models.save(
        tmp_path / "text.onnx",
        [helper.make_node("Identity", ["t"], ["u"])],
        [helper.make_tensor_value_info("t", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("u", TensorProto.STRING, ["N"])],
        [],
    )
    running = Server(tmp_path, "--path", str(path))
    try:
        tensor = {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["fish", "größer"]}
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(
                f"{running.model}/infer", json={"inputs": [tensor]}, headers=HEADERS
            )
        assert answer.json()["outputs"][0]["data"] == ["fish", "größer"]
    finally:
        running.process.kill()


async def test_it_drains_on_sigterm(tmp_path: Path, models: Shelf, client: OipClient) -> None:
    model = models.model("m", Weights(1))
    running = Server(tmp_path, "--url", model.url, "--drain-s", "3")
    running.process.child.terminate()

    async with httpx.AsyncClient(trust_env=False) as http:

        async def leaves() -> bool:
            return (await http.get(f"{running.model}/ready")).status_code == 503

        while not await leaves():
            pass
        # It says so, and still answers.
        question = Weights(1).question(2)
        reply = await client.infer(running.model, question.request, SIGNATURE, 30, HEADERS)
        question.check(reply)
    assert await asyncio.to_thread(running.process.child.wait, 30) == 0


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        (("--host", "0.0.0.0"), "", "SHOAL_SERVER_TOKEN is not set"),
        (("--host", "shoal.example.com"), "", "SHOAL_SERVER_TOKEN is not set"),
        (("--digest", "sha256:" + "0" * 64), TOKEN, "the model has digest"),
        (("--path", "/not/there"), TOKEN, "cannot read /not/there"),
        (("--path", "/"), TOKEN, "files instead of one model"),
        (("--path", __file__), TOKEN, "cannot load the model"),
        (("--url", "file:///etc/passwd"), TOKEN, "http"),
        (("--url", "http://127.0.0.1:1/x"), TOKEN, "cannot be fetched"),
    ],
)
def test_what_cannot_be_served_ends_in_one_line(
    tmp_path: Path, models: Shelf, arguments: tuple[str, ...], token: str, said: str
) -> None:
    if not {"--path", "--url"} & set(arguments):
        arguments = (*arguments, "--url", models.model("m", Weights(1)).url)
    running = Server(tmp_path, *arguments, token=token, ready=False)
    try:
        assert running.process.child.wait(60) == 1
    finally:
        running.process.kill()
    lines = running.process.output.strip().splitlines()
    assert said in lines[-1], running.process.output
    assert "Traceback" not in running.process.output
