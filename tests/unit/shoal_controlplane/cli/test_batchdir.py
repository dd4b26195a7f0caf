"""`shoal infer --batch-dir` against a gateway that computes y = 2 x + row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.responses import JSONResponse, Response

from shoal_controlplane.cli import batchdir, batchinputs
from shoal_controlplane.cli.batchfile import ERRORS, FILES
from shoal_shared import oip
from shoal_shared.oip import InferReply, Tensor

LABELS = {
    "model": {"name": "m"},
    "input": {"kind": "image", "tensor": "x", "layout": "NHWC", "size": [2, 2],
              "resize": "stretch"},
    "output": {"kind": "labels", "tensor": "y", "labels": ["red", "green", "blue"], "top_k": 1},
}  # fmt: skip
PICTURES = {
    "signature": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2, 2, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    },
    "card": LABELS,
}


class Gateway:
    """Answers `m:1`: the mean over all but the first and last dimension, on two devices."""

    def __init__(self, plane: Any, documents: Any) -> None:
        self.items: list[int] = []
        self.poison: float | None = None
        self.reply: Callable[[], Response] | None = None
        self._plane, self._documents = plane, documents
        plane.answers["GET /v2/models/m"] = {"name": "m", "versions": ["1"]}
        plane.answers["POST /v2/models/m/versions/1/infer"] = self.infer
        self.describe()

    def describe(self, **more: Any) -> None:
        document = self._documents.version(**more)
        self._plane.answers["GET /api/v1/models/m/versions/1"] = document

    def infer(self, call: Any) -> Response:
        request = oip.decode_request(call.body, int(call.headers[oip.HEADER_LENGTH.lower()]))
        x = request.inputs[0].data
        self.items.append(len(x))
        if self.reply is not None:
            return self.reply()
        if x.dtype == object:
            y = np.array([[len(text), 0, 0] for text in x.reshape(-1)], np.float32)
        else:
            if self.poison is not None and (x == self.poison).any():
                return JSONResponse({"error": "the device failed"}, 500)
            y = x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)
        parameters: dict[str, Any] = {"device": "jetson-1"}
        if len(x) > 1:
            parameters = {
                "device": "2 devices",
                "devices": {"jetson-1": len(x) - 1, "ascend-1": 1},
            }
        reply = InferReply([Tensor("y", "FP32", y)], "m", "1", parameters=parameters)
        buffers, length = oip.encode_reply(reply)
        return Response(b"".join(buffers), headers={oip.HEADER_LENGTH: str(length)})


@pytest.fixture
def gateway(plane: Any, documents: Any) -> Gateway:
    return Gateway(plane, documents)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, beside the current one."""
    made = tmp_path / "in"
    made.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


def rows(folder: Path, count: int) -> None:
    for number in range(count):
        np.save(folder / f"{number:04}.npy", np.full((1, 3), number, np.float32))


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_tensors_become_lines_in_the_order_of_their_names(shoal, gateway, folder, monkeypatch):
    monkeypatch.setattr(batchinputs, "REQUEST_ITEMS", 10)
    rows(folder, 47)
    (folder / "notes.md").write_text("no input")
    done = shoal("infer", "m", "--batch-dir", str(folder))
    assert done.code == 0
    found = lines("in-results.jsonl")
    assert [line["file"] for line in found] == [f"{n:04}.npy" for n in range(47)]
    for number, line in enumerate(found):
        (output,) = line["outputs"]
        assert (output["name"], output["shape"], output["data"]) == ("y", [1, 3], [number] * 3)
    assert sorted(gateway.items) == [7, 10, 10, 10, 10]
    first, *devices = done.out.splitlines()
    assert first.startswith("47 answers in ") and first.endswith(": in-results.jsonl")
    assert devices == ["ascend-1  5", "jetson-1  42"]
    assert done.err.splitlines()[0] == "asking m:1: 47 inputs"
    assert done.err.splitlines()[-1] == "asking m:1: 47 of 47"
    assert nothing_but(Path(), "in-results.jsonl")


def test_a_summary_for_programs(shoal, gateway, folder):
    rows(folder, 3)
    done = shoal("infer", "m", "--batch-dir", str(folder), "--output-file", "r.txt", "-o", "json")
    summary = json.loads(done.out)
    assert summary.pop("seconds") > 0
    assert summary.pop("items_per_second") > 0
    assert summary == {
        "model": "m",
        "version": "1",
        "inputs": 3,
        "failed": 0,
        "devices": {"ascend-1": 1, "jetson-1": 2},
        "file": "r.txt",
    }
    assert len(lines("r.txt")) == 3


