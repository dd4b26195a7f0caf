"""Small models of many architectures with seeded random weights, each as exporters write it.

They are here for their graphs: skips, several inputs and outputs, arithmetic on shapes, tied
weights, quantisation, control flow. Also how stages are run one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shoal_controlplane.planner.cuts.analysis import StageFile
from shoal_shared.tensors import Array

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model with the shapes of its free inputs and values for all of them; `wider` are values of
    other widths or batches that the model also takes."""

    name: str
    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    feeds: Mapping[str, Array]
    wider: Mapping[str, Array] | None = None


class Builder:
    """Collects nodes and weights. Each method that adds a node gives the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._count = 0

    def node(self, op: str, *inputs: str, out: str = "", outputs: int = 1, **kw: Any) -> str:
        """Add a node; of several outputs the names are `NAME`, `NAME.1` and so on."""
        self._count += 1
        name = out or f"{op.lower()}_{self._count}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"/{name}", **kw))
        return name

    def const(self, value: Any, dtype: Any = np.float32, name: str = "") -> str:
        self._count += 1
        name = name or f"w_{self._count}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def random(self, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])) if len(shape) > 1 else shape[0])
        return self.const(self.rng.normal(0, (1.5 / fan_in) ** 0.5, shape))

    def conv(self, x: str, cin: int, cout: int, k: int = 3, **kw: Any) -> str:
        """A convolution that keeps the size (stride 1) with BatchNormalization."""
        group = kw.pop("group", 1)
        weight, bias = self.random(cout, cin // group, k, k), self.random(cout)
        y = self.node("Conv", x, weight, bias, group=group, pads=[k // 2] * 4, **kw)
        scale = self.const(self.rng.uniform(0.5, 1.5, cout))
        var = self.const(self.rng.uniform(0.5, 1.5, cout))
        return self.node("BatchNormalization", y, scale, self.random(cout), self.random(cout), var)

    def conv_relu(self, x: str, cin: int, cout: int, k: int = 3, **kw: Any) -> str:
        return self.node("Relu", self.conv(x, cin, cout, k, **kw))

    def linear(self, x: str, cin: int, cout: int) -> str:
        return self.node("Add", self.node("MatMul", x, self.random(cin, cout)), self.random(cout))

    def layer_norm(self, x: str, width: int) -> str:
        """LayerNorm as exporters decompose it for opsets below 17."""
        centred = self.node("Sub", x, self.node("ReduceMean", x, axes=[-1]))
        squared = self.node("Pow", centred, self.const(2.0))
        variance = self.node("ReduceMean", squared, axes=[-1])
        deviation = self.node("Sqrt", self.node("Add", variance, self.const(1e-5)))
        scaled = self.node("Mul", self.node("Div", centred, deviation), self.random(width))
        return self.node("Add", scaled, self.random(width))

    def gelu(self, x: str) -> str:
        erf = self.node("Erf", self.node("Div", x, self.const(2**0.5)))
        gated = self.node("Mul", x, self.node("Add", erf, self.const(1.0)))
        return self.node("Mul", gated, self.const(0.5))

    def attention(self, x: str, width: int, heads: int, mask: str = "") -> str:
        shape = self.const([0, 0, heads, width // heads], np.int64)

        def split(perm: Sequence[int]) -> str:
            projected = self.linear(x, width, width)
            return self.node("Transpose", self.node("Reshape", projected, shape), perm=list(perm))

        query, key, value = split((0, 2, 1, 3)), split((0, 2, 3, 1)), split((0, 2, 1, 3))
        scores = self.node(
            "Div", self.node("MatMul", query, key), self.const((width / heads) ** 0.5)
        )
        if mask:
            scores = self.node("Add", scores, mask)
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        joined = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = self.node("Reshape", joined, self.const([0, 0, width], np.int64))
        return self.linear(joined, width, width)

    def quantize(self, x: str, scale: float = 0.05) -> str:
        """A pair of QuantizeLinear and DequantizeLinear."""
        pair = self.const(scale), self.const(0, np.int8)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *pair), *pair)

    def build(
        self,
        inputs: Mapping[str, tuple[int, Sequence[int | str]]],
        outputs: Mapping[str, tuple[int, Sequence[int | str]]],
        opset: int = 16,
        also_inputs: Sequence[onnx.ValueInfoProto] = (),
    ) -> onnx.ModelProto:
        values = [
            [
                helper.make_tensor_value_info(name, kind, shape)
                for name, (kind, shape) in ends.items()
            ]
            for ends in (inputs, outputs)
        ]
        graph = helper.make_graph(
            self.nodes, "graph", [*values[0], *also_inputs], values[1], self.weights
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=8,
            producer_name="shoal-tests",
        )
        helper.set_model_props(model, {"origin": "tests"})
        onnx.checker.check_model(model)
        return model


def floats(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def residual() -> Architecture:
    b = Builder(1)
    x = b.conv_relu("x", 3, 8)
    for stage, (cin, cout) in enumerate(((8, 8), (8, 16), (16, 16))):
        stride = 2 if cin != cout else 1
        y = b.conv(b.conv_relu(x, cin, cout, strides=[stride] * 2), cout, cout)
        short = b.conv(x, cin, cout, 1, strides=[2, 2]) if stage == 1 else x
        x = b.node("Relu", b.node("Add", y, short))
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    b.node("Gemm", x, b.random(10, 16), b.random(10), out="y", transB=1)
    model = b.build({"x": (FLOAT, ["N", 3, 32, 32])}, {"y": (FLOAT, ["N", 10])})
    return Architecture(
        "residual", model, {}, {"x": floats(1, 3, 32, 32)}, {"x": floats(3, 3, 32, 32)}
    )


def depthwise() -> Architecture:
    """MobileNetV2 and V3: linear bottlenecks, Clip, squeeze and excitation, hard swish."""
    b = Builder(2)
    x = b.node("Clip", b.conv("x", 3, 8, strides=[2, 2]), b.const(0.0), b.const(6.0))
    for _ in range(3):
        y = b.node("Clip", b.conv(x, 8, 24, 1), b.const(0.0), b.const(6.0))
        y = b.conv(y, 24, 24, group=24)
        y = b.node("Mul", y, b.node("HardSigmoid", y, alpha=1 / 6))
        squeezed = b.conv_relu(b.node("GlobalAveragePool", y), 24, 6, 1)
        y = b.node("Mul", y, b.node("Sigmoid", b.conv(squeezed, 6, 24, 1)))
        x = b.node("Add", b.conv(y, 24, 8, 1), x)
    b.node("Softmax", b.node("Flatten", b.node("GlobalAveragePool", x)), out="y")
    model = b.build({"x": (FLOAT, [1, 3, 32, 32])}, {"y": (FLOAT, [1, 8])})
    return Architecture("depthwise", model, {}, {"x": floats(1, 3, 32, 32)})


def detector() -> Architecture:
    """SSD: heads at several scales, two outputs, and one that is finished early."""
    b = Builder(3)
    x = b.conv_relu("x", 3, 8)
    b.node("GlobalAveragePool", x, out="embedding")
    boxes, scores = [], []
    for _ in range(3):
        x = b.conv_relu(x, 8, 8, strides=[2, 2])
        for parts, width in ((boxes, 4), (scores, 3)):
            head = b.node("Transpose", b.conv(x, 8, 2 * width), perm=[0, 2, 3, 1])
            parts.append(b.node("Reshape", head, b.const([1, -1, width], np.int64)))
    b.node("Concat", *boxes, out="boxes", axis=1)
    b.node("Softmax", b.node("Concat", *scores, axis=1), out="scores", axis=2)
    outputs = {
        "boxes": (FLOAT, [1, "A", 4]),
        "scores": (FLOAT, [1, "A", 3]),
        "embedding": (FLOAT, [1, 8, 1, 1]),
    }
    model = b.build({"x": (FLOAT, [1, 3, 32, 32])}, outputs)
    return Architecture("detector", model, {}, {"x": floats(1, 3, 32, 32)})


def bert() -> Architecture:
    """The mask, made of an input, is read by every layer; LayerNorm and Gelu are decomposed."""
    b = Builder(4)
    width, heads = 16, 2
    b.const(b.rng.normal(0, 1, (40, width)), name="embeddings")
    mask = b.node("Cast", b.node("Unsqueeze", "mask", b.const([1, 2], np.int64)), to=FLOAT)
    mask = b.node("Mul", b.node("Sub", b.const(1.0), mask), b.const(-1e4))
    x = b.layer_norm(b.node("Gather", "embeddings", "ids"), width)
    for _ in range(2):
        x = b.layer_norm(b.node("Add", b.attention(x, width, heads, mask), x), width)
        y = b.linear(b.gelu(b.linear(x, width, 32)), 32, width)
        x = b.layer_norm(b.node("Add", y, x), width)
    b.node(
        "Tanh", b.linear(b.node("Gather", x, b.const(0, np.int64), axis=1), width, width), out="y"
    )
    model = b.build(
        {"ids": (INT64, ["N", "T"]), "mask": (INT64, ["N", "T"])}, {"y": (FLOAT, ["N", width])}
    )
    rng = np.random.default_rng(5)

    def feeds(n: int, t: int) -> dict[str, Array]:
        return {"ids": rng.integers(0, 40, (n, t)), "mask": np.ones((n, t), np.int64)}

    return Architecture("bert", model, {"ids": (1, 6), "mask": (1, 6)}, feeds(1, 6), feeds(2, 9))


def vit() -> Architecture:
    """LayerNormalization as an operator, before each block, so that the sum goes on beside it."""
    b = Builder(5)
    width = 16
    x = b.node("Conv", "x", b.random(width, 3, 8, 8), b.random(width), strides=[8, 8])
    x = b.node("Transpose", b.node("Reshape", x, b.const([0, width, -1], np.int64)), perm=[0, 2, 1])
    x = b.node("Add", x, b.random(1, 16, width))
    for _ in range(2):
        y = b.node("LayerNormalization", x, b.random(width), b.random(width))
        x = b.node("Add", x, b.attention(y, width, 2))
        y = b.node("LayerNormalization", x, b.random(width), b.random(width))
        x = b.node("Add", x, b.linear(b.gelu(b.linear(y, width, 32)), 32, width))
    b.linear(b.node("ReduceMean", x, axes=[1], keepdims=0), width, 5)
    b.nodes[-1].output[0] = "y"
    model = b.build({"x": (FLOAT, ["N", 3, 32, 32])}, {"y": (FLOAT, ["N", 5])}, opset=17)
    return Architecture("vit", model, {}, {"x": floats(1, 3, 32, 32)}, {"x": floats(2, 3, 32, 32)})


def unet() -> Architecture:
    b = Builder(6)
    skips, x, width = [], "x", 3
    for depth in (6, 8, 12):
        x = b.conv_relu(x, width, depth)
        skips.append((x, depth))
        x, width = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), depth
    x = b.conv_relu(x, width, width)
    for skip, depth in reversed(skips):
        x = b.node("ConvTranspose", x, b.random(width, depth, 2, 2), strides=[2, 2])
        x, width = b.conv_relu(b.node("Concat", x, skip, axis=1), 2 * depth, depth), depth
    b.node("Sigmoid", b.conv(x, width, 1, 1), out="y")
    model = b.build({"x": (FLOAT, [1, 3, "H", "W"])}, {"y": (FLOAT, [1, 1, "H", "W"])})
    return Architecture(
        "unet",
        model,
        {"x": (1, 3, 32, 32)},
        {"x": floats(1, 3, 32, 32)},
        {"x": floats(1, 3, 16, 40)},
    )


def lstm() -> Architecture:
    """A recogniser: convolutions, then a bidirectional LSTM and a GRU over the width."""
    b = Builder(7)
    x = b.conv_relu(b.conv_relu("x", 1, 8, strides=[2, 2]), 8, 8, strides=[4, 1])
    x = b.node("Transpose", b.node("Squeeze", x, b.const([2], np.int64)), perm=[2, 0, 1])
    weights = (b.random(2, 48, 8), b.random(2, 48, 12), b.random(2, 96))
    x = b.node("LSTM", x, *weights, hidden_size=12, direction="bidirectional")
    x = b.node("Transpose", x, perm=[0, 2, 1, 3])
    x = b.node("Reshape", x, b.const([0, 0, 24], np.int64))
    gates = (b.random(1, 30, 24), b.random(1, 30, 10), b.random(1, 60))
    x = b.node("Squeeze", b.node("GRU", x, *gates, hidden_size=10), b.const([1], np.int64))
    b.node("Softmax", b.linear(x, 10, 7), out="y", axis=-1)
    model = b.build({"x": (FLOAT, [1, 1, 8, "W"])}, {"y": (FLOAT, ["T", 1, 7])})
    return Architecture(
        "lstm", model, {"x": (1, 1, 8, 24)}, {"x": floats(1, 1, 8, 24)}, {"x": floats(1, 1, 8, 40)}
    )


def two_towers() -> Architecture:
    """Three inputs, of which one comes in late, one is unused; an input that is an output, too."""
    b = Builder(8)
    left = b.linear(b.node("Relu", b.linear("left", 6, 12)), 12, 8)
    right = b.node("Relu", b.linear(b.node("Relu", b.linear("right", 5, 12)), 12, 8))
    joined = b.node("Relu", b.linear(b.node("Concat", left, right, axis=1), 16, 8))
    joined = b.node("Relu", b.linear(b.node("Mul", joined, "gain"), 8, 8))
    b.node("Sigmoid", b.linear(joined, 8, 1), out="y")
    b.node("Identity", "gain", out="same")
    ends = {
        "left": (FLOAT, ["N", 6]),
        "unused": (FLOAT, ["N", 2]),
        "right": (FLOAT, ["N", 5]),
        "gain": (FLOAT, ["N", 1]),
    }
    model = b.build(ends, {"y": (FLOAT, ["N", 1]), "same": (FLOAT, ["N", 1])})

    def feeds(n: int) -> dict[str, Array]:
        return {name: floats(n, int(shape[1])) for name, (_, shape) in ends.items()}

    return Architecture("two towers", model, {}, feeds(1), feeds(4))


def quantised() -> Architecture:
    """QDQ: int8 weights and pairs around every operator, one pair for all readers of a tensor."""
    b = Builder(9)

    def conv(x: str, cin: int, cout: int) -> str:
        weight = b.const(b.rng.integers(-90, 90, (cout, cin, 3, 3)), np.int8)
        scale, zero = b.const(0.004), b.const(0, np.int8)
        weight = b.node("DequantizeLinear", weight, scale, zero)
        y = b.node("Conv", x, weight, pads=[1] * 4)
        return b.quantize(b.node("Relu", y))

    x = conv(b.quantize("x"), 3, 8)
    for _ in range(2):
        x = b.quantize(b.node("Add", conv(x, 8, 8), x))
    x = b.quantize(b.node("GlobalAveragePool", x))
    b.node("Gemm", b.node("Flatten", x), b.random(4, 8), b.random(4), out="y", transB=1)
    model = b.build({"x": (FLOAT, [1, 3, 16, 16])}, {"y": (FLOAT, [1, 4])})
    return Architecture("quantised", model, {}, {"x": floats(1, 3, 16, 16)})


def tied() -> Architecture:
    """The embedding is the output's weight, too; initializers are inputs as well, and a constant
    is made of it by a node; nodes hold constants of their own."""
    b = Builder(10)
    b.const(b.rng.normal(0, 0.3, (30, 12)), name="embedding")
    b.nodes.append(helper.make_node("Constant", [], ["half"], value_float=0.5))
    tensor = numpy_helper.from_array(np.float32([[1.5]]), "unnamed")
    b.nodes.append(helper.make_node("Constant", [], ["gain"], value=tensor))
    x = b.node("Mul", b.node("Gather", "embedding", "ids"), "gain")
    for _ in range(3):
        x = b.node("Add", x, b.linear(b.node("Relu", b.linear(x, 12, 20)), 20, 12))
    unembed = b.node("Mul", b.node("Transpose", "embedding", perm=[1, 0]), "half")
    b.node("MatMul", x, unembed, out="y")
    also = [helper.make_tensor_value_info("embedding", FLOAT, [30, 12])]
    model = b.build({"ids": (INT64, [1, 5])}, {"y": (FLOAT, [1, 5, 30])}, also_inputs=also)
    ids = np.random.default_rng(3).integers(0, 30, (1, 5))
    return Architecture("tied", model, {}, {"ids": ids})


def control_flow() -> Architecture:
    """If and Loop, whose bodies read an activation and a weight from outside."""
    b = Builder(11)
    weight = b.random(6, 6)
    early = b.node("Relu", b.linear("x", 6, 6))
    x = b.node("Relu", b.linear(early, 6, 6))
    total = b.node("ReduceSum", x, keepdims=0)
    positive = b.node("Greater", total, b.const(0.5))

    def branch(op: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("MatMul", [x, weight], [f"{op}_product"]),
            helper.make_node(op, [f"{op}_product", early], [f"{op}_out"]),
        ]
        out = helper.make_tensor_value_info(f"{op}_out", FLOAT, None)
        return helper.make_graph(nodes, op, [], [out])

    x = b.node("If", positive, then_branch=branch("Add"), else_branch=branch("Sub"))
    x = b.node("Relu", b.linear(x, 6, 6))
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", weight], ["next_product"]),
            helper.make_node("Add", ["next_product", early], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, [1, 6]),
        ],
    )
    x = b.node("Loop", b.const(3, np.int64), "", x, body=body)
    b.node("Tanh", b.linear(b.node("Relu", b.linear(x, 6, 6)), 6, 3), out="y")
    model = b.build({"x": (FLOAT, [1, 6])}, {"y": (FLOAT, [1, 3])})
    return Architecture("control flow", model, {}, {"x": floats(1, 6)})


def free_width() -> Architecture:
    """Reshapes by what Shape says of the input, as exporters write a Flatten of free width."""
    b = Builder(12)
    first = b.conv_relu("x", 3, 6)
    x = b.conv_relu(first, 6, 6, strides=[2, 2])
    length = b.node("Slice", b.node("Shape", x), *(b.const([i], np.int64) for i in (0, 1, 0)))
    shape = b.node("Concat", length, b.const([6, -1], np.int64), axis=0)
    x = b.node("Transpose", b.node("Reshape", x, shape), perm=[0, 2, 1])
    x = b.node("Relu", b.linear(b.layer_norm(x, 6), 6, 6))
    x = b.node("Relu", b.linear(x, 6, 6))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    size = b.node("Slice", b.node("Shape", first), *(b.const([i], np.int64) for i in (2, 4, 0)))
    halves = b.node("Div", size, b.const([2, 2], np.int64))
    shape = b.node("Concat", b.const([0, 6], np.int64), halves, axis=0)
    x = b.conv_relu(b.node("Reshape", x, shape), 6, 4)
    full = b.node(
        "Concat",
        b.node("Slice", b.node("Shape", x), *(b.const([i], np.int64) for i in (0, 2, 0))),
        size,
        axis=0,
    )
    b.node("Resize", x, "", "", full, out="y", mode="nearest")
    model = b.build({"x": (FLOAT, ["N", 3, "?", "?"])}, {"y": (FLOAT, ["N", 4, "H", "W"])})
    return Architecture(
        "free width",
        model,
        {"x": (1, 3, 8, 16)},
        {"x": floats(1, 3, 8, 16)},
        {"x": floats(2, 3, 12, 28)},
    )


ARCHITECTURES: tuple[Callable[[], Architecture], ...] = (
    residual,
    depthwise,
    detector,
    bert,
    vit,
    unet,
    lstm,
    two_towers,
    quantised,
    tied,
    control_flow,
    free_width,
)


class Session:
    """A model file in ONNX Runtime on one thread. `level` is "none" for the graph as it is,
    "extended" for all optimisations but those of the memory layout, "all" for those as well."""

    def __init__(self, path: Path, level: str) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = {
            "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
            "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        }[level]
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs, from those of `tensors` that the model takes."""
        results = self._session.run(None, {name: tensors[name] for name in self.inputs})
        return dict(zip(self.outputs, results, strict=True))


def run_stages(
    stages: Sequence[StageFile], sessions: Sequence[Session], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """What arrives at the end: each stage gets a message, and sends its outputs and `passes`."""
    message = dict(feeds)
    for stage, session in zip(stages, sessions, strict=True):
        computed = session.run(message)
        message = {**computed, **{name: message[name] for name in stage.passes}}
    return message
