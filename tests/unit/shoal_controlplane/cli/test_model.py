"""`shoal model` against canned answers: what is read, what is sent, what is not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, Response
from support import onnx_models

from shoal_controlplane.cli import modelfiles as command

MODELS = "/api/v1/models"
PUSH = ("model", "push", "--no-golden")
CONFIG = """
name: "m"
max_batch_size: 8
output [{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "%s" }]
"""
CARD = """
[model]
name = "m"
description = "Which animal it is"

[input]
kind = "image"
tensor = "x"
layout = "NCHW"
size = [8, 8]
resize = "stretch"

[output]
kind = "labels"
tensor = "y"
%s
"""


@pytest.fixture
def store(plane, documents):
    """A control plane that takes uploads and pushes; the artifacts that it got."""
    artifacts: dict[str, bytes] = {}

    def artifact(call):
        if call.method == "PUT":
            artifacts[call.path] = call.body
            return JSONResponse({"size_bytes": len(call.body)}, 201)
        return Response(status_code=200 if call.path in artifacts else 404)

    def push(call):
        body = json.loads(call.body)
        version = body.get("version", "1")
        return JSONResponse(
            documents.version(body["name"], version, size_bytes=5, card=body.get("card")), 201
        )

    class Answers(dict):
        def get(self, name, default=None):
            return artifact if "/artifacts/" in name else super().get(name, default)

    plane.answers = Answers({f"POST {MODELS}": push})
    yield artifacts
    plane.answers = {}


def pushes(plane) -> list[dict]:
    return [json.loads(call.body) for call in plane.calls if call.name == f"POST {MODELS}"]


def write(path: Path, data: bytes | str = b"model") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def repository(folder: Path, *versions: str, label_file: str = "labels.txt") -> Path:
    """A folder as Triton's model repository holds it."""
    for version in versions:
        write(folder / version / "model.onnx", f"model {version}")
    write(folder / "config.pbtxt", CONFIG % label_file)
    write(folder / "labels.txt", "cat\ndog\nfish\n")
    return folder


def test_a_file_is_hashed_uploaded_and_made_a_version(plane, shoal, store, tmp_path):
    file = write(tmp_path / "net.onnx", b"12345")
    digest = hashlib.sha256(b"12345").hexdigest()
    done = shoal(*PUSH, str(file), "--name", "m")
    assert (done.code, done.out) == (0, "m:1 is stored (onnx, 5 B)\n")
    path = f"/artifacts/sha256/{digest}"
    assert plane.names == [f"HEAD {path}", f"PUT {path}", f"POST {MODELS}"]
    assert store[path] == b"12345"
    assert plane.calls[1].headers["content-length"] == "5"
    assert pushes(plane) == [{"name": "m", "digest": f"sha256:{digest}", "filename": "net.onnx"}]
    assert "uploading net.onnx: 5 B" in done.err and "100 %" in done.err


def test_what_is_there_already_is_not_sent_again(plane, shoal, store, tmp_path):
    file = write(tmp_path / "net.tflite")
    shoal(*PUSH, str(file), "--name", "m")
    done = shoal(*PUSH, str(file), "--name", "m", "--version", "7", "-o", "json")
    assert [name.split()[0] for name in plane.names] == ["HEAD", "PUT", "POST", "HEAD", "POST"]
    assert "on the server already" in done.err
    assert pushes(plane)[1]["version"] == "7"
    assert [item["version"] for item in json.loads(done.out)] == ["7"]


