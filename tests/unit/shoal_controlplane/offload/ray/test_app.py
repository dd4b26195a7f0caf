"""The application's parts that need no Ray: the model, and the protocol without HTTP."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from shoal_controlplane.offload.ray.app import model as modelfile
from shoal_controlplane.offload.ray.app import protocol
from shoal_controlplane.offload.ray.app.arguments import Arguments
from shoal_controlplane.offload.ray.app.model import (
    InputError,
    OnnxModel,
    RunError,
    StartError,
    fetch,
    load,
)
from shoal_controlplane.offload.ray.app.protocol import Answer
from shoal_shared import oip
from shoal_shared.oip import InferRequest, RequestedOutput, Tensor
from shoal_shared.signature import ModelSignature, TensorSpec

pytest.importorskip("onnxruntime")

SIGNATURE = ModelSignature(
    inputs=(
        TensorSpec(name="a", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="t", datatype="BYTES", shape=(-1,)),
    ),
    outputs=(
        TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="u", datatype="BYTES", shape=(-1,)),
    ),
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.save(
        tmp_path_factory.mktemp("m") / "m.onnx",
        [
            helper.make_node("Relu", ["a"], ["y"]),
            helper.make_node("Identity", ["t"], ["u"]),
        ],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("t", TensorProto.STRING, ["M"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("u", TensorProto.STRING, ["M"]),
        ],
        [],
    )


@pytest.fixture(scope="module")
def address(artifact: Path) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/m":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(artifact.read_bytes())

        def log_message(self, *_: object) -> None:
            """Nothing on the test's screen."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def told(artifact: Path, url: str = "", **changed: Any) -> Arguments:
    content = artifact.read_bytes()
    values: dict[str, Any] = {
        "owner": "ray",
        "name": "m",
        "version": "1",
        "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "size": len(content),
        "url": url,
        "signature": SIGNATURE,
        "token_sha256": hashlib.sha256(b"token").hexdigest(),
    }
    return Arguments(**{**values, **changed})


def question(a: Any = ((1.0, -2.0),), t: tuple[bytes, ...] = (b"x",)) -> InferRequest:
    text = np.empty(len(t), dtype=object)
    text[:] = t
    return InferRequest(
        [Tensor("a", "FP32", np.array(a, np.float32)), Tensor("t", "BYTES", text)], id="7"
    )


