"""Models of one node, with inputs, to compare the TPU worker with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]

_rng = np.random.default_rng(20)


@dataclass(frozen=True)
class Known:
    """An input that is part of the model."""

    array: Array


@dataclass(frozen=True)
class Case:
    """A node: its inputs in order, None where one is left out."""

    op: str
    inputs: Sequence[Array | Known | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    domain: str = ""
    outputs: int = 1
    tolerance: float = 1e-5
    note: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.op, str(self.opset), self.note)))

    def model(self) -> bytes:
        """The model; outputs `y0`, `y1`, … have no shape but the number of their dimensions."""
        return model_of(
            [
                helper.make_node(
                    self.op,
                    self.names(),
                    [f"y{i}" for i in range(self.outputs)],
                    domain=self.domain,
                    name="the node",
                    **self.attributes,
                )
            ],
            self.fed(),
            {
                f"x{i}": value.array
                for i, value in enumerate(self.inputs)
                if isinstance(value, Known)
            },
            [f"y{i}" for i in range(self.outputs)],
            self.opset,
            self.domain,
        )

    def names(self) -> list[str]:
        return ["" if value is None else f"x{i}" for i, value in enumerate(self.inputs)]

    def fed(self) -> dict[str, Array]:
        """What a request brings, by name."""
        return {
            f"x{i}": value for i, value in enumerate(self.inputs) if isinstance(value, np.ndarray)
        }


def model_of(
    nodes: Sequence[onnx.NodeProto],
    fed: Mapping[str, Array],
    known: Mapping[str, Array],
    outputs: Sequence[str],
    opset: int = 17,
    domain: str = "",
) -> bytes:
    """A model, with the types of outputs that ONNX infers or ONNX Runtime finds."""
    import onnxruntime

    graph = helper.make_graph(
        list(nodes),
        "case",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in fed.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in known.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    results = session.run(None, dict(fed))
    for value, result in zip(model.graph.output, results, strict=True):
        value.CopyFrom(
            helper.make_tensor_value_info(
                value.name,
                helper.np_dtype_to_tensor_dtype(np.asarray(result).dtype),
                np.asarray(result).shape,
            )
        )
    return model.SerializeToString()


def f(*shape: int, low: float | None = None, high: float = 1.0) -> Array:
    """Random float32: normal, or even between `low` and `high`."""
    if low is None:
        return np.asarray(_rng.normal(size=shape), np.float32)
    return np.asarray(_rng.uniform(low, high, size=shape), np.float32)


def i(*shape: int, low: int = -9, high: int = 10, dtype: str = "int64") -> Array:
    """Random integers from `low` up to, not including, `high`."""
    return np.asarray(_rng.integers(low, high, size=shape), dtype)


def b(*shape: int) -> Array:
    """Random truth."""
    return np.asarray(_rng.integers(0, 2, size=shape), bool)


def k(*values: float, dtype: str = "int64") -> Known:
    """A known vector."""
    return Known(np.asarray(values, dtype))


def w(array: Array) -> Known:
    """A weight."""
    return Known(array)


def _unary() -> list[Case]:
    plain = (
        "Abs Neg Exp Floor Ceil Round Sign Sin Cos Tan Atan Sinh Cosh Tanh Asinh Erf IsNaN IsInf "
        "Relu LeakyRelu ThresholdedRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Softplus "
        "Softsign Softmax LogSoftmax Hardmax Identity Shrink Dropout Reciprocal"
    )
    cases = [Case(op, [f(3, 4, 5) * 2]) for op in plain.split()]
    cases += [Case(op, [f(3, 4, low=0.1, high=4)]) for op in ("Log", "Sqrt")]
    cases += [Case(op, [f(3, 4, low=-0.9, high=0.9)]) for op in ("Asin", "Acos", "Atanh")]
    cases += [
        Case("Acosh", [f(3, 4, low=1.1, high=4)]),
        Case("Round", [np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])], note="halves"),
        Case("Abs", [i(7)], note="int64"),
        Case("Neg", [i(7, dtype="int32")], note="int32"),
        Case("Not", [b(5)]),
        Case("IsInf", [np.float32([1, np.inf, -np.inf, np.nan])], {"detect_negative": 0}),
        Case("IsNaN", [np.float32([1, np.inf, np.nan])], note="nan"),
        Case("Mish", [f(3, 4)], opset=18),
        Case("Gelu", [f(3, 4)], opset=20),
        Case("Gelu", [f(3, 4)], {"approximate": "tanh"}, opset=20, note="tanh"),
        Case("LeakyRelu", [f(9)], {"alpha": 0.3}, note="alpha"),
        Case("HardSigmoid", [f(9) * 3], {"alpha": 0.16, "beta": 0.4}, note="alpha"),
        Case("Shrink", [f(9)], {"lambd": 0.3, "bias": 0.1}, note="bias"),
        Case("Softmax", [f(2, 3, 4)], opset=11, note="rows"),
        Case("Softmax", [f(2, 3, 4)], {"axis": 2}, opset=11, note="rows-2"),
        Case("LogSoftmax", [f(2, 3, 4)], {"axis": 0}, note="axis"),
        Case("Hardmax", [f(2, 3, 4)], {"axis": 1}, opset=11, note="rows"),
        Case("BitwiseNot", [i(7)], opset=18),
    ]
    for dtype in ("float16", "int32", "int64", "uint8", "bool", "float64"):
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        cases.append(Case("Cast", [f(9, low=0, high=99)], {"to": to}, note=dtype))
    cases.append(Case("CastLike", [f(4), i(1)], opset=19))
    return cases


def _binary() -> list[Case]:
    arithmetic = ("Add", "Sub", "Mul", "Equal")
    cases = [Case(op, [f(3, 4), f(4)]) for op in (*arithmetic, "Div", "Less", "Greater")]
    cases += [Case(op, [i(3, 4), i(3, 1)]) for op in (*arithmetic, "LessOrEqual")]
    cases += [Case(op, [b(3, 4), b(4)]) for op in ["And", "Or", "Xor"]]
    cases += [Case(op, [f(3, 4), f(4), f(3, 1)]) for op in ["Max", "Min", "Sum", "Mean"]]
    cases += [Case(op, [i(6), i(6)], opset=18) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")]
    odd = np.int64([7, -7, 7, -7, 6, -6, 0])
    by = np.int64([2, 2, -2, -2, 3, 3, 5])
    cases += [
        Case("Div", [odd, by], note="towards zero"),
        Case("Mod", [odd, by]),
        Case("Mod", [odd, by], {"fmod": 1}, note="fmod"),
        Case("Mod", [f(9), f(9)], {"fmod": 1}, note="float"),
        Case("Pow", [f(5, low=0.1, high=3), f(5)]),
        Case("Pow", [f(5), i(5, low=0, high=4)], note="int"),
        Case("Pow", [i(5), np.float32([2, 1, 0, 2, 3])], note="of int"),
        Case("PRelu", [f(2, 3, 4), w(f(3, 1))]),
        Case("Where", [b(3, 1), f(3, 4), f(4)]),
        Case("GreaterOrEqual", [f(3, 4), f(4)]),
        Case("Clip", [f(9), w(np.float32(-0.5)), w(np.float32(0.4))]),
        Case("Clip", [f(9), None, w(np.float32(0.4))], note="high"),
        Case("Clip", [f(9)], {"min": -0.2, "max": 0.3}, opset=10),
        Case("BitShift", [np.uint8([1, 2, 200]), np.uint8([1, 3, 2])], {"direction": "LEFT"}),
        Case("BitShift", [np.uint8([1, 2, 200]), np.uint8([1, 3, 2])], {"direction": "RIGHT"}),
    ]
    return cases


def _shapes() -> list[Case]:
    x = f(2, 3, 4)
    return [
        Case("Shape", [x]),
        Case("Shape", [x], {"start": 1, "end": -1}, note="part"),
        Case("Size", [x]),
        Case("ConstantOfShape", [k(2, 3)], {"value": numpy_helper.from_array(np.int32([7]))}),
        Case("EyeLike", [f(3, 4)], {"k": 1}),
        Case("Range", [w(np.int64(3)), w(np.int64(11)), w(np.int64(3))]),
        Case("Range", [w(np.float32(3)), w(np.float32(1)), w(np.float32(-0.7))], note="float"),
        Case("Reshape", [x, k(0, -1)]),
        Case("Reshape", [f(2, 0), k(0, 3)], {"allowzero": 1}, note="allowzero"),
        Case("Flatten", [x]),
        Case("Flatten", [x], {"axis": 0}, note="0"),
        Case("Flatten", [x], {"axis": -1}, note="-1"),
        Case("Transpose", [x]),
        Case("Transpose", [x], {"perm": [1, 2, 0]}, note="perm"),
        Case("Squeeze", [f(1, 3, 1)]),
        Case("Squeeze", [f(1, 3, 1), k(-1)], note="axes"),
        Case("Squeeze", [f(1, 3, 1)], {"axes": [0]}, opset=11),
        Case("Unsqueeze", [x, k(0, -1)]),
        Case("Unsqueeze", [x], {"axes": [1]}, opset=11),
        Case("Concat", [x, f(2, 1, 4)], {"axis": 1}),
        Case("Split", [f(7, 2)], {"axis": 0}, outputs=1),
        Case("Split", [f(6, 2)], outputs=3, note="even"),
        Case("Split", [f(7, 2), k(3, 4)], outputs=2, note="sizes"),
        Case("Split", [f(7, 2)], {"num_outputs": 3}, opset=18, outputs=3),
        Case("Split", [f(7, 2)], {"split": [5, 2]}, opset=11, outputs=2),
        Case("Expand", [f(3, 1), k(2, 1, 4)]),
        Case("Tile", [f(2, 3), k(2, 3)]),
        Case("Pad", [x, k(0, 1, 0, 1, 0, 2), w(np.float32(7))]),
        Case("Pad", [x, k(0, -1, 1, 0, 0, -1)], note="cut"),
        Case("Pad", [x, k(0, 1, 2, 0, 1, 1)], {"mode": "reflect"}, note="reflect"),
        Case("Pad", [x, k(0, 1, 2, 0, 1, 1)], {"mode": "edge"}, note="edge"),
        Case("Pad", [x, k(1, 1), None, k(-1)], {"mode": "wrap"}, opset=19, note="wrap"),
        Case("Pad", [x], {"pads": [0, 1, 0, 0, 0, 2], "value": 2.0}, opset=10),
        Case("DepthToSpace", [f(2, 8, 2, 3)], {"blocksize": 2}),
        Case("DepthToSpace", [f(2, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}, note="CRD"),
        Case("SpaceToDepth", [f(2, 2, 4, 6)], {"blocksize": 2}),
        Case("Trilu", [f(2, 4, 5)]),
        Case("Trilu", [f(4, 5), w(np.int64(-1))], {"upper": 0}, note="lower"),
        Case("OneHot", [i(5, low=-3, high=6), k(4), k(0.5, 2, dtype="float32")]),
        Case("OneHot", [i(2, 3, low=0, high=4), k(4), k(0, 1)], {"axis": 0}, note="axis"),
    ]


def _indexing() -> list[Case]:
    x = f(4, 5, 6)
    big = np.iinfo(np.int64).max
    return [
        Case("Slice", [x, k(1), k(3)]),
        Case("Slice", [x, k(1, -3), k(big, -1), k(1, -1)], note="axes"),
        Case("Slice", [x, k(0, -1), k(4, -big), k(0, 2), k(2, -2)], note="steps"),
        Case("Slice", [x], {"starts": [1, 2], "ends": [3, 99], "axes": [0, 2]}, opset=9),
        Case("Gather", [x, i(2, 3, low=-4, high=4)]),
        Case("Gather", [x, i(3, low=0, high=5, dtype="int32")], {"axis": 1}, note="axis"),
        Case("Gather", [x, w(np.int64(-1))], {"axis": -1}, note="one"),
        Case("GatherElements", [x, i(4, 2, 6, low=-5, high=5)], {"axis": 1}),
        Case("GatherND", [x, i(3, 2, low=-4, high=4)]),
        Case("GatherND", [f(2, 3, 4), i(2, 2, 1, low=0, high=3)], {"batch_dims": 1}, note="batch"),
        Case("ScatterElements", [f(4, 3), np.int64([[0, 1, 2], [3, 0, 1]]), f(2, 3)]),
        Case(
            "ScatterElements",
            [f(4, 3), np.int64([[0, 0], [1, 1], [2, 2], [-1, -1]]), f(4, 2)],
            {"axis": 1, "reduction": "add"},
            opset=16,
            note="add",
        ),
        Case("ScatterND", [f(4, 3), np.int64([[1], [-1]]), f(2, 3)]),
        Case(
            "ScatterND",
            [f(4, 3), np.int64([[1], [1]]), f(2, 3)],
            {"reduction": "max"},
            opset=18,
            note="max",
        ),
        Case("NonZero", [k(0, 3, 0, 4)]),
        Case("ReverseSequence", [f(4, 3, 2), np.int64([4, 2, 1])]),
        Case(
            "ReverseSequence",
            [f(3, 4), np.int64([4, 2, 1])],
            {"batch_axis": 0, "time_axis": 1},
            note="batch first",
        ),
    ]


def _reductions() -> list[Case]:
    positive = f(2, 3, 4, low=0.2, high=2)
    kinds = (
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSum",
        "ReduceLogSumExp",
    )
    cases = [Case(op, [positive], {"axes": [1, -1], "keepdims": 0}) for op in kinds]
    cases += [Case(op, [positive, k(0)], opset=18) for op in kinds]
    return [
        *cases,
        Case("ReduceSum", [positive]),
        Case("ReduceSum", [positive, k(1)], {"keepdims": 0}, note="axes"),
        Case("ReduceSum", [positive], {"noop_with_empty_axes": 1}, note="noop"),
        Case("ReduceSum", [i(3, 4)], note="int"),
        Case("ReduceMax", [i(3, 4)], {"axes": [0]}, note="int"),
        Case("ArgMax", [f(3, 4)], {"axis": 1, "keepdims": 0}),
        Case("ArgMin", [f(3, 4)]),
        Case(
            "ArgMax",
            [np.float32([[1, 3, 3], [2, 2, 1]])],
            {"axis": 1, "select_last_index": 1},
            note="last",
        ),
        Case("TopK", [f(3, 9), k(4)], outputs=2),
        Case("TopK", [f(9, 3), k(2)], {"axis": 0, "largest": 0}, outputs=2, note="least"),
        Case("TopK", [np.int64([[1, 3, 3, 0, 3]]), k(3)], outputs=2, note="equal"),
        Case("TopK", [np.int64([[1, 3, 1, 0, 3]]), k(3)], {"largest": 0}, outputs=2, note="equals"),
        Case("CumSum", [f(3, 4), w(np.int64(1))]),
        Case("CumSum", [f(3, 4), w(np.int64(0))], {"exclusive": 1, "reverse": 1}, note="reverse"),
    ]


def _convolutions() -> list[Case]:
    x = f(2, 4, 7, 8)
    return [
        Case("Conv", [x, w(f(6, 4, 3, 3))]),
        Case("Conv", [x, w(f(6, 4, 3, 3)), w(f(6))], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        Case("Conv", [x, w(f(8, 2, 3, 3))], {"group": 2, "dilations": [2, 2]}, note="group"),
        Case("Conv", [x, w(f(4, 1, 3, 3))], {"group": 4, "pads": [1] * 4}, note="depthwise"),
        Case("Conv", [x, w(f(6, 4, 3, 2))], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        Case("Conv", [x, w(f(6, 4, 2, 3))], {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
        Case("Conv", [f(2, 3, 9), w(f(4, 3, 3))], {"auto_pad": "VALID"}, note="1d"),
        Case("Conv", [f(1, 2, 4, 5, 6), w(f(3, 2, 2, 2, 2))], note="3d"),
        Case("ConvTranspose", [x, w(f(4, 3, 2, 2))], {"strides": [2, 2]}),
        Case(
            "ConvTranspose",
            [x, w(f(4, 3, 3, 3)), w(f(6))],
            {"group": 2, "pads": [1, 0, 0, 1], "output_padding": [1, 0], "strides": [2, 2]},
            note="group",
        ),
        Case(
            "ConvTranspose",
            [x, w(f(4, 3, 3, 3))],
            {"dilations": [2, 1], "output_shape": [18, 17], "strides": [2, 2]},
            note="shape",
        ),
        Case("ConvTranspose", [x, w(f(4, 3, 3, 3))], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        Case("ConvTranspose", [f(2, 3, 5), w(f(3, 2, 4))], {"strides": [3]}, note="1d"),
    ]


def _pools() -> list[Case]:
    x = f(2, 3, 8, 9)
    cases = [
        Case(op, [x], attributes, opset=19, note=str(n))
        for op in ("MaxPool", "AveragePool")
        for n, attributes in enumerate(
            (
                {"kernel_shape": [2, 2], "strides": [2, 2]},
                {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0], "strides": [2, 3]},
                {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
                {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1] * 4, "ceil_mode": 1},
                {"kernel_shape": [2, 2], "dilations": [2, 3]},
                {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
                {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
                {"kernel_shape": [2, 2], "auto_pad": "VALID"},
            )
        )
    ]
    padded = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2], "count_include_pad": 1}
    return [
        *cases,
        Case("AveragePool", [x], padded, note="padding counts"),
        Case("AveragePool", [x], {**padded, "ceil_mode": 1}, opset=19, note="padding and ceil"),
        Case("MaxPool", [i(1, 2, 6, 6, dtype="int8")], {"kernel_shape": [2, 2]}, note="int8"),
        Case("MaxPool", [f(1, 2, 9)], {"kernel_shape": [3], "strides": [2]}, note="1d"),
        Case("LpPool", [x], {"kernel_shape": [3, 2], "strides": [2, 2]}),
        Case("LpPool", [x], {"kernel_shape": [2, 2], "p": 3}, note="3"),
        Case("GlobalAveragePool", [x]),
        Case("GlobalMaxPool", [x]),
        Case("GlobalLpPool", [x]),
    ]


def _products() -> list[Case]:
    return [
        Case("MatMul", [f(3, 4), f(4, 5)]),
        Case("MatMul", [f(2, 1, 3, 4), f(3, 4, 5)], note="batch"),
        Case("MatMul", [f(4), f(4, 5)], note="vector"),
        Case("Gemm", [f(3, 4), w(f(4, 5)), w(f(5))]),
        Case(
            "Gemm",
            [f(4, 3), w(f(5, 4)), w(f(3, 1))],
            {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
            note="all",
        ),
        Case("Gemm", [f(3, 4), w(f(4, 5))], note="no bias"),
        Case("Einsum", [f(2, 3, 4), f(2, 4, 5)], {"equation": "bij,bjk->bik"}),
        Case("Einsum", [f(2, 3, 3)], {"equation": "...ii->...i"}, note="diagonal"),
        Case("Attention", [f(2, 3, 5, 8), f(2, 3, 7, 8), f(2, 3, 7, 6)], opset=23),
        Case(
            "Attention",
            [f(2, 5, 24), f(2, 5, 12), f(2, 5, 12), f(5, 5)],
            {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.3},
            opset=23,
            note="groups",
        ),
        Case(
            "Attention",
            [f(1, 2, 4, 8), f(1, 2, 4, 8), f(1, 2, 4, 8)],
            {"is_causal": 1},
            opset=23,
            note="causal",
        ),
    ]


def _normalisations() -> list[Case]:
    x = f(2, 4, 5, 6)
    scale, bias, mean = (w(f(4)) for _ in range(3))
    variance = w(f(4, low=0.2, high=2))
    return [
        Case("BatchNormalization", [x, scale, bias, mean, variance], {"epsilon": 1e-3}),
        Case("BatchNormalization", [f(3, 4), scale, bias, mean, variance], note="2d"),
        Case("InstanceNormalization", [x, scale, bias]),
        Case("LayerNormalization", [x, w(f(6)), w(f(6))]),
        Case("LayerNormalization", [x, w(f(5, 6))], {"axis": 2, "epsilon": 1e-3}, note="axis"),
        Case("RMSNormalization", [x, w(f(6))], opset=23),
        Case("GroupNormalization", [x, w(f(2)), w(f(2))], {"num_groups": 2}, opset=18),
        Case("GroupNormalization", [x, scale, bias], {"num_groups": 2}, opset=21),
        Case("MeanVarianceNormalization", [x]),
        Case("LpNormalization", [f(3, 4)]),
        Case("LpNormalization", [f(3, 4)], {"axis": 0, "p": 1}, note="1"),
        Case("LRN", [f(2, 7, 3, 3)], {"size": 3, "alpha": 0.1, "bias": 2.0}),
    ]


def _resizes() -> list[Case]:
    x = f(1, 2, 5, 6)
    modes = [
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        {"mode": "nearest", "nearest_mode": "ceil"},
        {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
        {"mode": "nearest", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "cubic"},
        {"mode": "cubic", "coordinate_transformation_mode": "align_corners", "cubic_coeff_a": -0.5},
        {"mode": "cubic", "exclude_outside": 1},
    ]
    cases = []
    for n, mode in enumerate(modes):
        for scales in ((1, 1, 2, 3), (1, 1, 0.6, 1.5)):
            known = k(*scales, dtype="float32")
            cases.append(Case("Resize", [x, None, known], mode, note=f"{n}-{scales[2]}"))
        cases.append(Case("Resize", [x, None, None, k(1, 2, 8, 3)], mode, note=f"{n}-sizes"))
    return [
        *cases,
        Case("Resize", [x, k(1, 1, 2, 2, dtype="float32")], opset=10),
        Case(
            "Resize",
            [x, None, None, k(9, 9)],
            {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"},
            opset=18,
            note="aspect",
        ),
        Case("Upsample", [x, k(1, 1, 2, 2, dtype="float32")], opset=9),
        Case("Upsample", [x], {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "linear"}, opset=8),
    ]


def _recurrent() -> list[Case]:
    cases = []
    for op, gates, outputs in (("LSTM", 4, 3), ("GRU", 3, 2), ("RNN", 1, 2)):
        for direction, d in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            weights = [w(f(d, gates * 5, 3)), w(f(d, gates * 5, 5)), w(f(d, 2 * gates * 5))]
            cases.append(
                Case(
                    op,
                    [f(6, 2, 3), *weights],
                    {"hidden_size": 5, "direction": direction},
                    outputs=outputs,
                    note=direction,
                )
            )
    weights = [w(f(1, 20, 3)), w(f(1, 20, 5)), w(f(1, 40))]
    states = [None, f(1, 2, 5), f(1, 2, 5), w(f(1, 15))]
    return [
        *cases,
        Case(
            "LSTM", [f(6, 2, 3), *weights, *states], {"hidden_size": 5}, outputs=3, note="peepholes"
        ),
        Case(
            "GRU",
            [f(6, 2, 3), w(f(1, 15, 3)), w(f(1, 15, 5)), w(f(1, 30)), None, f(1, 2, 5)],
            {"hidden_size": 5, "linear_before_reset": 1},
            outputs=2,
            note="linear",
        ),
    ]


def _quantised() -> list[Case]:
    u8 = i(3, 4, low=0, high=256, dtype="uint8")
    s8 = i(4, 5, low=-128, high=128, dtype="int8")
    one = w(np.float32(0.02))
    z8, zs = w(np.uint8(120)), w(np.int8(3))
    x = i(1, 4, 6, 6, low=0, high=256, dtype="uint8")
    kernel = i(5, 4, 3, 3, low=-128, high=128, dtype="int8")
    return [
        Case("QuantizeLinear", [f(3, 4), one, z8]),
        Case("QuantizeLinear", [f(3, 4), one], note="no zero"),
        Case(
            "QuantizeLinear",
            [f(3, 4), w(f(4, low=0.01, high=0.1)), w(i(4, low=0, high=9, dtype="int8"))],
            note="axis",
        ),
        Case("DequantizeLinear", [u8, one, z8]),
        Case(
            "DequantizeLinear",
            [s8, w(f(4, low=0.01, high=0.1)), w(i(4, dtype="int8"))],
            {"axis": 0},
            note="axis",
        ),
        Case("DequantizeLinear", [i(4, dtype="int32"), one], note="int32"),
        Case("DynamicQuantizeLinear", [f(3, 4)], outputs=3),
        Case("MatMulInteger", [u8, w(s8), z8, zs]),
        Case(
            "ConvInteger",
            [x, w(i(5, 4, 3, 3, low=0, high=256, dtype="uint8")), z8],
            {"pads": [1] * 4},
        ),
        Case("QLinearMatMul", [u8, one, z8, w(s8), one, zs, w(np.float32(0.3)), z8]),
        Case(
            "QLinearConv",
            [
                x,
                one,
                z8,
                w(kernel),
                w(f(5, low=0.01, high=0.05)),
                w(np.zeros(5, np.int8)),
                w(np.float32(0.5)),
                z8,
                w(i(5, dtype="int32")),
            ],
            {"pads": [1] * 4},
        ),
    ]


def _microsoft() -> list[Case]:
    def case(op: str, inputs: list[Any], note: str = "", outputs: int = 1, **more: Any) -> Case:
        return Case(op, inputs, more, domain="com.microsoft", note=note, outputs=outputs)

    return [
        case("Gelu", [f(3, 4)], "microsoft"),
        case("BiasGelu", [f(3, 4), w(f(4))]),
        case("FastGelu", [f(3, 4), w(f(4))]),
        case("QuickGelu", [f(3, 4)], alpha=1.5),
        case("FusedMatMul", [f(2, 4, 3), f(2, 5, 4)], transA=1, transB=1, alpha=0.5),
        case("SkipLayerNormalization", [f(2, 3, 4), f(2, 3, 4), w(f(4)), w(f(4)), w(f(4))]),
    ]


CASES: list[Case] = [
    *_unary(),
    *_binary(),
    *_shapes(),
    *_indexing(),
    *_reductions(),
    *_convolutions(),
    *_pools(),
    *_products(),
    *_normalisations(),
    *_resizes(),
    *_recurrent(),
    *_quantised(),
    *_microsoft(),
]