def test_a_large_file_goes_in_pieces_with_progress(plane, shoal, store, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CHUNK", 1000)
    file = write(tmp_path / "net.onnx", bytes(10_000))
    done = shoal(*PUSH, str(file), "--name", "m")
    assert [len(body) for body in store.values()] == [10_000]
    assert [line.split(": ")[1] for line in done.err.splitlines()] == [
        "9.8 KiB",
        "30 %",
        "50 %",
        "80 %",
        "100 %",
    ]


def test_all_versions_of_a_repository_are_pushed_in_numeric_order(plane, shoal, store, tmp_path):
    folder = repository(tmp_path / "m", "10", "2")
    done = shoal(*PUSH, str(folder), "--name", "m")
    assert done.code == 0
    first, second = pushes(plane)
    assert (first["version"], second["version"]) == ("2", "10")
    assert first["config"] == (folder / "config.pbtxt").read_text()
    assert first["labels"] == {"y": ["cat", "dog", "fish"]}
    assert [line.split()[0] for line in done.out.splitlines()] == ["m:2", "m:10"]


def test_one_version_of_a_repository(plane, shoal, store, tmp_path):
    folder = repository(tmp_path / "m", "1", "2")
    shoal(*PUSH, str(folder), "--name", "m", "--version", "2")
    assert [push["version"] for push in pushes(plane)] == ["2"]
    done = shoal(*PUSH, str(folder), "--name", "m", "--version", "3")
    assert (done.code, done.err) == (1, f"Error: {folder} has no version 3, only 1, 2\n")


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "..", "sub/labels.txt"])
def test_a_label_file_outside_the_folder_is_never_read(plane, shoal, store, tmp_path, name):
    write(tmp_path / "secret.txt", "secret\n")
    folder = repository(tmp_path / "m", "1", label_file=name)
    done = shoal(*PUSH, str(folder), "--name", "m")
    assert done.code == 1
    assert "which is not in" in done.err
    assert not plane.calls


def test_a_label_file_that_is_a_link_is_never_read(plane, shoal, store, tmp_path):
    secret = write(tmp_path / "secret.txt", "secret\n")
    folder = repository(tmp_path / "m", "1")
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to(secret)
    done = shoal(*PUSH, str(folder), "--name", "m")
    assert (done.code, done.err) == (1, "Error: labels.txt is a link.\n")
    assert not plane.calls


def test_a_folder_brings_its_card_with_the_labels_inline(plane, shoal, store, tmp_path):
    write(tmp_path / "m" / "net.tflite")
    write(tmp_path / "m" / "shoal.toml", CARD % 'labels_file = "names.txt"')
    write(tmp_path / "m" / "names.txt", "cat\ndog\n")
    done = shoal(*PUSH, str(tmp_path / "m"), "--name", "m")
    assert done.out == "m:1 is stored (onnx, 5 B, with its card)\n"
    assert pushes(plane)[0]["card"]["output"]["labels"] == ["cat", "dog"]


def test_a_card_may_take_its_labels_from_the_onnx_file(plane, shoal, store, tmp_path):
    import onnx

    file = onnx_models.identity(tmp_path / "net.onnx", "FP32")
    proto = onnx.load(file)
    onnx.helper.set_model_props(proto, {"names": "cat\ndog"})
    onnx.save(proto, file)
    write(tmp_path / "shoal.toml", CARD % 'labels_metadata = "names"')
    assert shoal(*PUSH, str(file), "--name", "m").code == 0
    assert pushes(plane)[0]["card"]["output"]["labels"] == ["cat", "dog"]


def test_a_card_beside_several_models_belongs_to_none(plane, shoal, store, tmp_path):
    write(tmp_path / "a.tflite")
    write(tmp_path / "b.tflite")
    write(tmp_path / "shoal.toml", CARD % 'labels = ["cat"]')
    assert shoal(*PUSH, str(tmp_path / "a.tflite"), "--name", "a").code == 0
    assert "card" not in pushes(plane)[0]


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def several(folder: Path) -> Path:
    write(folder / "a.onnx")
    return write(folder / "b.onnx").parent


def only_config(folder: Path) -> Path:
    return write(folder / "config.pbtxt", "").parent


def empty_version(folder: Path) -> Path:
    (folder / "1").mkdir(parents=True)
    return folder


def model_folder(folder: Path) -> Path:
    (folder / "1" / "model.onnx").mkdir(parents=True)
    return folder


def broken_config(folder: Path) -> Path:
    repository(folder, "1")
    write(folder / "config.pbtxt", "output [{")
    return folder


def binary_config(folder: Path) -> Path:
    repository(folder, "1")
    write(folder / "config.pbtxt", b"\xff\xfe")
    return folder


