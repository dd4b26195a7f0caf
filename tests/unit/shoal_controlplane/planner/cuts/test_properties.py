"""Stages composed equal the whole, whatever the graph."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")

from support.architectures import FLOAT, Builder, Session, floats, run_stages

from shoal_controlplane.planner.cuts.cutter import analyse_model, extract_stages

UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Erf", "Identity", "linear", "norm", "gelu", "qdq")
BINARY = ("Add", "Mul", "Sub", "Max", "swish")
SHAPED = ("reshape", "scale by size")
WIDTH = 4


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A random acyclic graph on [N, 4] tensors with up to three inputs and outputs."""
    b = Builder(draw(st.integers(0, 9)))
    inputs = [f"in{i}" for i in range(draw(st.integers(1, 3)))]
    tensors = list(inputs)
    for _ in range(draw(st.integers(1, 14))):
        op = draw(st.sampled_from(UNARY + BINARY + SHAPED))
        x, y = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        if op == "linear":
            made = b.linear(x, WIDTH, WIDTH)
        elif op == "norm":
            made = b.layer_norm(x, WIDTH)
        elif op == "gelu":
            made = b.gelu(x)
        elif op == "qdq":
            made = b.quantize(x)
        elif op == "swish":
            made = b.node("Mul", x, b.node("Sigmoid", x))
        elif op == "reshape":
            made = b.node("Reshape", x, b.node("Shape", y))
        elif op == "scale by size":
            made = b.node("Mul", x, b.node("Cast", b.node("Size", y), to=FLOAT))
        else:
            made = b.node(op, x, y) if op in BINARY else b.node(op, x)
        tensors.append(made)
    made = [name for name in tensors if name not in inputs]
    chosen = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    ends = [{name: (FLOAT, ["N", WIDTH]) for name in names} for names in (inputs, chosen)]
    return b.build(*ends)


@settings(max_examples=60)
@given(model=graphs(), data=st.data())
def test_stages_composed_equal_the_whole(model: onnx.ModelProto, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "model.onnx"
        onnx.save(model, path)
        analysis = analyse_model(path, {})
        count = len(analysis.segments)
        assert len(analysis.cuts) == count - 1
        inner = data.draw(st.sets(st.integers(1, count - 1)) if count > 1 else st.just(set()))
        bounds = (0, *sorted(inner), count)
        stages = extract_stages(path, {}, bounds, folder)
        assert [(stage.first, stage.last) for stage in stages] == list(pairwise(bounds))
        sessions = [Session(folder / stage.filename, level="none") for stage in stages]
        whole = Session(path, level="none")
        for batch in (1, 3):
            feeds = {v.name: floats(batch, WIDTH, seed=i) for i, v in enumerate(model.graph.input)}
            expected = whole.run(feeds)
            found = run_stages(stages, sessions, feeds)
            assert found.keys() == expected.keys()
            for output, values in expected.items():
                np.testing.assert_array_equal(found[output], values)
