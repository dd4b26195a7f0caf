from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tflite_delegate import ADDS, SNAPDRAGON

from shoal_agent.runtimes.delegates import board_sets, delegated, find_library
from shoal_shared.messages import Board


def node(name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"op_name": name, "inputs": inputs, "outputs": outputs}


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("snapdragon", ["tflite-qnn", "tflite-gpu", "tflite-nnapi", "cpu"]),
        ("jetson", ["tflite-gpu", "cpu"]),
        ("generic", ["cpu"]),
    ],
)
def test_a_board_has_its_familys_delegates_and_the_cpu_last(family: str, names: list[str]) -> None:
    facts = replace(SNAPDRAGON, description=Board(family=family, model="m", soc="s"))
    assert [s.name for s in board_sets(facts, lambda _: "found")] == names
    assert [s.name for s in board_sets(facts, lambda _: None)] == ["cpu"]


def test_libraries_are_only_looked_for_where_a_delegate_may_be() -> None:
    def find(name: str) -> str:
        raise AssertionError(name)

    assert [s.name for s in board_sets(None, find)] == ["cpu"]


def test_libraries_are_found_as_the_linker_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "libthing.so").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path / 'none'}:{tmp_path / 'b'}:{tmp_path}/a")
    assert find_library("thing") == str(tmp_path / "b/libthing.so")
    assert find_library("surely-nobody-has-this") is None
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert find_library("thing") is None


def test_nodes_between_a_parts_inputs_and_outputs_were_taken() -> None:
    # 0 -a-> 1 -b-> 2 -c-> 3, and d from 1 to 4 beside them; constants are 8 and 9.
    graph = [
        node("A", [0, 8], [1]),
        node("B", [1], [2]),
        node("C", [2, 9, -1], [3]),
        node("D", [1], [4]),
    ]
    assert delegated(graph) == (0, 4)
    assert delegated([*graph, node("DELEGATE", [1, 9], [3])]) == (2, 4)
    assert delegated([*graph, node("DELEGATE", [1], [4])]) == (1, 4)
    parts = [node("DELEGATE", [0, 8], [1]), node("DELEGATE", [1, 9], [3, 4])]
    assert delegated([*graph, *parts]) == (4, 4)
    assert delegated([]) == (0, 0)


@st.composite
def _graphs(draw: st.DrawFn) -> tuple[list[dict[str, Any]], set[int]]:
    """A graph in order, and some of its nodes in one piece of that order."""
    count = draw(st.integers(1, 12))
    graph = []
    for number in range(count):
        inputs = draw(st.lists(st.integers(0, number), min_size=1, max_size=3))
        graph.append(node("OP", inputs, [number + 1]))
    first = draw(st.integers(0, count - 1))
    last = draw(st.integers(first, count - 1))
    return graph, set(range(first, last + 1))


@given(_graphs())
def test_what_a_delegate_took_is_counted_whatever_the_graph(
    case: tuple[list[dict[str, Any]], set[int]],
) -> None:
    graph, taken = case
    made = {graph[n]["outputs"][0] for n in taken}
    given_ = {t for n in taken for t in graph[n]["inputs"]} - made
    used = {t for n, op in enumerate(graph) if n not in taken for t in op["inputs"]}
    # Outputs of a part are what others use, and those of the graph, which nothing uses.
    inside = {t for n in taken for t in graph[n]["inputs"]}
    wanted = {t for t in made if t in used or t not in inside}
    part = node("DELEGATE", sorted(given_), sorted(wanted))
    assert delegated([*graph, part]) == (len(taken), len(graph))


def test_the_models_of_the_tests_are_what_their_builder_makes(tmp_path: Path) -> None:
    reason = "is not installed: make setup"
    interpreters = pytest.importorskip("ai_edge_litert.interpreter", reason=f"LiteRT {reason}")
    pytest.importorskip("flatbuffers", reason=f"flatbuffers {reason}")
    from support import tflite_models

    built = tflite_models.chain(tmp_path / "m", tflite_models.ADDS, [-1, 4])

    def ops(path: Path) -> list[tuple[str, list[int], list[int]]]:
        found = interpreters.Interpreter(model_path=str(path))._get_ops_details()
        return [(o["op_name"], o["inputs"].tolist(), o["outputs"].tolist()) for o in found]

    assert ops(built) == ops(ADDS)


def test_xnnpack_takes_whole_models() -> None:
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = interpreters.Interpreter(model_path=str(ADDS))
    assert delegated(interpreter._get_ops_details()) == (0, 5)
    interpreter.allocate_tensors()
    assert delegated(interpreter._get_ops_details()) == (5, 5)