def broken_card(folder: Path) -> Path:
    write(folder / "m.onnx", onnx_models.identity(folder.parent / "i.onnx", "FP32").read_bytes())
    return write(folder / "shoal.toml", "[model").parent


def no_onnx_with_card(folder: Path) -> Path:
    write(folder / "m.onnx", b"\xff" * 64)
    return write(folder / "shoal.toml", CARD % 'labels = ["a"]').parent


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder, "there is nothing at"),
        (lambda folder: write(folder / "m.txt"), "is no model"),
        (empty, "holds no model"),
        (several, "holds several models"),
        (only_config, "no numbered folder"),
        (empty_version, "holds no model"),
        (model_folder, "is not a file"),
        (broken_config, "config.pbtxt cannot be read"),
        (binary_config, "is not UTF-8 text"),
        (broken_card, "The model card is not valid TOML"),
        (no_onnx_with_card, "is not an ONNX model"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence_and_nothing_is_sent(
    plane, shoal, store, tmp_path, make, said
):
    done = shoal(*PUSH, str(make(tmp_path / "m")), "--name", "m")
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1
    assert not plane.calls


def test_what_the_control_plane_says_against_a_model_is_passed_on(
    plane, shoal, store, tmp_path, documents
):
    plane.answers[f"POST {MODELS}"] = documents.problem(422, "The file is not a model.")
    done = shoal(*PUSH, str(write(tmp_path / "m.onnx")), "--name", "m")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("Error: The file is not a model.\n")


def test_a_bad_name_or_version_is_wrong_usage(plane, shoal, tmp_path):
    file = str(write(tmp_path / "m.onnx"))
    assert shoal(*PUSH, file, "--name", "../m").code == 2
    assert shoal(*PUSH, file, "--name", "m", "--version", "a/b").code == 2
    assert shoal(*PUSH, file).code == 2
    assert not plane.calls


def test_list(plane, shoal):
    plane.pages(MODELS, [{"name": "m", "latest": "2", "versions": ["1", "2"]}])
    assert shoal("model", "list").out.splitlines()[1].split() == ["m", "2", "1,", "2"]
    plane.pages(MODELS, [])
    assert "no models" in shoal("model", "list").out


def test_show_is_of_the_newest_version_unless_one_is_named(plane, shoal, documents):
    card = {"model": {"description": "Which animal"}, "input": {"kind": "image"},
            "output": {"kind": "labels", "labels": ["cat", "dog"]}}  # fmt: skip
    summary = {"name": "m", "latest": "2", "versions": [{"version": "1"}, {"version": "2"}]}
    plane.answers[f"GET {MODELS}/m"] = summary
    plane.answers[f"GET {MODELS}/m/versions/2"] = documents.version(version="2", card=card)
    plane.answers[f"GET {MODELS}/m/versions/1"] = documents.version(version="1", max_batch=0)
    newest = shoal("model", "show", "m").out
    assert "m:2" in newest and "Which animal" in newest and "17.7 MiB" in newest
    assert "image in, labels out (2 labels: cat, dog)" in newest
    assert "[any, 3]" in newest and "4,652,008" in newest and "opset 17" in newest
    first = shoal("model", "show", "m:1").out
    assert "m:1" in first and "not batched" in first
    assert json.loads(shoal("model", "show", "m:1", "-o", "json").out)["version"] == "1"


@pytest.mark.parametrize("latest", [None, 3, "..", "a/b"])
def test_an_answer_that_names_no_version_is_not_followed(plane, shoal, latest):
    plane.answers[f"GET {MODELS}/m"] = {"name": "m", "latest": latest, "versions": []}
    assert shoal("model", "show", "m").code != 0
    assert plane.names == [f"GET {MODELS}/m"]


def test_delete_needs_a_version(plane, shoal, documents):
    plane.answers[f"DELETE {MODELS}/m/versions/1"] = Response(status_code=204)
    assert shoal("model", "delete", "m").code == 2
    assert shoal("model", "delete", "m:").code == 2
    assert not plane.calls
    assert shoal("model", "delete", "m:1").out == "m:1 was deleted\n"
