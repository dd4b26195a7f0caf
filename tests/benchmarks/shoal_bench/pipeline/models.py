"""Models to cut: the demonstration's real ones, and generated ones of other kinds."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LARGE = "large-transformer"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Model:
    """A model's file, a request, and what the whole model answers to it."""

    name: str
    path: Path
    inputs: Arrays
    expected: Arrays

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.inputs.items()}


_REAL: dict[str, dict[str, tuple[int, ...]]] = {
    "efficientnet-lite0": {"image": (1, 3, 224, 224)},
    "ppocr-rec": {"x": (1, 3, 48, 320)},
}


def prepare_models(folder: Path) -> dict[str, Model]:
    """All models by name. Raises `RuntimeError` if the demonstration's cannot be built."""
    command = [sys.executable, "-m", "shoal_simulators.demo.models", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the demonstration's models cannot be built: {done.stderr.strip()}")
    models = {
        name: _with_answer(name, folder / name / "model.onnx", shapes)
        for name, shapes in _REAL.items()
    }
    for name, build in _GENERATED.items():
        path = folder / name / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = build(path)
        models[name] = _with_answer(name, path, {"x": shape})
    return models


def _with_answer(name: str, path: Path, shapes: dict[str, tuple[int, ...]]) -> Model:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(7)
    inputs = {key: rng.random(shape, np.float32) for key, shape in shapes.items()}
    names = [output.name for output in session.get_outputs()]
    return Model(name, path, inputs, dict(zip(names, session.run(names, inputs), strict=True)))


class _Graph:
    """Nodes and weights in the making; every method returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        values = self._rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan_in))
        return self.constant(values)

    def constant(self, values: NDArray[Any]) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, inside: int, outside: int, stride: int = 1) -> str:
        kernel = self.weight(outside, inside, 3, 3, fan_in=9 * inside)
        bias = self.weight(outside, fan_in=100)
        strides = [stride, stride]
        return self.op("Conv", x, kernel, bias, pads=[1, 1, 1, 1], strides=strides)

    def dense(self, x: str, inside: int, outside: int) -> str:
        product = self.op("MatMul", x, self.weight(inside, outside, fan_in=inside))
        return self.op("Add", product, self.weight(outside, fan_in=100))

    def norm(self, x: str, size: int) -> str:
        one, zero = np.ones(size, np.float32), np.zeros(size, np.float32)
        return self.op("LayerNormalization", x, self.constant(one), self.constant(zero), axis=-1)

    def save(self, path: Path, shape: tuple[int, ...], last: str) -> None:
        self._nodes.append(helper.make_node("Identity", [last], ["y"]))
        graph = helper.make_graph(
            self._nodes,
            "generated",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)


def _residual(path: Path) -> tuple[int, ...]:
    """A residual network: eleven blocks at four resolutions, 0.5e9 multiply-accumulates."""
    shape = (1, 3, 96, 96)
    graph = _Graph(11)
    x, width = graph.op("Relu", graph.conv("x", 3, 32, 2)), 32
    for wide, blocks in ((32, 3), (64, 3), (128, 3), (256, 2)):
        if wide != width:
            x, width = graph.op("Relu", graph.conv(x, width, wide, 2)), wide
        for _ in range(blocks):
            inner = graph.op("Relu", graph.conv(x, wide, wide))
            x = graph.op("Relu", graph.op("Add", graph.conv(inner, wide, wide), x))
    pooled = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    graph.save(path, shape, graph.dense(pooled, width, 100))
    return shape


def _transformer(path: Path, tokens: int, width: int, layers: int) -> tuple[int, ...]:
    shape, heads = (1, tokens, width), 4
    graph = _Graph(13)
    split = graph.constant(np.array([1, tokens, heads, width // heads], np.int64))
    joined = graph.constant(np.array([1, tokens, width], np.int64))
    scale = graph.constant(np.array((width / heads) ** -0.5, np.float32))
    x = "x"
    for _ in range(layers):
        normed = graph.norm(x, width)
        parts = [graph.op("Reshape", graph.dense(normed, width, width), split) for _ in range(3)]
        query, value = (graph.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts[::2])
        key = graph.op("Transpose", parts[1], perm=[0, 2, 3, 1])
        scores = graph.op("Softmax", graph.op("Mul", graph.op("MatMul", query, key), scale))
        mixed = graph.op("Transpose", graph.op("MatMul", scores, value), perm=[0, 2, 1, 3])
        attended = graph.dense(graph.op("Reshape", mixed, joined), width, width)
        x = graph.op("Add", x, attended)
        hidden = graph.op("Relu", graph.dense(graph.norm(x, width), width, 4 * width))
        x = graph.op("Add", x, graph.dense(hidden, 4 * width, width))
    graph.save(path, shape, graph.norm(x, width))
    return shape


_GENERATED: dict[str, Callable[[Path], tuple[int, ...]]] = {
    "residual": _residual,
    "transformer": lambda path: _transformer(path, tokens=64, width=256, layers=8),
    # 150 MB of weights.
    LARGE: lambda path: _transformer(path, tokens=16, width=512, layers=12),
}
