"""What is cut, what is not, and what it costs, on graphs made for one property each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.architectures import (
    FLOAT,
    INT64,
    Builder,
    bert,
    depthwise,
    quantised,
    residual,
    tied,
    unet,
    vit,
)

from shoal_controlplane.planner.cuts.analysis import Analysis, CutError
from shoal_controlplane.planner.cuts.cutter import analyse_model, extract_stages
from shoal_controlplane.planner.cuts.reading import read_model
from shoal_controlplane.planner.cuts.segments import MAX_SEGMENTS, CutGraph, cut_graph


def cut_of(model: onnx.ModelProto, tmp_path: Path, **shapes: tuple[int, ...]) -> CutGraph:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return cut_graph(read_model(path), shapes)


def ops_before_cuts(cut: CutGraph) -> list[str]:
    return [cut.graph.units[start - 1].op for start in cut.starts[1:-1]]


def chain(ops: int, shape: tuple[int | str, ...] = (1, 8), **kw: object) -> onnx.ModelProto:
    b = Builder()
    x = "x"
    for _ in range(ops - 1):
        x = b.node("Relu", b.linear(x, 8, 8))
    b.node("Relu", x, out="y")
    return b.build({"x": (FLOAT, shape)}, {"y": (FLOAT, shape)})


def test_cuts_follow_activations_and_sums(tmp_path: Path) -> None:
    assert set(ops_before_cuts(cut_of(residual().model, tmp_path))) <= {"Relu", "GlobalAveragePool"}
    assert not {"MatMul", "Div", "Erf", "Sqrt", "ReduceMean", "Sub", "Pow"} & set(
        ops_before_cuts(cut_of(bert().model, tmp_path, ids=(1, 6), mask=(1, 6)))
    )


def test_nothing_fused_is_parted(tmp_path: Path) -> None:
    for model in (residual().model, depthwise().model):
        cut = cut_of(model, tmp_path)
        for start in cut.starts[1:-1]:
            last, following = cut.graph.units[start - 1], cut.graph.units[start]
            assert last.op != "Conv"
            if set(last.gives) & set(following.takes):
                assert (last.op, following.op) not in {
                    ("BatchNormalization", "Relu"),
                    ("BatchNormalization", "Clip"),
                    ("Add", "Relu"),
                    ("HardSigmoid", "Mul"),
                }


def test_the_sum_beside_a_normalisation_can_be_cut(tmp_path: Path) -> None:
    cuts = cut_of(vit().model, tmp_path).analysis.cuts
    assert sum(len(tensors) == 1 for tensors in cuts) >= 6


def test_what_crosses_a_quantised_graph_is_int8(tmp_path: Path) -> None:
    cut = cut_of(quantised().model, tmp_path)
    assert {t.datatype for tensors in cut.analysis.cuts for t in tensors} == {"INT8"}
    assert set(ops_before_cuts(cut)) == {"QuantizeLinear"}


def test_skips_count_once_whoever_reads_them(tmp_path: Path) -> None:
    cut = cut_of(unet().model, tmp_path, x=(1, 3, 32, 32))
    assert max(len(names) for names in cut.crossing) == 4
    assert all(len(set(names)) == len(names) for names in cut.crossing)


def test_a_shared_weight_counts_where_it_is_read(tmp_path: Path) -> None:
    cut = cut_of(tied().model, tmp_path)
    embedding = 30 * 12 * 4
    segments = cut.analysis.segments
    assert segments[0].weight_bytes >= embedding
    assert segments[-1].weight_bytes >= embedding
    assert all(segment.weight_bytes < embedding * 1.5 for segment in segments[1:-1])


def test_multiply_accumulates_of_known_operators(tmp_path: Path) -> None:
    b = Builder()
    x = b.node("Conv", "x", b.random(8, 2, 3, 3), group=2, pads=[1] * 4)  # 8*8*8 * 2*9
    x = b.node("ConvTranspose", x, b.random(8, 4, 2, 2), strides=[2, 2])  # 8*8*8 * 4*4
    x = b.node("Reshape", x, b.const([4, 256], np.int64))
    x = b.node("Gemm", b.random(5, 4), x)  # 5 * 256 * 4
    x = b.node("Einsum", x, b.random(5, 3), equation="ab,ac->bc")  # 5 * 256 * 3
    b.node("MatMul", x, b.random(3, 2), out="y")  # 256 * 3 * 2
    model = b.build({"x": (FLOAT, [1, 4, 8, 8])}, {"y": (FLOAT, [256, 2])})
    found = sum(segment.macs for segment in cut_of(model, tmp_path).analysis.segments)
    assert found == 512 * 18 + 512 * 16 + 5120 + 3840 + 1536


def test_a_recurrence_costs_each_step(tmp_path: Path) -> None:
    b = Builder()
    b.node("LSTM", "x", b.random(1, 20, 4), b.random(1, 20, 5), out="y", hidden_size=5)
    model = b.build({"x": (FLOAT, [7, 2, 4])}, {"y": (FLOAT, [7, 1, 2, 5])})
    (segment,) = cut_of(model, tmp_path).analysis.segments
    assert segment.macs == 7 * 2 * 20 * 9


def test_many_nodes_become_at_most_a_hundred_segments(tmp_path: Path) -> None:
    cut = cut_of(chain(400), tmp_path)
    assert len(cut.analysis.segments) == MAX_SEGMENTS
    # Alike as the layers are, no segment is left with most of the work.
    assert max(segment.macs for segment in cut.analysis.segments) < 0.1 * 399 * 64


def test_the_dearest_of_many_cuts_go_first(tmp_path: Path) -> None:
    b = Builder()
    x = "x"
    for _ in range(120):
        x = b.node("Relu", b.linear(b.node("Relu", b.linear(x, 4, 64)), 64, 4))
    b.node("Relu", x, out="y")
    model = b.build({"x": (FLOAT, [1, 4])}, {"y": (FLOAT, [1, 4])})
    cut = cut_of(model, tmp_path)
    assert {segment.out_bytes for segment in cut.analysis.segments} == {16}


def test_a_peak_is_what_a_unit_reads_and_writes_with_what_waits(tmp_path: Path) -> None:
    b = Builder()
    wide = b.node("Relu", b.linear("x", 4, 100))
    y = b.node("Relu", b.linear(wide, 100, 4))
    b.node("Concat", y, wide, out="y", axis=1)
    model = b.build({"x": (FLOAT, [1, 4])}, {"y": (FLOAT, [1, 104])})
    peaks = [segment.peak_bytes for segment in cut_of(model, tmp_path).analysis.segments]
    assert peaks[0] == 4 * 200
    assert peaks[-1] == 4 * 208


def test_one_node_is_one_segment_with_a_reason(tmp_path: Path) -> None:
    b = Builder()
    b.node("Relu", "x", out="y")
    analysis = cut_of(b.build({"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}), tmp_path).analysis
    assert (len(analysis.segments), analysis.cuts) == (1, ())
    assert "single node" in analysis.reason


def test_no_cut_where_sizes_depend_on_the_data(tmp_path: Path) -> None:
    b = Builder()
    x = b.node("NonZero", b.node("Relu", b.linear("x", 8, 8)))
    x = b.node("Transpose", b.node("Neg", b.node("Abs", x)), perm=[1, 0])
    x = b.node("Cast", x, to=FLOAT)
    b.node("ReduceSum", b.node("Relu", b.linear(x, 2, 8)), out="y", keepdims=0)
    model = b.build({"x": (FLOAT, [1, 8])}, {"y": (FLOAT, [])})
    cut = cut_of(model, tmp_path)
    assert cut.analysis.cuts
    assert all(t.shape == (1, 8) for tensors in cut.analysis.cuts for t in tensors)

    b = Builder()
    b.node("Neg", b.node("Abs", b.node("NonZero", "x")), out="y")
    model = b.build({"x": (FLOAT, [1, 8])}, {"y": (INT64, [2, "K"])})
    analysis = cut_of(model, tmp_path).analysis
    assert len(analysis.segments) == 1
    assert "depends on the data" in analysis.reason
    assert (analysis.outputs[0].shape, analysis.outputs[0].size) == ((2, -1), 0)


def test_no_cut_that_more_than_32_tensors_cross(tmp_path: Path) -> None:
    b = Builder()
    parts = [b.node("Relu", b.linear("x", 8, 8)) for _ in range(40)]
    for _ in range(2):
        parts = [b.node("Sigmoid", part) for part in parts]
    b.node("Concat", *parts, out="y", axis=1)
    model = b.build({"x": (FLOAT, [1, 8])}, {"y": (FLOAT, [1, 320])})
    assert all(len(tensors) <= 32 for tensors in cut_of(model, tmp_path).analysis.cuts)


def test_a_stage_never_draws_from_nothing(tmp_path: Path) -> None:
    b = Builder()
    noise = b.node("RandomNormal", shape=[1, 8], seed=1.0)
    x = b.node("Relu", b.linear("x", 8, 8))
    b.node("Relu", b.linear(b.node("Add", x, noise), 8, 8), out="y")
    path = tmp_path / "model.onnx"
    onnx.save(b.build({"x": (FLOAT, [1, 8])}, {"y": (FLOAT, [1, 8])}), path)
    count = len(analyse_model(path, {}).segments)
    for stage in extract_stages(path, {}, range(count + 1), tmp_path):
        assert stage.inputs


def test_a_graph_that_computes_nothing_from_its_inputs(tmp_path: Path) -> None:
    b = Builder()
    b.node("Identity", b.const([1.0]), out="y")
    path = tmp_path / "model.onnx"
    onnx.save(b.build({"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}), path)
    analysis = analyse_model(path, {})
    assert (len(analysis.segments), bool(analysis.reason)) == (1, True)
    with pytest.raises(CutError, match="nothing from its inputs"):
        extract_stages(path, {}, (0, 1), tmp_path)


@pytest.mark.parametrize(
    "bounds", [(), (0,), (0, 99), (1, 4), (0, 2, 2, 4), (0, 3, 2, 4), (0, 4, 4)]
)
def test_bounds_that_are_none(tmp_path: Path, bounds: tuple[int, ...]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(chain(4), path)
    with pytest.raises(CutError, match="bounds"):
        extract_stages(path, {}, bounds, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def analysis_of(
    tmp_path: Path, shape: tuple[int | str, ...], hints: Mapping[str, tuple[int, ...]]
) -> Analysis:
    path = tmp_path / "model.onnx"
    onnx.save(chain(3, shape), path)
    return analyse_model(path, hints)


def test_hints_give_sizes(tmp_path: Path) -> None:
    assert analysis_of(tmp_path, ("N", 8), {}).shapes == {"x": (1, 8)}
    analysis = analysis_of(tmp_path, ("N", "M", 8), {"x": (2, 5, 8)})
    assert analysis.shapes == {"x": (2, 5, 8)}
    assert {t.shape for tensors in analysis.cuts for t in tensors} == {(2, 5, 8)}


def test_a_hint_counts_for_dimensions_of_the_same_name(tmp_path: Path) -> None:
    cut = cut_of(bert().model, tmp_path, mask=(2, 7))
    assert cut.analysis.shapes == {"ids": (2, 7), "mask": (2, 7)}


@pytest.mark.parametrize(
    ("shape", "hints", "sentence"),
    [
        (("N", "M", 8), {}, r"input 'x' is \?x\?x8, and shapes are needed.*--shape x=1x1x8"),
        ((1, "M", 8), {}, "shapes are needed"),
        (("N", 8), {"x": (1, 9)}, r"1x9 does not fit the model's input 'x' of \?x8"),
        (("N", 8), {"x": (1, 1, 8)}, "does not fit"),
        (("N", 8), {"x": (0, 8)}, "does not fit"),
        (("N", 8), {"x": (2**31, 8)}, "does not fit"),
        (("N", 8), {"z": (1, 8)}, "no input 'z'"),
    ],
)
def test_hints_that_lack_or_do_not_fit(
    tmp_path: Path,
    shape: tuple[int | str, ...],
    hints: Mapping[str, tuple[int, ...]],
    sentence: str,
) -> None:
    with pytest.raises(CutError, match=sentence):
        analysis_of(tmp_path, shape, hints)


def test_dimensions_stay_as_free_as_they_are(tmp_path: Path) -> None:
    model = unet()
    path = tmp_path / "model.onnx"
    onnx.save(model.model, path)
    count = len(analyse_model(path, model.shapes).segments)
    for stage in extract_stages(path, model.shapes, range(count + 1), tmp_path):
        graph = onnx.load(tmp_path / stage.filename).graph
        for value in (*graph.input, *graph.output):
            dims = value.type.tensor_type.shape.dim
            assert [d.HasField("dim_value") for d in dims] == [True, True, False, False]


def test_a_negative_dimension_is_a_free_one(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(chain(3, (-1, 8)), path)
    assert analyse_model(path, {}).shapes == {"x": (1, 8)}
    (_, stage) = extract_stages(path, {}, (0, 1, 3), tmp_path)
    (value,) = onnx.load(tmp_path / stage.filename).graph.input
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [0, 8]


def test_functions_are_written_out(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 16), helper.make_opsetid("own", 1)]
    body = [
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
    ]
    function = helper.make_function("own", "Twice", ["a"], ["c"], body, opsets[:1])
    nodes = [
        helper.make_node("Twice", ["x"], ["h"], domain="own"),
        helper.make_node("Twice", ["h"], ["y"], domain="own"),
    ]
    ends = [[helper.make_tensor_value_info(name, FLOAT, [1, 8])] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", *ends)
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    cut = cut_of(model, tmp_path)
    assert [unit.op for unit in cut.graph.units] == ["Relu", "Sigmoid"] * 2
    assert len(cut.analysis.segments) == 4


def test_nodes_are_sorted(tmp_path: Path) -> None:
    model = chain(4)
    nodes = list(model.graph.node)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(nodes))
    assert cut_of(shuffled, tmp_path).analysis == cut_of(model, tmp_path).analysis


def test_text_is_never_cut(tmp_path: Path) -> None:
    b = Builder()
    b.node("Identity", b.node("Identity", "x"), out="y")
    ends = ({name: (TensorProto.STRING, [2])} for name in ("x", "y"))
    analysis = cut_of(b.build(*ends), tmp_path).analysis
    assert len(analysis.segments) == 1
