"""EfficientNet-Lite0 as an ONNX graph, from the weights of the PyTorch implementation.

Source of the architecture: tensorflow/tpu `efficientnet/lite`: the EfficientNet-B0 stages without
squeeze-and-excitation, ReLU6 in place of swish, batch normalisation with epsilon 0.001 and
TensorFlow's "same" padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUT_SIDE = 224
CLASSES = 1000
_EPSILON = 1e-3
_OPSET = 13
_IR_VERSION = 8

Weights = Mapping[str, NDArray[Any]]


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels_in: int
    channels_out: int


_STAGES = (
    _Stage(1, 3, 1, 1, 32, 16),
    _Stage(2, 3, 2, 6, 16, 24),
    _Stage(2, 5, 2, 6, 24, 40),
    _Stage(3, 3, 2, 6, 40, 80),
    _Stage(3, 5, 1, 6, 80, 112),
    _Stage(4, 5, 2, 6, 112, 192),
    _Stage(1, 3, 1, 6, 192, 320),
)


def build_efficientnet_lite0(weights: Weights) -> onnx.ModelProto:
    """Build the model: `image` FP32 [N, 3, 224, 224] to `prob` FP32 [N, 1000], rows summing to 1.

    `weights` is the state dictionary of efficientnet-lite-pytorch, with or without the prefix
    `module.`. Raises KeyError if a weight is missing, and onnx.checker.ValidationError if the
    graph does not hold together.
    """
    graph = _GraphBuilder({name.removeprefix("module."): w for name, w in weights.items()})
    x = graph.convolution("image", "_conv_stem", "_bn0", "stem", stride=2, activate=True)
    index = 0
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            x = _block(graph, x, index, stage, first=repeat == 0)
            index += 1
    x = graph.convolution(x, "_conv_head", "_bn1", "head", activate=True)
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Flatten", [x], "features")
    fc = [graph.constant("fc.weight", graph.weights["_fc.weight"])]
    fc.append(graph.constant("fc.bias", graph.weights["_fc.bias"]))
    x = graph.node("Gemm", [x, *fc], "logits", transB=1)
    graph.node("Softmax", [x], "prob", axis=1)
    return graph.model(
        "efficientnet_lite0",
        inputs={"image": ["N", 3, INPUT_SIDE, INPUT_SIDE]},
        outputs={"prob": ["N", CLASSES]},
    )


def fold_batch_norm(
    kernel: NDArray[Any],
    *,
    gamma: NDArray[Any],
    beta: NDArray[Any],
    mean: NDArray[Any],
    variance: NDArray[Any],
    epsilon: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Merge a batch normalisation into the convolution [out, in, h, w] before it.

    Returns the new kernel and bias [out]. Double precision and correctly rounded operations only,
    so that every machine gets the same bytes.
    """
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    folded = kernel.astype(np.float64) * factor[:, None, None, None]
    bias = beta.astype(np.float64) - mean.astype(np.float64) * factor
    return folded.astype(np.float32), bias.astype(np.float32)


def _block(graph: _GraphBuilder, x: str, index: int, stage: _Stage, first: bool) -> str:
    """One inverted bottleneck: expand, convolve each channel, project, and add the input."""
    weights, name = f"_blocks.{index}.", f"block{index}"
    stride = stage.stride if first else 1
    channels = stage.channels_in if first else stage.channels_out
    y = x
    if stage.expansion != 1:
        y = graph.convolution(
            y, weights + "_expand_conv", weights + "_bn0", f"{name}.expand", activate=True
        )
    y = graph.convolution(
        y,
        weights + "_depthwise_conv",
        weights + "_bn1",
        f"{name}.depthwise",
        stride=stride,
        groups=channels * stage.expansion,
        activate=True,
    )
    y = graph.convolution(y, weights + "_project_conv", weights + "_bn2", f"{name}.project")
    if stride == 1 and channels == stage.channels_out:
        y = graph.node("Add", [y, x], name)
    return y


class _GraphBuilder:
    """Collects nodes and constants; every method returns the name of the tensor it adds."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self.constant("relu6.low", np.float32(0))
        self.constant("relu6.high", np.float32(6))

    def constant(self, name: str, value: NDArray[Any] | np.float32) -> str:
        self._constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def convolution(
        self,
        x: str,
        kernel: str,
        norm: str,
        output: str,
        *,
        stride: int = 1,
        groups: int = 1,
        activate: bool = False,
    ) -> str:
        """Convolution with its batch normalisation folded in, then ReLU6 if `activate`."""
        folded, bias = fold_batch_norm(
            self.weights[f"{kernel}.weight"],
            gamma=self.weights[f"{norm}.weight"],
            beta=self.weights[f"{norm}.bias"],
            mean=self.weights[f"{norm}.running_mean"],
            variance=self.weights[f"{norm}.running_var"],
            epsilon=_EPSILON,
        )
        side = folded.shape[-1]
        # TensorFlow's "same" for the even sides that occur here; written out, since runtimes
        # disagree on auto_pad.
        before = (side - stride) // 2
        after = side - stride - before
        y = self.node(
            "Conv",
            [x, self.constant(f"{output}.weight", folded), self.constant(f"{output}.bias", bias)],
            f"{output}.conv" if activate else output,
            kernel_shape=[side, side],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=groups,
        )
        return self.node("Clip", [y, "relu6.low", "relu6.high"], output) if activate else y

    def model(
        self,
        name: str,
        inputs: Mapping[str, list[str | int]],
        outputs: Mapping[str, list[str | int]],
    ) -> onnx.ModelProto:
        """Close the graph over FP32 inputs and outputs of the given shapes, and check it."""

        def infos(shapes: Mapping[str, list[str | int]]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(key, TensorProto.FLOAT, shape)
                for key, shape in shapes.items()
            ]

        graph = helper.make_graph(
            self._nodes, name, infos(inputs), infos(outputs), initializer=self._constants
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="shoal",
        )
        onnx.checker.check_model(model, full_check=True)
        return model
