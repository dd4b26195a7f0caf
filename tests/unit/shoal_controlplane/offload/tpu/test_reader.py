"""Which models the TPU worker takes, found out without JAX."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support import onnx_models

from shoal_controlplane.offload.tpu.worker import reader
from shoal_controlplane.offload.tpu.worker.errors import ModelError, UnsupportedError
from shoal_controlplane.offload.tpu.worker.operators import NEWEST_OPSET, entries

FLOAT = TensorProto.FLOAT


def model_of(
    node: object,
    opset: int = 17,
    domain: str = "",
    kind: int = FLOAT,
    weights: tuple[object, ...] = (),
) -> bytes:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, ["N", 3])],
        [helper.make_tensor_value_info("y", kind, ["N", 3])],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    content: bytes = helper.make_model(graph, opset_imports=opsets).SerializeToString()
    return content


def node_of(op: str, domain: str = "", **attributes: object) -> object:
    return helper.make_node(op, ["x"], ["y"], name="n1", domain=domain, **attributes)


def test_a_model_has_its_signature(tmp_path: Path) -> None:
    path = onnx_models.dense(tmp_path / "dense.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    signature = reader.read(path, f"sha256:{digest}").signature
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [("x", "FP32", (-1, 16))]
    assert [(s.name, s.datatype, s.shape) for s in signature.outputs] == [("y", "FP32", (-1, 4))]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            model_of(node_of("Unique")),
            r"no operator Unique \(domain ai.onnx, opset 17, node 'n1'\)",
        ),
        (
            model_of(node_of("Relu", "my.own"), domain="my.own"),
            r"no operator Relu \(domain my.own, opset 1, node 'n1'\)",
        ),
        (model_of(node_of("Relu"), 999), "Relu.*opsets up to"),
        (model_of(node_of("Relu"), 5), "Relu.*from opset 6 on"),
        (model_of(node_of("Relu", beauty=1)), "Relu.*attribute beauty is unknown"),
        (model_of(node_of("Gelu", approximate="sine"), 20), "Gelu.*approximate is 'sine'"),
        (model_of(node_of("Cast", to=TensorProto.STRING)), "Cast.*attribute to is 8"),
        (model_of(node_of("Identity"), kind=TensorProto.STRING), "element type of 'x'"),
        (
            model_of(node_of("Relu"), weights=(numpy_helper.from_array(np.array(["a"]), "w"),)),
            "element type of weight 'w'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_worker_lacks_is_refused_by_name(content: bytes, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        reader.parse(content)


def test_weights_outside_of_the_file_are_refused() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(UnsupportedError, match="weight 'w' lies outside"):
        reader.parse(model_of(node_of("Relu"), weights=(tensor,)))


def test_operators_in_branches_are_looked_at() -> None:
    inner = helper.make_graph(
        [helper.make_node("Unique", ["x"], ["z"], name="deep")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", FLOAT, None)],
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(UnsupportedError, match=r"Unique.*'deep'"):
        reader.parse(model_of(node))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no graph"),
        (b"not a model at all", "no ONNX file"),
        (model_of(node_of("Relu", "lost")), "no opset of domain lost"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_model_is_told(content: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        reader.parse(content)


def test_other_bytes_than_asked_for_are_refused() -> None:
    with pytest.raises(ModelError, match="digest"):
        reader.parse(model_of(node_of("Relu")), "sha256:" + "0" * 64)


@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 8))
def test_damaged_models_end_in_a_sentence(junk: bytes, at: int, cut: int) -> None:
    content = model_of(node_of("Relu"))
    damaged = content[:at] + junk + content[at + cut :]
    try:
        reader.parse(damaged)
    except ModelError as error:
        assert str(error)


def test_the_table_is_read_without_jax() -> None:
    code = (
        "import sys; from shoal_controlplane.offload.tpu.worker import reader; "
        "assert not {'jax', 'starlette', 'uvicorn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_versions_of_an_operator_follow_one_another() -> None:
    found = {}
    for entry in entries():
        assert 1 <= entry.since <= NEWEST_OPSET[entry.domain]
        key = (entry.domain, entry.name, entry.since)
        assert key not in found, f"{key} is there twice"
        found[key] = entry
    assert len({(domain, name) for domain, name, _ in found}) > 150
