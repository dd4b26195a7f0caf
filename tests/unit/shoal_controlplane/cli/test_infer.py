"""`shoal infer` against a gateway that decodes what it gets."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from starlette.responses import JSONResponse, Response

from shoal_controlplane.cli import asking
from shoal_controlplane.cli.tensorfiles import brief, load_tensor, save_tensors
from shoal_shared import oip
from shoal_shared.oip import InferReply, Tensor

LABELS = {
    "model": {"name": "m"},
    "input": {"kind": "image", "tensor": "x", "layout": "NHWC", "size": [2, 2],
              "resize": "stretch"},
    "output": {"kind": "labels", "tensor": "y", "labels": ["cat", "dog", "fish"], "top_k": 2},
}  # fmt: skip
TEXT = {
    "model": {"name": "m"},
    "input": {"kind": "text", "tensor": "x", "shape": [1, 1]},
    "output": {"kind": "labels", "tensor": "y", "labels": ["cat", "dog", "fish"], "top_k": 1},
}


class Gateway:
    """Answers `m:2` with the tensors it was given, and keeps what it was asked."""

    def __init__(self, plane, documents) -> None:
        self.requests: list[oip.InferRequest] = []
        self.headers: list[dict[str, str]] = []
        self.outputs = [Tensor("y", "FP32", np.array([[0.1, 0.7, 0.2]], np.float32))]
        plane.answers.update(
            {
                "GET /v2/models/m": {"name": "m", "versions": ["1", "2"]},
                "GET /v2/models/m/versions/1": {"name": "m", "versions": ["1", "2"]},
                "POST /v2/models/m/versions/1/infer": self.infer,
                "POST /v2/models/m/versions/2/infer": self.infer,
            }
        )
        self._plane, self._documents = plane, documents
        self.describe()

    def describe(self, **more) -> None:
        """What the registry says about the model."""
        for version in ("1", "2"):
            document = self._documents.version(version=version, **more)
            self._plane.answers[f"GET /api/v1/models/m/versions/{version}"] = document

    def infer(self, call) -> Response:
        length = int(call.headers[oip.HEADER_LENGTH.lower()])
        self.requests.append(oip.decode_request(call.body, length))
        self.headers.append(call.headers)
        parameters = {"device": "jetson-1", "service_us": 1000}
        version = call.path.split("/")[5]
        reply = InferReply(self.outputs, "m", version, parameters=parameters)
        buffers, length = oip.encode_reply(reply)
        return Response(
            b"".join(bytes(part) for part in buffers),
            headers={oip.HEADER_LENGTH: str(length)},
            media_type="application/octet-stream",
        )


@pytest.fixture
def gateway(plane, documents) -> Gateway:
    return Gateway(plane, documents)


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "cup.png"
    Image.new("RGB", (4, 2), (255, 0, 0)).save(path)
    return path


@pytest.fixture
def array(tmp_path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(3, dtype=np.float32).reshape(1, 3))
    return path


def test_a_picture_becomes_names_and_scores(shoal, gateway, picture):
    gateway.describe(card=LABELS)
    done = shoal("infer", "m", "--image", str(picture), "--timeout-ms", "1500")
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[:2] == ["dog  0.70", "fish  0.20"]
    assert lines[2].startswith("answered by jetson-1 in ") and lines[2].endswith(" ms")
    (tensor,) = gateway.requests[0].inputs
    assert (tensor.name, tensor.datatype, tensor.data.shape) == ("x", "FP32", (1, 2, 2, 3))
    assert tensor.data[0, 0, 0].tolist() == [255.0, 0.0, 0.0]
    assert gateway.headers[0]["shoal-timeout-ms"] == "1500"
    assert gateway.requests[0].parameters == {"binary_data_output": True}


def test_a_text(shoal, gateway):
    gateway.describe(card=TEXT)
    done = shoal("infer", "m", "--text", "grüße")
    assert done.out.splitlines()[0] == "dog  0.70"
    (tensor,) = gateway.requests[0].inputs
    assert (tensor.datatype, tensor.data[0, 0].decode()) == ("BYTES", "grüße")


@pytest.mark.parametrize(("style", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_an_answer_for_programs(shoal, gateway, picture, style, parse):
    gateway.describe(card=LABELS)
    answer = parse(shoal("infer", "m:1", "--image", str(picture), "-o", style).out)
    assert (answer["model"], answer["version"], answer["device"]) == ("m", "1", "jetson-1")
    assert answer["milliseconds"] > 0
    assert [item["label"] for item in answer["answer"]["ranking"]] == ["dog", "fish"]


def test_tensors_go_and_come_as_they_are(shoal, gateway, array):
    done = shoal("infer", "m", "--input", f"x=@{array}")
    assert done.out.splitlines()[0] == "y  FP32 [1, 3]  0.1, 0.7, 0.2"
    assert gateway.requests[0].inputs[0].data.tolist() == [[0.0, 1.0, 2.0]]
    document = json.loads(shoal("infer", "m", "--input", f"x=@{array}", "-o", "json").out)
    assert document["outputs"][0]["shape"] == [1, 3]


def test_outputs_are_saved(shoal, gateway, array, tmp_path):
    gateway.outputs = [
        *gateway.outputs,
        Tensor("../../evil", "BYTES", np.array([b"a", b"bc"], dtype=object)),
    ]
    folder = tmp_path / "out" / "here"
    done = shoal("infer", "m", "--input", f"x=@{array}", "--output", str(folder))
    assert done.code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["_.._evil.npy", "y.npy"]
    assert np.load(folder / "y.npy").tolist() == gateway.outputs[0].data.tolist()
    assert np.load(folder / "_.._evil.npy").tolist() == [b"a", b"bc"]
    assert str(folder / "y.npy") in done.out


def test_a_batch_is_not_read_as_one_answer(shoal, gateway, tmp_path):
    gateway.describe(card=LABELS)
    gateway.outputs = [Tensor("y", "FP32", np.zeros((2, 3), np.float32))]
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2, 3), np.float32))
    done = shoal("infer", "m", "--input", f"x=@{tmp_path / 'x.npy'}")
    assert done.out.startswith("y  FP32 [2, 3]")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--text", "a", "--image", "b.png"),
        ("--input", "x"),
        ("--input", "x=file.npy"),
        ("--input", "=@file.npy"),
        ("--input", "x=@"),
        ("--text", "a", "--timeout-ms", "0"),
    ],
)
def test_wrong_usage_is_2_and_nothing_is_asked(plane, shoal, arguments):
    assert shoal("infer", "m", *arguments).code == 2
    assert not plane.calls


def test_a_model_without_a_card_takes_tensors_only(shoal, gateway, picture):
    done = shoal("infer", "m", "--image", str(picture))
    assert done.code == 1
    assert "m:2 has no model card" in done.err and "--input NAME=@FILE.npy" in done.err
    assert not gateway.requests


def test_a_model_that_is_not_deployed(plane, shoal):
    plane.answers["GET /v2/models/m"] = JSONResponse({"error": "model 'm' is not deployed"}, 404)
    done = shoal("infer", "m", "--text", "a")
    assert (done.code, done.out) == (1, "")
    assert done.err == "Error: model 'm' is not deployed: see `shoal deployment list`\n"


def test_what_the_gateway_says_against_a_request_is_passed_on(plane, shoal, gateway, array):
    refusal = JSONResponse({"error": "no device serves m:2 now"}, 503)
    plane.answers["POST /v2/models/m/versions/2/infer"] = refusal
    done = shoal("infer", "m", "--input", f"x=@{array}")
    assert (done.code, done.err) == (1, "Error: no device serves m:2 now\n")


@pytest.mark.parametrize(
    "reply",
    [
        Response(b"{", media_type="application/json"),
        Response(b"{}", headers={oip.HEADER_LENGTH: "999"}),
        Response(b"{}", headers={oip.HEADER_LENGTH: "many"}),
    ],
)
def test_a_reply_that_is_none_is_one_sentence(plane, shoal, gateway, array, reply):
    plane.answers["POST /v2/models/m/versions/2/infer"] = reply
    done = shoal("infer", "m", "--input", f"x=@{array}")
    assert done.code == 1
    assert "the gateway's reply cannot be read" in done.err and done.err.count("\n") == 1


def test_a_broken_picture_is_one_sentence(shoal, gateway, tmp_path):
    gateway.describe(card=LABELS)
    (tmp_path / "cup.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    done = shoal("infer", "m", "--image", str(tmp_path / "cup.png"))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1


def test_outputs_that_do_not_fit_the_card_are_one_sentence(shoal, gateway, picture):
    gateway.describe(card=LABELS)
    gateway.outputs = [Tensor("z", "FP32", np.zeros((1, 3), np.float32))]
    done = shoal("infer", "m", "--image", str(picture))
    assert done.code == 1
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1


def test_too_slow(plane, shoal, gateway, array, monkeypatch):
    monkeypatch.setattr(asking, "GRACE_S", 0.02)
    given_up = threading.Event()

    def late(call):
        given_up.wait(10)
        return gateway.infer(call)

    plane.answers["POST /v2/models/m/versions/2/infer"] = late
    done = shoal("infer", "m", "--input", f"x=@{array}", "--timeout-ms", "1")
    given_up.set()
    assert done.code == 1
    assert "in time" in done.err


@pytest.mark.parametrize(
    "data", [b"", b"not numpy", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x93NUMPY\x09\x00v\x00"]
)
def test_what_is_no_array_is_one_sentence(shoal, gateway, tmp_path, data):
    (tmp_path / "x.npy").write_bytes(data)
    done = shoal("infer", "m", "--input", f"x=@{tmp_path / 'x.npy'}")
    assert done.code == 1
    assert "is not a .npy file" in done.err and done.err.count("\n") == 1


def test_arrays_of_objects_are_never_unpickled(shoal, gateway, tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    done = shoal("infer", "m", "--input", f"x=@{tmp_path / 'x.npy'}")
    assert done.code == 1
    assert not gateway.requests


def test_a_missing_file_and_a_strange_type(shoal, gateway, tmp_path):
    done = shoal("infer", "m", "--input", f"x=@{tmp_path / 'none.npy'}")
    assert "cannot be read: No such file" in done.err
    np.save(tmp_path / "c.npy", np.zeros(1, np.complex64))
    done = shoal("infer", "m", "--input", f"x=@{tmp_path / 'c.npy'}")
    assert (done.code, "cannot be sent" in done.err) == (1, True)


def test_bf16_is_16_bits_where_the_model_says_so(tmp_path):
    np.save(tmp_path / "x.npy", np.array([0x3F80], np.uint16))
    assert load_tensor("x", tmp_path / "x.npy", "BF16").datatype == "BF16"
    assert load_tensor("x", tmp_path / "x.npy", "UINT16").datatype == "UINT16"
    assert brief(load_tensor("x", tmp_path / "x.npy", "BF16")) == "x  BF16 [1]  1"


def test_tensors_whose_names_collide_as_files_are_all_kept(tmp_path):
    tensors = [Tensor(name, "INT32", np.array([i])) for i, name in enumerate(("a/b", "a:b", ""))]
    paths = save_tensors(tensors, tmp_path)
    assert [int(np.load(path)[0]) for path in paths] == [0, 1, 2]


def test_where_outputs_cannot_be_saved_it_is_one_sentence(shoal, gateway, array, tmp_path):
    (tmp_path / "file").write_text("")
    done = shoal("infer", "m", "--input", f"x=@{array}", "--output", str(tmp_path / "file"))
    assert done.code == 1
    assert "cannot be saved" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(("name", "number"), [("interactive", 1), ("standard", 2), ("bulk", 3)])
def test_who_goes_first_is_a_parameter_of_the_request(shoal, gateway, array, name, number):
    done = shoal("infer", "m", "--input", f"x=@{array}", "--priority", name)
    assert done.code == 0
    assert gateway.requests[0].parameters["priority"] == number


def test_a_priority_that_there_is_not(plane, shoal, array):
    assert shoal("infer", "m", "--input", f"x=@{array}", "--priority", "urgent").code == 2
    assert plane.calls == []


@pytest.mark.parametrize(("given", "number"), [((), 3), (("--priority", "standard"), 2)])
def test_a_folder_can_wait_for_others(shoal, gateway, tmp_path, given, number):
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "a.npy", np.zeros((1, 3), np.float32))
    assert shoal("infer", "m", "--batch-dir", str(folder), *given).code == 0
    assert [request.parameters["priority"] for request in gateway.requests] == [number]


def test_an_answer_of_a_target_says_so(plane, shoal, gateway, array):
    def infer(call) -> Response:
        reply = InferReply(gateway.outputs, "m", "2", parameters={"target": "aks"})
        buffers, length = oip.encode_reply(reply)
        headers = {oip.HEADER_LENGTH: str(length)}
        return Response(b"".join(bytes(part) for part in buffers), headers=headers)

    plane.answers["POST /v2/models/m/versions/2/infer"] = infer
    out = shoal("infer", "m", "--input", f"x=@{array}").out
    assert out.splitlines()[-1].startswith("answered by target aks in ")
    document = json.loads(shoal("infer", "m", "--input", f"x=@{array}", "-o", "json").out)
    assert (document["target"], document["device"]) == ("aks", None)
