"""Each operator of the TPU worker gives what ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import pytest
from clouds.rig import only

pytestmark = [only("tpu")]

pytest.importorskip("jax", reason="needs shoal[tpu]: run `make test-clouds`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs shoal[tpu]: run `make test-clouds`")

from clouds.tpu_cases import CASES, Case, model_of  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from shoal_controlplane.offload.tpu.worker import reader  # noqa: E402
from shoal_controlplane.offload.tpu.worker.compile import CompiledModel, configure  # noqa: E402
from shoal_controlplane.offload.tpu.worker.errors import ModelError  # noqa: E402
from shoal_controlplane.offload.tpu.worker.operators import entries  # noqa: E402

configure("cpu")

# What has no case of its own: written by `Constant` and `If` below, or of an opset that ONNX
# Runtime does not run.
ELSEWHERE = {"Constant", "If", "Scatter", "Swish", "CumProd"}


def answers(model: bytes, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options).run(None, fed)


def compare(model: bytes, fed: dict[str, np.ndarray], tolerance: float) -> None:
    expected = answers(model, fed)
    found = CompiledModel(reader.parse(model)).infer(fed)
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_gives_what_onnx_runtime_gives(case: Case) -> None:
    compare(case.model(), case.fed(), case.tolerance)


def test_every_operator_has_a_case() -> None:
    covered = {(case.domain, case.op) for case in CASES}
    lacking = {(e.domain, e.name) for e in entries()} - covered
    assert {name for _, name in lacking} <= ELSEWHERE


def test_what_follows_from_shapes_is_known() -> None:
    """Shape -> Slice -> Concat -> Reshape, as exporters write it, needs no constant."""
    fed = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    known = {
        "start": np.int64([0]),
        "end": np.int64([1]),
        "two": np.int64([2]),
        "rest": np.int64([-1]),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "start", "end"], ["batch"]),
        helper.make_node("Mul", ["batch", "two"], ["doubled"]),
        helper.make_node("Concat", ["doubled", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    compare(model_of(nodes, fed, known, ["y"]), fed, 0)


def test_a_branch_is_taken_by_what_is_known_and_by_data() -> None:
    def branch(name: str, op: str) -> object:
        return helper.make_graph(
            [helper.make_node(op, ["x", "x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])],
        )

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("t", "Add"), else_branch=branch("e", "Mul")
    )
    x = np.float32([1, 2, 3])
    for condition in (True, False):
        c = np.asarray(condition)
        model = model_of([node], {"x": x}, {"c": c}, ["y"])
        compare(model, {"x": x}, 0)
        model = model_of([node], {"x": x, "c": c}, {}, ["y"])
        compare(model, {"x": x, "c": c}, 0)


def test_a_shape_that_depends_on_data_is_refused_by_name() -> None:
    fed = {"x": np.float32([1, 2, 3]), "shape": np.int64([3, 1])}
    model = model_of(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="r7")], fed, {}, ["y"]
    )
    with pytest.raises(ModelError, match=r"Reshape .*opset 17.*'r7'.*shape depends on the data"):
        CompiledModel(reader.parse(model)).infer(fed)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*(st.integers(0, 2) for _ in range(4))),
    dilation=st.integers(1, 2),
    group=st.sampled_from([1, 2]),
)
def test_convolutions_of_any_form(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilation: int,
    group: int,
) -> None:
    rng = np.random.default_rng(1)
    reach = [(n - 1) * dilation + 1 for n in kernel]
    if any(n + pads[i] + pads[i + 2] < reach[i] for i, n in enumerate(size)):
        return
    x = rng.normal(size=(2, 4, *size)).astype(np.float32)
    weights = rng.normal(size=(6, 4 // group, *kernel)).astype(np.float32)
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=strides,
        pads=pads,
        dilations=[dilation] * 2,
        group=group,
    )
    compare(model_of([node], {"x": x}, {"w": weights}, ["y"]), {"x": x}, 1e-4)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(3, 12),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 4),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil=st.booleans(),
    include=st.booleans(),
)
def test_averages_of_any_form(
    size: int, kernel: int, stride: int, pads: tuple[int, int], ceil: bool, include: bool
) -> None:
    if max(pads) >= kernel:
        return
    x = np.random.default_rng(1).normal(size=(1, 2, size)).astype(np.float32)
    node = helper.make_node(
        "AveragePool",
        ["x"],
        ["y"],
        kernel_shape=[kernel],
        strides=[stride],
        pads=pads,
        ceil_mode=int(ceil),
        count_include_pad=int(include),
    )
    compare(model_of([node], {"x": x}, {}, ["y"], opset=19), {"x": x}, 1e-5)
