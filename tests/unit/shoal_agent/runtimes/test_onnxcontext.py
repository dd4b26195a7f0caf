from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx is not installed: make setup")

from onnx import TensorProto, helper
from support import onnx_models

from shoal_agent.runtimes.onnxcontext import ContextFolder, is_context

CPU, QNN = "CPUExecutionProvider", "QNNExecutionProvider"


def fill(folder: Path, nodes: dict[str, int]) -> None:
    with ContextFolder(folder).filling(nodes) as context:
        context.write_bytes(b"context")
        context.with_name("code.bin").write_bytes(b"code")


def test_a_folder_is_filled_at_once_and_tells_what_it_was_made_of(tmp_path: Path) -> None:
    folder = ContextFolder(tmp_path)
    nodes: dict[str, int] = {}
    with folder.filling(nodes) as context:
        assert not folder.is_filled
        context.write_bytes(b"context")
        context.with_name("code.bin").write_bytes(b"code")
        nodes |= {QNN: 97, CPU: 3}
    assert folder.is_filled
    assert folder.context.read_bytes() == b"context"
    assert {p.name for p in tmp_path.iterdir()} == {
        "model_ctx.onnx",
        "code.bin",
        "placement.json",
    }
    # The CPU's nodes are counted where they run.
    assert folder.nodes({QNN: 1}) == {QNN: 97}
    assert folder.nodes({QNN: 1, CPU: 2}) == {QNN: 97, CPU: 2}
    assert folder.nodes({CPU: 4}) == {CPU: 4}


def test_a_compilation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with ContextFolder(tmp_path).filling({}) as context:
            context.write_bytes(b"half")
            raise ValueError("it failed")

    with pytest.raises(ValueError, match="it failed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_was_compiled_nothing_is_kept(tmp_path: Path) -> None:
    with ContextFolder(tmp_path).filling({CPU: 3}):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("counts", [None, b"", b"[]", b'{"QNNExecutionProvider": -1}', b"\xff"])
def test_counts_that_cannot_be_used_prove_what_is_seen_only(tmp_path: Path, counts) -> None:
    fill(tmp_path, {QNN: 97})
    (tmp_path / "placement.json").unlink()
    if counts is not None:
        (tmp_path / "placement.json").write_bytes(counts)
    assert ContextFolder(tmp_path).nodes({QNN: 1, CPU: 2}) == {QNN: 1, CPU: 2}


def test_a_disk_that_is_full_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), ContextFolder(tmp_path / "none").filling({}):
        pass


def test_compiled_models_are_recognised(tmp_path: Path) -> None:
    plain = onnx_models.dense(tmp_path / "plain.onnx")
    value = helper.make_tensor_value_info
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", source=QNN)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["w"], ["x"]), node],
        "g",
        [value("w", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    compiled = tmp_path / "compiled.onnx"
    compiled.write_bytes(helper.make_model(graph).SerializeToString())
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"EPContext" * 9)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    assert is_context(compiled)
    assert not any(map(is_context, (plain, garbage, empty, tmp_path / "none", tmp_path)))