def test_pictures_become_answers_and_a_broken_one_a_sentence(shoal, gateway, folder):
    gateway.describe(**PICTURES)
    for name, colour in (("c.png", "blue"), ("a.jpg", "red"), ("d.bmp", "#00ff00")):
        Image.new("RGB", (4, 4), colour).save(folder / name)
    (folder / "b.png").write_bytes(b"\x89PNG nonsense")
    done = shoal("infer", "m", "--batch-dir", str(folder))
    assert done.code == 1
    assert done.err.splitlines()[-1] == ("Error: 1 of 4 inputs failed: in-results.jsonl says why")
    found = lines("in-results.jsonl")
    assert [line["file"] for line in found] == ["a.jpg", "b.png", "c.png", "d.bmp"]
    assert "not a readable picture" in found[1]["error"]
    best = [line["answer"]["ranking"][0]["label"] for line in found if "answer" in line]
    assert best == ["red", "blue", "green"]
    assert gateway.items == [3]


def test_texts(shoal, gateway, folder):
    gateway.describe(
        signature={
            "inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1, 1]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        },
        card={
            "model": {"name": "m"},
            "input": {"kind": "text", "tensor": "x", "shape": [1, 1]},
            "output": {"kind": "labels", "tensor": "y", "labels": ["long", "b", "c"]},
        },
    )
    (folder / "a.txt").write_text("grüße")
    (folder / "b.txt").write_bytes(b"\xff\xfe")
    done = shoal("infer", "m", "--batch-dir", str(folder))
    good, bad = lines("in-results.jsonl")
    assert done.code == 1
    assert good["answer"]["ranking"][0] == {"label": "long", "score": 7.0}
    assert bad == {"file": "b.txt", "error": "The text is not valid UTF-8."}


def test_archives_for_models_of_several_inputs(shoal, gateway, folder):
    spec = {"datatype": "FP32", "shape": [-1, 3]}
    gateway.describe(
        signature={
            "inputs": [{"name": "x", **spec}, {"name": "z", **spec}],
            "outputs": [{"name": "y", **spec}],
        }
    )
    np.save(folder / "alone.npy", np.zeros((1, 3), np.float32))
    one = np.ones((1, 3), np.float32)
    np.savez(folder / "a.npz", x=one, z=one)
    np.savez(folder / "b.npz", x=one)
    np.savez(folder / "c.npz", x=np.ones((4, 3), np.float32), z=np.ones((4, 3), np.float32))
    np.savez(folder / "d.npz", x=one[0], z=one[0])
    np.savez(folder / "e.npz", x=one, z=np.ones((2, 3), np.float32))
    np.savez(folder / "f.npz", x=one, z=one.astype(np.float64))
    shoal("infer", "m", "--batch-dir", str(folder))
    found = {line["file"]: line for line in lines("in-results.jsonl")}
    assert list(found) == [f"{name}.npz" for name in "abcdef"]
    assert found["a.npz"]["outputs"][0]["shape"] == [1, 3]
    assert "it holds 'x', but the model takes 'x', 'z'" in found["b.npz"]["error"]
    assert found["c.npz"]["outputs"][0]["shape"] == [4, 3]
    assert found["d.npz"]["outputs"][0]["shape"] == [1, 3]
    assert found["e.npz"]["error"] == "its arrays are empty or not equally long"
    assert "'z' is FP64 [1, 3], but the model takes FP32" in found["f.npz"]["error"]
    assert gateway.items == [6]


def test_shapes_that_differ_go_in_different_requests(shoal, gateway, folder):
    spec = {"datatype": "FP32", "shape": [-1, -1, 3]}
    gateway.describe(
        signature={
            "inputs": [{"name": "x", **spec}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        }
    )
    for number in range(12):
        shape = (1, 1 + number % 3, 3)
        np.save(folder / f"{number:02}.npy", np.full(shape, number, np.float32))
    assert shoal("infer", "m", "--batch-dir", str(folder)).code == 0
    assert sorted(gateway.items) == [4, 4, 4]
    found = [line["outputs"][0]["data"] for line in lines("in-results.jsonl")]
    assert found == [[number] * 3 for number in range(12)]


def test_a_model_without_a_batch_dimension_gets_one_at_a_time(shoal, gateway, folder):
    gateway.describe(max_batch=0)
    rows(folder, 3)
    assert shoal("infer", "m", "--batch-dir", str(folder)).code == 0
    assert gateway.items == [1, 1, 1]


def test_outputs_are_stacked(shoal, gateway, folder):
    rows(folder, 5)
    np.save(folder / "0002.npy", np.zeros((2, 3), np.float32))
    (folder / "0003.npy").write_bytes(b"nonsense")
    done = shoal("infer", "m", "--batch-dir", str(folder), "--output-file", "out.npz")
    assert done.code == 1
    with np.load("out.npz", allow_pickle=False) as found:
        assert set(found.files) == {"y", FILES, ERRORS}
        assert found["y"].dtype == np.float32
        assert found["y"].tolist() == [[v] * 3 for v in (0, 1, 0, 0, 4)]
        assert found[FILES].tolist() == [f"{n:04}.npy" for n in range(5)]
        errors = found[ERRORS].tolist()
    assert [bool(error) for error in errors] == [False, False, True, True, False]
    assert "has 2 rows" in errors[2]
    assert nothing_but(Path(), "out.npz")


def test_texts_cannot_be_stacked(shoal, gateway, folder):
    rows(folder, 1)
    gateway.describe(
        signature={
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1, 3]}],
        }
    )
    done = shoal("infer", "m", "--batch-dir", str(folder), "--output-file", "out.npz")
    assert (done.code, "only a .jsonl file can hold" in done.err) == (1, True)
    assert not gateway.items


