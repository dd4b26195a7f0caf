from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal_agent.runtimes.base import RuntimeLoadError, RuntimeRunError
from shoal_agent.runtimes.tflite import TfliteRuntime

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: make setup")
pytest.importorskip("flatbuffers", reason="flatbuffers is not installed: make setup")

from ai_edge_litert import schema_py_generated as schema
from support.tflite_models import ADD, chain

FACES = Path.home() / ".cache/shoal/demo/models/face-detection/model.tflite"


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """`y` = `x` + `x`, FP32 [-1, 4]."""
    return chain(tmp_path / "double.tflite", [ADD], [-1, 4])


def test_a_free_batch_dimension_is_resized(doubling: Path) -> None:
    model = TfliteRuntime().load(doubling, {"intra_op_threads": 1})

    assert model.signature.inputs[0].shape == (-1, 4)
    assert model.signature.batchable
    assert model.providers == ("CPU",)
    for batch in (1, 3, 0, 3, 1):
        x = np.arange(4 * batch, dtype="<f4").reshape(batch, 4)
        assert model.run({"x": x})["y"].tolist() == (x * 2).tolist()


def test_outputs_survive_the_next_run(doubling: Path) -> None:
    model = TfliteRuntime().load(doubling, {})
    first = model.run({"x": np.ones((1, 4), "<f4")})["y"]
    model.run({"x": np.zeros((1, 4), "<f4")})
    assert first.tolist() == [[2, 2, 2, 2]]


def test_it_recovers_from_a_shape_that_cannot_be(doubling: Path) -> None:
    model = TfliteRuntime().load(doubling, {})
    with pytest.raises(RuntimeRunError, match="the model failed"):
        model.run({"x": np.ones((1, 4), "<f8")})
    with pytest.raises(RuntimeRunError, match="the model failed"):
        model.run({"x": np.broadcast_to(np.float32(0), (1 << 40, 4))})
    assert model.run({"x": np.ones((1, 4), "<f4")})["y"].tolist() == [[2, 2, 2, 2]]


def test_strings_and_booleans(tmp_path: Path) -> None:
    reshape = schema.ReshapeOptionsT()
    reshape.newShape = [2]
    strings = chain(
        tmp_path / "s.tflite",
        [schema.BuiltinOperator.RESHAPE],
        [2],
        schema.TensorType.STRING,
        (schema.BuiltinOptions.ReshapeOptions, reshape),
    )
    model = TfliteRuntime().load(strings, {})
    assert model.signature.inputs[0].datatype == "BYTES"
    assert not model.signature.batchable
    given = np.array([b"hi", b"\xff\0z"], dtype=object)
    assert model.run({"x": given})["y"].tolist() == given.tolist()

    booleans = chain(
        tmp_path / "b.tflite",
        [schema.BuiltinOperator.LOGICAL_NOT],
        [1, 2],
        schema.TensorType.BOOL,
    )
    model = TfliteRuntime().load(booleans, {})
    assert model.signature.outputs[0].datatype == "BOOL"
    assert model.run({"x": np.array([[True, False]])})["y"].tolist() == [[False, True]]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"not a model" * 50, id="garbage"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="truncated"),
    ],
)
def test_a_file_that_is_no_model_is_refused(doubling: Path, content) -> None:
    doubling.write_bytes(content(doubling.read_bytes()))
    with pytest.raises(RuntimeLoadError, match="cannot load the model") as caught:
        TfliteRuntime().load(doubling, {})
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_wrong_option_are_refused(doubling: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeLoadError, match="Could not open"):
        TfliteRuntime().load(tmp_path / "none.tflite", {})
    with pytest.raises(RuntimeLoadError, match="intra_op_threads"):
        TfliteRuntime().load(doubling, {"intra_op_threads": 1.5})


@pytest.mark.skipif(not FACES.exists(), reason="the demo's models are not there: make setup")
def test_a_real_model() -> None:
    model = TfliteRuntime().load(FACES, {})
    (spec,) = model.signature.inputs
    assert (spec.datatype, spec.shape) == ("FP32", (1, 128, 128, 3))
    assert not model.signature.batchable
    outputs = model.run({spec.name: np.zeros(spec.shape, "<f4")})
    assert {name: a.shape for name, a in outputs.items()} == {
        "regressors": (1, 896, 16),
        "classificators": (1, 896, 1),
    }
    # No face in a grey picture: every logit is far below zero.
    assert outputs["classificators"].max() < 0
