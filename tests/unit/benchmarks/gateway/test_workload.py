from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shoal_bench.gateway.workload import (
    SMALL,
    Workload,
    WrongAnswerError,
    make_workloads,
    write_small_model,
)


@pytest.fixture(scope="module")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> list[Workload]:
    path = tmp_path_factory.mktemp("models") / "small" / "model.onnx"
    write_small_model(path)
    return make_workloads({SMALL: path}, [SMALL])


def answer(workload: Workload, turn: int, shift: float = 0.0) -> bytes:
    array = workload.expected[turn]["y"] + np.float32(shift)
    tensor: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(array.shape)}
    if not workload.binary:
        body = json.dumps({"outputs": [tensor | {"data": array.ravel().tolist()}]}).encode()
        return b"HTTP/1.1 200 OK\r\n\r\n" + body
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    header = json.dumps({"outputs": [tensor]}).encode()
    head = f"HTTP/1.1 200 OK\r\ninference-header-content-length: {len(header)}\r\n\r\n"
    return head.encode() + header + array.tobytes()


def test_the_right_answer_passes(workloads: list[Workload]) -> None:
    assert [workload.binary for workload in workloads] == [False, True]
    for workload in workloads:
        workload.check(3, answer(workload, 3))


def test_wrong_answers_are_found(workloads: list[Workload]) -> None:
    for workload in workloads:
        with pytest.raises(WrongAnswerError, match="off by"):
            workload.check(3, answer(workload, 3, shift=1e-3))
        with pytest.raises(WrongAnswerError, match="off by"):
            # Another request's answer, as a cache of one entry would give.
            workload.check(3, answer(workload, 4))


@pytest.mark.parametrize("body", [b"", b"[]", b'{"outputs": []}', b'{"outputs": [{"name": "y"}]}'])
def test_nonsense_is_found(workloads: list[Workload], body: bytes) -> None:
    with pytest.raises(WrongAnswerError):
        workloads[0].check(0, b"HTTP/1.1 200 OK\r\n\r\n" + body)


def test_requests_are_whole_http(workloads: list[Workload]) -> None:
    for workload in workloads:
        for request, body in zip(workload.http_requests("h", 1), workload.bodies, strict=True):
            head, _, rest = request.partition(b"\r\n\r\n")
            assert rest == body
            assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")


def test_bodies_differ(workloads: list[Workload]) -> None:
    assert all(len(set(workload.bodies)) == len(workload.bodies) > 1 for workload in workloads)


def test_the_peers_handler_answers_both_encodings(
    workloads: list[Workload], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("orjson", reason="orjson is not installed: make setup-dev")
    peers = Path(__file__).parents[3] / "benchmarks" / "shoal_bench" / "gateway" / "peers"
    monkeypatch.syspath_prepend(str(peers))
    from oip import OnnxModel

    path = tmp_path / "model.onnx"
    write_small_model(path)
    model = OnnxModel(SMALL, str(path))
    for workload in workloads:
        headers = dict(workload.headers)
        length = headers.get("Inference-Header-Content-Length")
        for turn, body in enumerate(workload.bodies):
            given, header = model.answer(body, int(length) if length else None)
            assert (header is not None) is workload.binary
            head = f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {header}" if header else ""
            workload.check(turn, head.encode() + b"\r\n\r\n" + given)


def test_name_tells_model_and_encoding(workloads: list[Workload]) -> None:
    assert workloads[0].name == "small, JSON"
    assert dataclasses.replace(workloads[0], binary=True).name == "small, binary"