def test_an_input_that_makes_a_request_fail_is_found(shoal, gateway, folder):
    rows(folder, 64)
    gateway.poison = 17.0
    done = shoal("infer", "m", "--batch-dir", str(folder))
    assert done.code == 1
    failed = [line for line in lines("in-results.jsonl") if "error" in line]
    assert failed == [{"file": "0017.npy", "error": "the device failed"}]


def test_when_nobody_answers_any_more_the_rest_is_not_asked(shoal, gateway, folder, monkeypatch):
    monkeypatch.setattr(batchinputs, "REQUEST_ITEMS", 1)
    monkeypatch.setattr(batchdir, "UNDER_WAY", 1)
    rows(folder, 30)
    gateway.reply = lambda: JSONResponse({"error": "no device serves m:1 now"}, 503)
    done = shoal("infer", "m", "--batch-dir", str(folder))
    assert "30 of 30 inputs failed" in done.err
    found = lines("in-results.jsonl")
    assert len(found) == 30
    assert all("no device serves m:1 now" in line["error"] for line in found)
    assert len(gateway.items) <= batchdir.GIVE_UP + 1


def test_a_reply_of_another_length_is_an_error_of_its_inputs(shoal, gateway, folder):
    rows(folder, 2)

    def short() -> Response:
        reply = InferReply([Tensor("y", "FP32", np.zeros((3, 3), np.float32))], "m", "1")
        buffers, length = oip.encode_reply(reply)
        return Response(b"".join(buffers), headers={oip.HEADER_LENGTH: str(length)})

    gateway.reply = short
    done = shoal("infer", "m", "--batch-dir", str(folder))
    assert done.code == 1
    assert all("for 1 items" in line["error"] for line in lines("in-results.jsonl"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--text", "a"),
        ("--image", "a.png"),
        ("--input", "x=@a.npy"),
        ("--output", "dir"),
    ],
)
def test_wrong_usage_is_2_and_nothing_is_asked(plane, shoal, folder, arguments):
    assert shoal("infer", "m", "--batch-dir", str(folder), *arguments).code == 2
    assert shoal("infer", "m", "--text", "a", "--output-file", "f").code == 2
    assert not plane.calls


def test_a_folder_without_inputs_and_none_at_all(shoal, gateway, folder):
    (folder / "a.png").write_bytes(b"no card, no pictures")
    done = shoal("infer", "m", "--batch-dir", str(folder))
    assert (done.code, "holds no files that m:1 takes: .npy, .npz" in done.err) == (1, True)
    done = shoal("infer", "m", "--batch-dir", str(folder / "none"))
    assert (done.code, "cannot be read: No such file" in done.err) == (1, True)
    assert nothing_but(Path())


def test_where_nothing_can_be_written_nothing_is_asked(shoal, gateway, folder):
    rows(folder, 1)
    for target in (folder, folder / "none" / "r.jsonl"):
        done = shoal("infer", "m", "--batch-dir", str(folder), "--output-file", str(target))
        assert (done.code, done.err.count("\n")) == (1, 1)
    assert not gateway.items


def test_ctrl_c_leaves_the_old_file_as_it_was(shoal, gateway, folder, monkeypatch):
    rows(folder, 5)
    Path("in-results.jsonl").write_text("old\n")

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(batchdir, "load_input", interrupted)
    done = shoal("infer", "m", "--batch-dir", str(folder))
    assert done.code == 130
    assert Path("in-results.jsonl").read_text() == "old\n"
    assert nothing_but(Path(), "in-results.jsonl")


def test_a_name_that_is_no_text(shoal, gateway, folder):
    rows(folder, 1)
    (folder / "0000.npy").rename(os.fsdecode(bytes(folder) + b"/\xff.npy"))
    assert shoal("infer", "m", "--batch-dir", str(folder)).code == 0
    assert lines("in-results.jsonl")[0]["file"] == "\udcff.npy"
