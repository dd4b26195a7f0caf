"""`shoal model quantize`: a small convolution quantised for real, against canned answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from starlette.responses import JSONResponse, Response
from support import onnx_models

from shoal_controlplane.cli import golden, quantizeinputs, reference
from shoal_controlplane.cli.quantizeaccuracy import Comparison, ranked_outputs
from shoal_shared.signature import ModelSignature, TensorSpec

PATH = "/api/v1/models/m/versions/1"
CARD = {
    "model": {"name": "m"},
    "input": {"kind": "image", "tensor": "x", "layout": "NCHW", "size": [8, 8],
              "resize": "stretch", "scale": 0.00390625},
    "output": {"kind": "labels", "tensor": "y", "labels": ["a", "b", "c", "d"]},
}  # fmt: skip


def convolution(path: Path) -> Path:
    """`y` [N, 4] = means of a convolution of `x` [N, 3, 8, 8]."""
    random = np.random.default_rng(1)
    weights = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    bias = random.normal(size=4).astype(np.float32)
    value = helper.make_tensor_value_info
    return onnx_models.save(
        path,
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )


class Stored:
    """A version of the convolution on the control plane, and what was sent to it."""

    def __init__(self, plane, documents, folder: Path) -> None:
        self.documents = documents
        self.plane = plane
        self.artifacts: dict[str, bytes] = {}
        self.digest = self.keep(convolution(folder / "stored.onnx").read_bytes())
        self.golden = self.keep(golden.recorded(folder / "stored.onnx", CARD))
        self.set()
        plane.answers = self.Answers(self, plane.answers)
        plane.answers[f"POST {PATH}/variants"] = documents.version()
        plane.answers["GET /api/v1/models/m"] = {"name": "m", "latest": "1", "versions": []}

    class Answers(dict):
        def __init__(self, stored, answers) -> None:
            super().__init__(answers)
            self.stored = stored

        def get(self, name, default=None):
            return self.stored.artifact if "/artifacts/" in name else super().get(name, default)

    def keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.artifacts[f"/artifacts/sha256/{digest}"] = data
        return f"sha256:{digest}"

    def artifact(self, call):
        if call.method == "PUT":
            self.artifacts[call.path] = call.body
            return JSONResponse({}, 201)
        found = self.artifacts.get(call.path)
        return Response(status_code=404) if found is None else Response(found)

    def set(self, absolute: float = 0.1, **more) -> None:
        size = len(self.artifacts[f"/artifacts/sha256/{self.digest[7:]}"])
        cases = self.artifacts[f"/artifacts/sha256/{self.golden[7:]}"]
        document = {
            "size_bytes": size,
            "digest": self.digest,
            "card": CARD,
            "signature": {
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
            },
            "golden": {
                "digest": self.golden,
                "size_bytes": len(cases),
                "cases": 2,
                "absolute": absolute,
                "relative": 0.0,
            },
        }
        self.plane.answers[f"GET {PATH}"] = self.documents.version(**{**document, **more})

    def sent(self) -> tuple[dict, onnx.ModelProto]:
        (call,) = [c for c in self.plane.calls if c.name == f"POST {PATH}/variants"]
        body = json.loads(call.body)
        data = self.artifacts[f"/artifacts/sha256/{body['digest'][7:]}"]
        return body, onnx.load_model_from_string(data)


@pytest.fixture
def stored(plane, documents, tmp_path):
    yield Stored(plane, documents, tmp_path)
    plane.answers = {}


@pytest.fixture
def inputs(tmp_path) -> str:
    rows = np.random.default_rng(2).uniform(size=(12, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", x=rows)
    return str(tmp_path / "inputs.npz")


def test_a_variant_is_made_compared_and_added(shoal, stored, inputs):
    done = shoal("model", "quantize", "m", "--inputs", inputs)
    assert done.code == 0, done.err
    body, made = stored.sent()
    assert body["name"] == "int8"
    assert body["note"].startswith("QDQ uint8/int8, 12 inputs: largest difference 0.0")
    assert "the best class agrees in 3 of 3" in body["note"]
    operators = {node.op_type for node in made.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators
    assert "calibrating with 9 inputs: 100 %" in done.err
    assert "comparing on 3 inputs: 100 %" in done.err
    assert "m:1 has the variant int8" in done.out
    assert "it agrees with the golden outputs" in done.out
    assert "Warning" not in done.err


@pytest.mark.parametrize(
    ("options", "name", "types"),
    [
        (("--activation", "uint16"), "a16w8", {TensorProto.UINT16, TensorProto.INT8}),
        (("--activation", "int8", "--as", "trt"), "trt", {TensorProto.INT8}),
        (("--per-tensor", "--as", "qnn"), "qnn", {TensorProto.UINT8}),
    ],
)
def test_types_of_activations_and_weights(shoal, stored, inputs, options, name, types):
    done = shoal("model", "quantize", "m:1", "--inputs", inputs, *options)
    assert done.code == 0, done.err
    body, made = stored.sent()
    assert body["name"] == name
    graph = made.graph
    zero = {node.input[2] for node in graph.node if "uantizeLinear" in node.op_type}
    found = {t.data_type for t in graph.initializer if t.name in zero} - {TensorProto.INT32}
    assert found == types


def test_a_variant_that_devices_would_refuse_is_added_with_a_warning(shoal, stored, inputs):
    stored.set(absolute=1e-9)
    done = shoal("model", "quantize", "m", "--inputs", inputs)
    assert done.code == 0
    assert "Warning: devices will refuse this variant" in done.err
    assert "allows 1e-09 + 0 % of the largest output" in done.err
    assert "--activation uint16" in done.err and "[golden]" in done.err
    stored.sent()


def test_pictures_become_inputs_as_the_card_says(shoal, stored, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        colour = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(colour).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    done = shoal("model", "quantize", "m", "--inputs", str(folder), "--limit", "2")
    assert done.code == 0, done.err
    assert "2 inputs" in stored.sent()[0]["note"]
    (folder / "0.png").write_bytes(b"broken")
    done = shoal("model", "quantize", "m", "--inputs", str(folder), "--as", "other")
    assert done.code == 1 and "not a readable picture" in done.err


def test_what_cannot_be_quantised_is_one_sentence(shoal, stored, inputs, tmp_path):
    def said(*arguments: str) -> str:
        done = shoal("model", "quantize", *arguments)
        assert done.code == 1
        return done.err

    assert "give --inputs with a .npz file or a folder" in said("m")
    (tmp_path / "empty").mkdir()
    assert "holds no .npz files and no pictures" in said("m", "--inputs", str(tmp_path / "empty"))
    assert "is neither a .npz file nor" in said("m", "--inputs", str(tmp_path / "stored.onnx"))
    stored.set(card=None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "has no card" in said("m", "--inputs", str(tmp_path / "a.png"))
    np.savez(tmp_path / "z.npz", z=np.ones((1, 3, 8, 8), np.float32))
    assert "holds 'z', but the model takes 'x'" in said("m", "--inputs", str(tmp_path / "z.npz"))
    np.savez(tmp_path / "z.npz", x=np.ones((1, 3, 8, 9), np.float32))
    assert "takes FP32 [-1, 3, 8, 8]" in said("m", "--inputs", str(tmp_path / "z.npz"))
    stored.set(variants=[{"name": "int8", "digest": "", "size_bytes": 1, "format": "onnx"}])
    assert "has a variant 'int8' already" in said("m", "--inputs", inputs)
    stored.set(format="tflite")
    assert "is tflite, and only ONNX models" in said("m", "--inputs", inputs)
    stored.set()
    stored.artifacts[f"/artifacts/sha256/{stored.digest[7:]}"] = b"other"
    assert "did not come as it is stored" in said("m", "--inputs", inputs)
    assert not [call for call in stored.plane.calls if call.method == "PUT"]


def test_without_onnxruntime(shoal, stored, inputs, monkeypatch):
    monkeypatch.setattr(reference, "find_spec", lambda name: None)
    done = shoal("model", "quantize", "m", "--inputs", inputs)
    expected = "Error: onnxruntime is not installed here: pip install 'shoal[cpu]'\n"
    assert (done.code, done.err) == (1, expected)


def test_a_quantizer_that_fails_is_one_sentence(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    with pytest.raises(reference.ReferenceFailedError, match="the model cannot be quantised: "):
        reference.quantize_model(
            tmp_path / "m.onnx", tmp_path / "q.onnx", "uint8", "int8", True, []
        )


@pytest.mark.parametrize(("count", "calibrating", "comparing"), [(7, 7, 7), (8, 6, 2), (9, 6, 3)])
def test_a_quarter_is_held_out_of_more_than_a_few(count, calibrating, comparing):
    samples = [lambda number=number: number for number in range(count)]
    used, kept = quantizeinputs.hold_out(samples)
    assert (len(used), len(kept)) == (calibrating, comparing)
    assert {sample() for sample in used} | {sample() for sample in kept} == set(range(count))


def test_the_comparison():
    comparison = Comparison(frozenset({"y"}))
    comparison.add({"y": np.array([[0.0, 4.0]])}, {"y": np.array([[0.5, 4.0]])})
    comparison.add({"y": np.array([[1.0, 2.0]])}, {"y": np.array([[2.0, 1.0]])})
    error = comparison.outputs["y"]
    assert (error.largest, error.mean, error.relative) == (1.0, 2.5 / 4, 0.25)
    assert (comparison.agreed, comparison.asked, comparison.inputs) == (1, 2, 2)
    assert comparison.summary() == (
        "largest difference 1 (25 % of the range), mean 0.625, the best class agrees in 1 of 2"
    )
    assert comparison.rows() == [("y", "1", "25 %", "0.625", "0 to 4")]


def test_the_comparison_of_what_has_no_difference():
    texts = np.array([b"a"], dtype=object)
    comparison = Comparison(frozenset())
    comparison.add({"t": texts, "n": np.array([np.nan])}, {"t": texts, "n": np.array([np.nan])})
    assert comparison.summary().startswith("largest difference in 't' 0 (0 %")
    comparison.add({"t": texts}, {"t": np.array([b"b"], dtype=object)})
    assert "inf (all of the range)" in comparison.summary()


def test_which_outputs_hold_scores():
    spec = [TensorSpec(name=n, datatype="FP32", shape=s) for n, s in
            (("y", (-1, 4)), ("boxes", (1, 9, 4)), ("one", (-1, 1)))]  # fmt: skip
    signature = ModelSignature(inputs=(), outputs=tuple(spec))
    assert ranked_outputs(signature, None) == {"y"}
    assert ranked_outputs(signature, CARD) == {"y"}