def test_a_model_is_fetched_and_answers(artifact: Path, address: str, tmp_path: Path) -> None:
    model = load(told(artifact, f"{address}/m"), tmp_path)
    reply = model.run(question(t=(b"x", "ü".encode())))
    assert reply.id == "7"
    assert [tensor.name for tensor in reply.outputs] == ["y", "u"]
    np.testing.assert_array_equal(reply.outputs[0].data, [[1.0, 0.0]])
    assert list(reply.outputs[1].data) == [b"x", "ü".encode()]


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("/m", {"digest": "sha256:" + "0" * 64}, "its digest is"),
        ("/m", {"size": 3}, "sends more than the 3 bytes"),
        ("/missing", {}, "answered 404"),
    ],
)
def test_other_bytes_are_refused(
    artifact: Path, address: str, tmp_path: Path, path: str, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(StartError, match=said):
        load(told(artifact, address + path, **change), tmp_path)


def test_bytes_that_come_too_slowly_are_refused(
    artifact: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelfile, "FETCH_TIMEOUT_S", -1.0)
    with pytest.raises(StartError, match="too slowly"):
        load(told(artifact, f"{address}/m"), tmp_path)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "", "http://127.0.0.1:1/m", "http://[::1", "http:///m"]
)
def test_addresses_that_lead_nowhere_are_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        fetch(url, "sha256:0", 10, tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(StartError, match="cannot load"):
        OnnxModel(path, SIGNATURE, 1, gpu=False)


def test_another_signature_is_refused(artifact: Path) -> None:
    other = ModelSignature(inputs=SIGNATURE.inputs[:1], outputs=SIGNATURE.outputs)
    with pytest.raises(StartError, match="the inputs of the model are"):
        OnnxModel(artifact, other, 1, gpu=False)


def test_a_gpu_that_is_not_there_is_told(artifact: Path) -> None:
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(StartError, match="CUDA"):
        OnnxModel(artifact, SIGNATURE, 1, gpu=True)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (InferRequest([]), "input 'a' is missing"),
        (InferRequest([*question().inputs, question().inputs[0]]), "given twice"),
        (InferRequest([*question().inputs, Tensor("z", "FP32", np.zeros(1))]), "no input 'z'"),
        (question(a=[[1.0, 2.0, 3.0]]), "has shape"),
        (question(t=(b"\xff",)), "not UTF-8"),
        (InferRequest([Tensor("a", "INT8", np.zeros((1, 2), np.int8))]), "is INT8"),
        (
            InferRequest(question().inputs, [RequestedOutput("nothing")]),
            "no output 'nothing'",
        ),
        (InferRequest(question().inputs, [RequestedOutput("y")] * 2), "asked for twice"),
        (
            InferRequest(question().inputs, [RequestedOutput("y", classification=2)]),
            "classification",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_told(
    artifact: Path, request_: InferRequest, said: str
) -> None:
    model = OnnxModel(artifact, SIGNATURE, 1, gpu=False)
    with pytest.raises(InputError, match=said):
        model.run(request_)


@pytest.mark.parametrize(
    ("shown", "known"),
    [
        ("Bearer token", True),
        ("bearer token", True),
        ("Bearer tokem", False),
        ("Basic token", False),
        ("token", False),
        ("", False),
        (None, False),
    ],
)
def test_the_token_is_demanded(artifact: Path, shown: str | None, known: bool) -> None:
    assert protocol.may_ask(shown, told(artifact).token_sha256) is known


@pytest.mark.parametrize("binary", [True, False, None])
@pytest.mark.parametrize("every", [True, False])
def test_outputs_are_binary_where_asked_for(
    artifact: Path, binary: bool | None, every: bool
) -> None:
    arguments = told(artifact)
    asked = question()
    asked.outputs = [RequestedOutput("u", binary)]
    if every:
        asked.parameters = {"binary_data_output": True}
    buffers, length = oip.encode_request(asked)
    parsed = protocol.decoded(b"".join(buffers), str(length))
    assert isinstance(parsed, InferRequest)
    answer = protocol.encoded(
        parsed, OnnxModel(artifact, SIGNATURE, 1, gpu=False).run(parsed), arguments
    )
    expected = every if binary is None else binary
    assert (oip.HEADER_LENGTH in answer.headers) is expected
    told_length = answer.headers.get(oip.HEADER_LENGTH)
    reply = oip.decode_reply(answer.body, int(told_length) if told_length else None)
    assert (reply.model_name, reply.model_version, reply.id) == ("m", "1", "7")
    assert list(reply.outputs[0].data) == [b"x"]


@pytest.mark.parametrize(
    ("body", "length"),
    [(b"", None), (b"{}", "x"), (b"{}", "9" * 40), (b"{}", "50"), (b"{}", "-1"), (b"\xff", None)],
)
def test_bodies_that_are_no_requests_are_refused(body: bytes, length: str | None) -> None:
    answer = protocol.decoded(body, length)
    assert isinstance(answer, Answer)
    assert answer.status == 400
    assert json.loads(answer.body)["error"]


def test_bytes_that_json_cannot_carry_are_refused(artifact: Path) -> None:
    text = np.empty(1, dtype=object)
    text[:] = [b"\xff"]
    reply = oip.InferReply([Tensor("u", "BYTES", text)])
    answer = protocol.encoded(InferRequest([]), reply, told(artifact))
    assert answer.status == 400
    assert "UTF-8" in json.loads(answer.body)["error"]


def test_metadata_names_inputs_and_outputs(artifact: Path) -> None:
    answer = json.loads(protocol.metadata(told(artifact)).body)
    assert answer["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [-1, 2]}
    assert answer["versions"] == ["1"]


def test_failures_have_their_status() -> None:
    assert protocol.failed(InputError("bad")).status == 400
    assert protocol.failed(RunError("broken")).status == 500
