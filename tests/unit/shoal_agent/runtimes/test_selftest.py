from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal_agent.runtimes.base import InferenceRuntime
from shoal_agent.runtimes.onnx import OnnxRuntime
from shoal_agent.runtimes.selftest import self_test
from shoal_agent.runtimes.tflite import TfliteRuntime
from shoal_shared.golden import agrees, encode


@pytest.mark.parametrize("model_format", ["onnx", "tflite"])
def test_a_model_is_always_the_same_and_small(model_format: str) -> None:
    first, second = self_test(model_format), self_test(model_format)
    assert first.model == second.model
    assert encode(first.golden) == encode(second.golden)
    assert len(first.model) < 1024


def test_the_onnx_model_is_valid() -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: make setup")
    model = onnx.load_from_string(self_test().model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add", "Relu"]


@pytest.mark.parametrize(
    ("model_format", "library", "runtime"),
    [("onnx", "onnxruntime", OnnxRuntime), ("tflite", "ai_edge_litert", TfliteRuntime)],
)
def test_the_cpu_answers_what_is_expected(
    tmp_path: Path, model_format: str, library: str, runtime: type[InferenceRuntime]
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed: make setup")
    test = self_test(model_format)
    path = tmp_path / "model"
    path.write_bytes(test.model)
    model = runtime().load(path, {})
    (case,) = test.golden.cases
    assert agrees(case.outputs, model.run(case.inputs), 1e-5, 0.0)[0]
    # Some are cut off and some are not, or Relu would go unnoticed.
    assert 0 < np.count_nonzero(case.outputs["y"]) < case.outputs["y"].size
