"""Golden cases at `shoal model push`: recorded by running real models in the child, or given."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from starlette.responses import JSONResponse, Response
from support import onnx_models

from shoal_controlplane.cli import golden, reference
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.reference import (
    ReferenceFailedError,
    ReferenceModel,
    RuntimeMissingError,
)
from shoal_shared.golden import decode

MODELS = "/api/v1/models"
CARD = """
[model]
name = "m"
[input]
kind = "image"
tensor = "x"
layout = "NCHW"
size = [4, 6]
resize = "stretch"
mean = 127.5
scale = 0.01
[output]
kind = "labels"
tensor = "y"
labels = ["a"]
"""


@pytest.fixture
def store(plane, documents):
    """A control plane that takes uploads and pushes; the artifacts that it got, by digest."""
    artifacts: dict[str, bytes] = {}

    def artifact(call):
        digest = f"sha256:{call.path.rpartition('/')[2]}"
        if call.method == "PUT":
            artifacts[digest] = call.body
            return JSONResponse({}, 201)
        return Response(status_code=200 if digest in artifacts else 404)

    class Answers(dict):
        def get(self, name, default=None):
            return artifact if "/artifacts/" in name else super().get(name, default)

    def push(call):
        body = json.loads(call.body)
        return JSONResponse(documents.version(body["name"], body.get("version", "1")), 201)

    plane.answers = Answers({f"POST {MODELS}": push})
    plane.pages(MODELS, [{"name": "m", "latest": "1", "versions": ["1"]}])
    yield artifacts
    plane.answers = {}


def pushed(plane) -> dict:
    return json.loads(next(call.body for call in plane.calls if call.name == f"POST {MODELS}"))


def test_a_push_records_the_outputs_of_made_up_inputs(plane, shoal, store, tmp_path):
    file = onnx_models.dense(tmp_path / "m.onnx")
    done = shoal("model", "push", str(file), "--name", "m")
    assert done.code == 0
    assert "recording golden outputs of m.onnx" in done.err
    cases = decode(store[pushed(plane)["golden"]["digest"]]).cases
    weights = numpy_helper.to_array(onnx.load(file).graph.initializer[0])
    assert [case.inputs["x"].shape for case in cases] == [(1, 16), (2, 16)]
    for case in cases:
        assert 0 <= case.inputs["x"].min() < case.inputs["x"].max() <= 1
        wanted = np.maximum(case.inputs["x"] @ weights, 0)
        np.testing.assert_allclose(case.outputs["y"], wanted, rtol=1e-5)


def test_the_same_model_gives_the_same_cases(tmp_path):
    file = onnx_models.dense(tmp_path / "m.onnx")
    assert golden.recorded(file, None) == golden.recorded(file, None)


def test_a_picture_gets_the_size_and_values_that_the_card_says(plane, shoal, store, tmp_path):
    onnx_models.identity(tmp_path / "m.onnx", "FP32", ("N", 3, "H", "W"))
    (tmp_path / "shoal.toml").write_text(CARD)
    shoal("model", "push", str(tmp_path), "--name", "m")
    picture = decode(store[pushed(plane)["golden"]["digest"]]).cases[0].inputs["x"]
    assert picture.shape == (1, 3, 4, 6)
    assert -1.28 < picture.min() < -0.5 < 0.5 < picture.max() < 1.28


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP16", "FP64", "BYTES"])
def test_inputs_of_every_kind(tmp_path, datatype):
    file = onnx_models.identity(tmp_path / "m.onnx", datatype)
    for case in decode(golden.recorded(file, None)).cases:
        assert np.array_equal(case.inputs["x"], case.outputs["y"])


def test_other_sizes_are_tried_where_the_smallest_is_refused(tmp_path):
    value = helper.make_tensor_value_info
    kernel = numpy_helper.from_array(np.ones((1, 1, 64, 64), np.float32), "w")
    file = onnx_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [value("y", TensorProto.FLOAT, ["N", 1, None, None])],
        [kernel],
    )
    assert decode(golden.recorded(file, None)).cases[0].inputs["x"].shape == (1, 1, 224, 224)


def test_a_model_that_is_not_the_same_twice_has_no_golden_outputs(plane, shoal, store, tmp_path):
    value = helper.make_tensor_value_info
    onnx_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("RandomUniformLike", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["N", 3])],
        [value("y", TensorProto.FLOAT, ["N", 3])],
    )
    done = shoal("model", "push", str(tmp_path), "--name", "m")
    assert done.code == 0
    assert "no golden outputs were recorded" in done.err
    assert "other outputs for the same inputs" in done.err
    assert "golden" not in pushed(plane)


def test_without_the_runtime_a_push_succeeds_with_a_note(
    plane, shoal, store, tmp_path, monkeypatch
):
    file = onnx_models.dense(tmp_path / "m.onnx")
    monkeypatch.setattr(reference, "find_spec", lambda name: None)
    done = shoal("model", "push", str(file), "--name", "m")
    assert done.code == 0
    assert "onnxruntime is not installed here: pip install 'shoal[cpu]'" in done.err
    assert "golden" not in pushed(plane)
    np.savez(tmp_path / "g.npz", x=np.ones((1, 16), np.float32))
    asked = shoal("model", "push", str(file), "--name", "m", "--golden", str(tmp_path / "g.npz"))
    assert asked.code == 1
    assert "pip install 'shoal[cpu]'" in asked.err
    with pytest.raises(RuntimeMissingError, match=r"ai_edge_litert.*shoal\[tflite\]"):
        reference.require_runtime("tflite")


def test_a_version_that_is_there_keeps_its_golden_outputs(plane, shoal, store, tmp_path):
    file = onnx_models.dense(tmp_path / "m.onnx")
    shoal("model", "push", str(file), "--name", "m", "--version", "1")
    assert "golden" not in pushed(plane)
    plane.calls.clear()
    shoal("model", "push", str(file), "--name", "m", "--version", "2")
    assert "golden" in pushed(plane)


def test_given_inputs_and_outputs_go_as_they_are(plane, shoal, store, tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(b"never run")
    x, y = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)
    np.savez(tmp_path / "g.npz", **{"input:x": x, "output:y": y})
    arguments = ("--golden", str(tmp_path / "g.npz"))
    assert shoal("model", "push", str(file), "--name", "m", *arguments).code == 0
    (case,) = decode(store[pushed(plane)["golden"]["digest"]]).cases
    assert np.array_equal(case.inputs["x"], x) and np.array_equal(case.outputs["y"], y)


def test_outputs_are_computed_for_inputs_alone(plane, shoal, store, tmp_path):
    onnx_models.identity(tmp_path / "m.onnx", "FP32")
    (tmp_path / "shoal.toml").write_text(CARD + '[golden]\ninputs = "mine.npz"\n')
    np.savez(tmp_path / "mine.npz", x=np.full((1, 2), 7, np.float32))
    assert shoal("model", "push", str(tmp_path), "--name", "m").code == 0
    (case,) = decode(store[pushed(plane)["golden"]["digest"]]).cases
    assert case.outputs["y"].tolist() == [[7, 7]]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"input:x": 1.0, "y": 1.0}, "must hold arrays named"),
        ({"output:y": 1.0}, "must hold arrays named"),
        ({"x": "no number"}, "cannot be run on the CPU"),
        ({"x": np.array([object()])}, "is not a .npz file"),
        ({"x": np.zeros(3, np.complex64)}, "cannot be used"),
    ],
)
def test_a_golden_file_that_cannot_be_used(plane, shoal, store, tmp_path, arrays, said):
    file = onnx_models.identity(tmp_path / "m.onnx", "FP32")
    np.savez(tmp_path / "g.npz", **arrays)
    arguments = ("--golden", str(tmp_path / "g.npz"))
    done = shoal("model", "push", str(file), "--name", "m", *arguments)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert said in done.err
    assert not store


def test_a_file_that_is_no_npz_or_too_large(tmp_path):
    (tmp_path / "g.npz").write_bytes(b"PK no")
    with pytest.raises(CliError, match=r"not a \.npz file"):
        golden.given(tmp_path / "g.npz", tmp_path / "m.onnx")
    np.savez_compressed(tmp_path / "g.npz", x=np.zeros(20 << 20, np.float32))
    with pytest.raises(CliError, match="more than 67108864"):
        golden.given(tmp_path / "g.npz", tmp_path / "m.onnx")


def test_golden_inputs_of_a_card_are_no_link(plane, shoal, store, tmp_path):
    onnx_models.identity(tmp_path / "m.onnx", "FP32")
    (tmp_path / "shoal.toml").write_text(CARD + '[golden]\ninputs = "mine.npz"\n')
    (tmp_path / "mine.npz").symlink_to("/etc/passwd")
    done = shoal("model", "push", str(tmp_path), "--name", "m")
    assert done.code == 1 and "is no file" in done.err
    assert not plane.calls


def test_variants_come_from_options_and_from_the_folder(plane, shoal, store, tmp_path):
    folder = tmp_path / "m"
    (folder / "variants").mkdir(parents=True)
    onnx_models.dense(folder / "m.onnx")
    (folder / "variants" / "int8.onnx").write_bytes(b"int8")
    (folder / "variants" / "npu@qualcomm-soc57.onnx").write_bytes(b"npu")
    other = tmp_path / "odd@name.tflite"
    other.write_bytes(b"tflite")
    options = ("--variant", f"lite={other}", "--variant", f"dla={folder / 'm.onnx'}@nvidia-sm87")
    done = shoal("model", "push", str(folder), "--name", "m", "--no-golden", *options)
    assert done.code == 0
    found = {v["name"]: (v["digest"], v["target"]) for v in pushed(plane)["variants"]}
    named = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("int8", "npu")}
    assert found["int8"] == (f"sha256:{named['int8']}", "")
    assert found["npu"] == (f"sha256:{named['npu']}", "qualcomm-soc57")
    assert store[found["lite"][0]] == b"tflite" and found["lite"][1] == ""
    assert found["dla"][1] == "nvidia-sm87"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--variant", "int8"), 2, "NAME=FILE"),
        (("--variant", "int8=nothing.onnx"), 1, "nothing.onnx is no model"),
        (("--golden", "x.npz", "--no-golden"), 2, "either --golden or --no-golden"),
        (("--golden", "nothing.npz"), 1, "nothing.npz cannot be read"),
    ],
)
def test_wrong_options(plane, shoal, store, tmp_path, options, code, said):
    file = onnx_models.dense(tmp_path / "m.onnx")
    done = shoal("model", "push", str(file), "--name", "m", *options)
    assert done.code == code
    assert said in done.err
    assert not store


def test_variant_add_and_remove(plane, shoal, store, documents, tmp_path):
    path = f"{MODELS}/m/versions/1"
    plane.answers[f"POST {path}/variants"] = documents.version()
    plane.answers[f"DELETE {path}/variants/fp16"] = Response(status_code=204)
    file = tmp_path / "half.onnx"
    file.write_bytes(b"half")
    more = ("--as", "fp16", "--target", "nvidia-sm87")
    done = shoal("model", "variant", "add", "m:1", str(file), *more)
    assert (done.code, done.out) == (0, "m:1 has the variant fp16\n")
    assert json.loads(plane.calls[-1].body) == {
        "name": "fp16",
        "digest": f"sha256:{hashlib.sha256(b'half').hexdigest()}",
        "filename": "half.onnx",
        "target": "nvidia-sm87",
        "note": "",
    }
    done = shoal("model", "variant", "remove", "m:1", "fp16")
    assert (done.code, done.out) == (0, "the variant fp16 of m:1 was removed\n")
    assert shoal("model", "variant", "remove", "m", "fp16").code == 2


def test_show_lists_variants_and_golden_outputs(plane, shoal, documents):
    fast = {"name": "int8", "digest": "sha256:" + "b" * 64, "size_bytes": 5 << 20,
            "format": "onnx", "target": "", "note": "2 % lost"}  # fmt: skip
    cases = {"digest": "sha256:" + "c" * 64, "size_bytes": 9, "cases": 2,
             "absolute": 0.001, "relative": 0.02}  # fmt: skip
    document = documents.version(variants=[fast], golden=cases)
    plane.answers[f"GET {MODELS}/m/versions/1"] = document
    lines = shoal("model", "show", "m:1").out.splitlines()
    assert lines[-2].split() == ["reference", "onnx", "-", "17.7", "MiB"]
    assert lines[-1].split() == ["int8", "onnx", "-", "5.0", "MiB", "2", "%", "lost"]
    assert any("2 cases, outputs within 0.001 + 2 % of the largest" in line for line in lines)


def test_a_model_that_cannot_be_loaded_is_a_sentence(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    with pytest.raises(ReferenceFailedError, match=r"cannot be run on the CPU: [^\n]+$"):
        ReferenceModel(tmp_path / "m.onnx", "onnx")
    with pytest.raises(ReferenceFailedError, match="cannot be run on the CPU"):
        ReferenceModel(tmp_path / "m.onnx", "tflite")


def test_wrong_inputs_leave_the_model_usable(tmp_path):
    with ReferenceModel(onnx_models.dense(tmp_path / "m.onnx"), "onnx") as model:
        with pytest.raises(ReferenceFailedError, match="cannot be run"):
            model.run({"z": np.ones(1, np.float32)})
        assert model.run({"x": np.ones((1, 16), np.float32)})["y"].shape == (1, 4)


def test_a_model_that_crashes_its_runtime_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "sys", SimpleNamespace(executable="/bin/false"))
    with pytest.raises(ReferenceFailedError, match="made its runtime crash"):
        ReferenceModel(tmp_path / "m.onnx", "onnx")


def test_a_model_that_never_answers_is_given_up(tmp_path, monkeypatch):
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(reference, "sys", SimpleNamespace(executable=str(sleeper)))
    monkeypatch.setattr(reference, "LOAD_S", 0.05)
    with pytest.raises(ReferenceFailedError, match="took longer than"):
        ReferenceModel(Path("m.onnx"), "onnx")
