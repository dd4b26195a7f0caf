"""What users and clients send that cannot be used: one sentence, and nothing is left behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import onnx_models
from support.processes import ControlPlane, Process, free_port, start_agent


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("bad-input")
    processes: list[Process] = []
    try:
        plane = ControlPlane(folder, broker_port=free_port())
        processes.append(plane.process)
        processes.append(start_agent(folder, "board-0", plane))
        plane.wait_condition("board-0", "online")
        plane.deploy(onnx_models.add(folder / "add.onnx"), "add")
        yield plane
        assert "Traceback" not in plane.process.output
    finally:
        for process in reversed(processes):
            process.stop()


def tensor(name: str, **changes: object) -> dict[str, object]:
    return {"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **changes}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([tensor("a")], "'b' is missing"),
        ([tensor("a"), tensor("b"), tensor("c")], "no input 'c'"),
        ([tensor("a"), tensor("a")], "more than once"),
        ([tensor("a"), tensor("b", datatype="INT32")], "takes FP32"),
        ([tensor("a"), tensor("b", shape=[4])], "takes [-1, 4]"),
        ([tensor("a"), tensor("b", shape=[2, 4])], "needs 8"),
        ([tensor("a"), tensor("b", shape=[-1, 4])], "negative"),
        ([tensor("a"), tensor("b", data=["x"] * 4)], "not FP32"),
        ([tensor("a"), tensor("b", data=[[1, 2], [3]])], "not FP32"),
        ([tensor("a"), tensor("b", data=None)], "neither data"),
        ([tensor("a"), tensor("b", parameters={"binary_data_size": 16}, data=None)], "claims 16"),
        ([tensor("a"), tensor("b", parameters={"shared_memory_region": "r"})], "shared memory"),
        ([], "'a' is missing"),
    ],
)
def test_wrong_inputs_are_told_in_one_sentence(
    plane: ControlPlane, inputs: list[object], words: str
) -> None:
    status, body = plane.call("POST", "/v2/models/add/infer", {"inputs": inputs})
    assert status == 400
    assert words in body["error"]
    assert "\n" not in body["error"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 50_000, b'{"inputs": 1}']
)
def test_what_is_no_request_is_refused(plane: ControlPlane, body: bytes) -> None:
    status, answer = plane.call("POST", "/v2/models/add/infer", body)
    assert status == 400
    assert answer["error"]


def test_nan_in_and_out(plane: ControlPlane) -> None:
    inputs = [tensor("a", data=[1, None, 2, 3]), tensor("b")]
    status, body = plane.call("POST", "/v2/models/add/infer", {"inputs": inputs})
    assert status == 200
    assert body["outputs"][0]["data"] == [2.0, None, 5.0, 7.0]


def test_zero_size_tensors_are_legal(plane: ControlPlane) -> None:
    inputs = [tensor(n, shape=[0, 4], data=[]) for n in ("a", "b")]
    status, body = plane.call("POST", "/v2/models/add/infer", {"inputs": inputs})
    assert status == 200
    assert body["outputs"][0]["shape"] == [0, 4]
    assert body["outputs"][0]["data"] == []


def test_a_gzip_bomb_is_not_unpacked(plane: ControlPlane) -> None:
    bomb = gzip.compress(b" " * (80 * 1024 * 1024))
    request = urllib.request.Request(
        f"{plane.url}/v2/models/add/infer", bomb, {"Content-Encoding": "gzip"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 413
    assert "larger than the limit" in json.loads(caught.value.read())["error"]


def test_a_body_over_the_limit_is_refused_before_it_is_sent(plane: ControlPlane) -> None:
    with socket.create_connection(("127.0.0.1", plane.port), timeout=10) as client:
        client.sendall(
            b"POST /v2/models/add/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_unknown_things_are_named(plane: ControlPlane) -> None:
    assert plane.call("POST", "/v2/models/nothing/infer", {"inputs": []})[0] == 404
    assert plane.get("/v2/models/add/versions/9")[0] == 404
    assert plane.get("/v2/nothing")[0] == 404
    assert plane.get("/v2/models/add/infer")[0] == 405
    assert plane.get("/v2/systemsharedmemory/status")[0] == 501


def stored(plane: ControlPlane) -> set[str]:
    return {item["name"] for item in plane.get("/api/v1/models")[1]["items"]}


@pytest.mark.parametrize("kind", ["text", "truncated", "empty", "tflite"])
def test_what_is_no_model_is_not_stored(plane: ControlPlane, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{'tflite' if kind == 'tflite' else 'onnx'}"
    whole = onnx_models.dense(tmp_path / "whole.onnx").read_bytes()
    path.write_bytes(
        {
            "text": b"certainly not a model\n" * 100,
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "tflite": b"\x1c\x00\x00\x00TFL3" + b"\xff" * 64,
        }[kind]
    )
    done = plane.shoal("model", "push", str(path), "--name", "broken")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: "), done.stderr
    assert "Traceback" not in done.stderr
    assert "broken" not in stored(plane)


def test_names_that_climb_are_refused(plane: ControlPlane, tmp_path: Path) -> None:
    model = onnx_models.dense(tmp_path / "m.onnx")
    for name in ("../up", "a/b", ".hidden", "", "x" * 65, "a\x00b"):
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        plane.call("PUT", f"/artifacts/sha256/{digest}", model.read_bytes())
        body = {"name": name, "digest": f"sha256:{digest}"}
        status, answer = plane.call("POST", "/api/v1/models", body)
        assert status == 422, (name, answer)
    for path in ("/artifacts/sha256/..%2f..%2fetc%2fpasswd", "/artifacts/sha256/xyz"):
        assert plane.get(path)[0] in (404, 422)


def test_an_artifact_must_be_what_its_digest_says(plane: ControlPlane) -> None:
    status, _answer = plane.call("PUT", f"/artifacts/sha256/{'0' * 64}", b"something else")
    assert status in (409, 422)
    assert plane.get(f"/artifacts/sha256/{'0' * 64}")[0] == 404


def test_a_version_never_changes(plane: ControlPlane, tmp_path: Path) -> None:
    first = onnx_models.dense(tmp_path / "one.onnx", seed=1)
    other = onnx_models.dense(tmp_path / "two.onnx", seed=2)
    push = ("model", "push")
    fixed = ("--name", "fixed", "--version", "1")
    assert plane.shoal(*push, str(first), *fixed).returncode == 0
    assert plane.shoal(*push, str(first), *fixed).returncode == 0
    refused = plane.shoal(*push, str(other), *fixed)
    assert refused.returncode == 1
    assert "fixed" in refused.stderr


def test_a_deadline_that_nothing_can_meet_is_refused_with_a_hint(plane: ControlPlane) -> None:
    request = {
        "inputs": [tensor("a"), tensor("b")],
        "parameters": {"timeout": 1},
    }
    status, body = plane.call("POST", "/v2/models/add/infer", request)
    assert status in (429, 504)
    assert body["error"]
