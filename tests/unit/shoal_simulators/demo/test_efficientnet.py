from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from shoal_simulators.demo.efficientnet import fold_batch_norm


@pytest.mark.parametrize("groups", [1, 4])
def test_folding_a_normalisation_changes_only_the_rounding(groups: int) -> None:
    random = np.random.default_rng(7)

    def values(*shape: int, low: float = -1.0) -> np.ndarray[Any, np.dtype[np.float32]]:
        return random.uniform(low, 1.0, shape).astype(np.float32)

    kernel = values(8, 4 // groups, 3, 3)
    norm = {"gamma": values(8), "beta": values(8), "mean": values(8), "variance": values(8, low=0)}
    folded, bias = fold_batch_norm(kernel, epsilon=1e-3, **norm)
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": groups}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"], **conv),
            helper.make_node("BatchNormalization", ["c", *norm], ["plain"], epsilon=1e-3),
            helper.make_node("Conv", ["x", "folded", "bias"], ["merged"], **conv),
        ],
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 9, 9])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8, 9, 9])
            for name in ("plain", "merged")
        ],
        initializer=[
            numpy_helper.from_array(array, name)
            for name, array in {"kernel": kernel, "folded": folded, "bias": bias, **norm}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    plain, merged = session.run(None, {"x": values(2, 4, 9, 9)})
    np.testing.assert_allclose(merged, plain, atol=1e-4, rtol=1e-4)
    assert np.abs(plain).max() > 0.1
