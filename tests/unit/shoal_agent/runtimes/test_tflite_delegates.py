"""TFLite on delegates: with a real one, which takes additions and computes them on the CPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tflite_delegate import ADDS, GPU, LIBRARIES, QNN, SNAPDRAGON, build

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import (
    LoadedModel,
    ProviderSet,
    RuntimeLoadError,
    RuntimeShapeError,
)
from shoal_agent.runtimes.delegates import find_library
from shoal_agent.runtimes.tflite import TfliteRuntime
from shoal_agent.runtimes.trial import TrialTask, try_in_child
from shoal_shared.golden import Case, Golden, encode
from shoal_shared.placement import Proof, of_nodes

if not TfliteRuntime.is_installed():
    pytest.skip("TFLite is not installed: make setup", allow_module_level=True)

SHAPES = {"x": (2, 4)}


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("delegates") / "lib")


@pytest.fixture
def board(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> BoardFacts:
    """A board with the libraries of a GPU's and an NPU's delegate."""
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/none:{libraries}")
    return SNAPDRAGON


def gpu(facts: BoardFacts, **settings: str) -> ProviderSet:
    options: dict[str, Any] = {"provider_options": {GPU: settings}}
    return next(s for s in TfliteRuntime(facts).provider_sets(options) if s.name == "tflite-gpu")


def load(facts: BoardFacts, **settings: str) -> LoadedModel:
    return TfliteRuntime(facts).load(ADDS, {}, gpu(facts, **settings), None, SHAPES)


def test_a_board_has_the_delegates_whose_libraries_are_there(
    board: BoardFacts, libraries: Path
) -> None:
    assert find_library("QnnTFLiteDelegate") == str(libraries / LIBRARIES[QNN])
    runtime = TfliteRuntime(board)
    sets = runtime.provider_sets({})
    assert [s.name for s in sets] == ["tflite-qnn", "tflite-gpu", "cpu"]
    assert [s.accelerated for s in sets] == [True, True, False]
    assert [s.static for s in sets] == [True, True, False]
    assert dict(sets[0].providers)[QNN] == {"backend_type": "htp"}
    assert runtime.info.providers == (QNN, "CPU", GPU)
    assert [s.name for s in TfliteRuntime(None).provider_sets({})] == ["cpu"]


@pytest.mark.parametrize(("adds", "taken"), [("9", 3), ("2", 2), ("0", 0)])
def test_nodes_are_counted_where_the_delegate_took_them(
    board: BoardFacts, adds: str, taken: int
) -> None:
    model = load(board, adds=adds)
    expected = {name: count for name, count in ((GPU, taken), ("CPU", 5 - taken)) if count}
    assert model.placement == of_nodes(expected)
    assert model.placement.proof is Proof.GRAPH
    x = np.array([[1, -2, 3, -4], [0, 0.5, 0, -1]], "<f4")
    assert model.run({"x": x})["y"].tolist() == (8 * np.abs(x)).tolist()


def test_the_cpu_counts_as_such_though_xnnpack_is_a_delegate(board: BoardFacts) -> None:
    model = TfliteRuntime(board).load(ADDS, {})
    assert model.placement == of_nodes({"CPU": 5})
    assert model.providers == ("CPU",)


def test_two_delegates_cannot_be_told_apart(board: BoardFacts) -> None:
    options = {"providers": [QNN, GPU, "CPU"], "provider_options": {QNN: {"adds": "1"}}}
    runtime = TfliteRuntime(board)
    (chosen,) = runtime.provider_sets(options)
    model = runtime.load(ADDS, options, chosen, None, SHAPES)
    assert model.placement.proof is Proof.LISTED
    assert not model.placement.is_accelerated
    assert model.run({"x": np.ones(SHAPES["x"], "<f4")})["y"].tolist() == [[8.0] * 4] * 2


def test_batches_are_cut_to_the_shape_that_the_delegate_was_made_for(board: BoardFacts) -> None:
    model = load(board)
    assert model.signature.inputs[0].shape == (-1, 4)
    assert model.signature.batchable
    for size in (1, 2, 5, 0):
        x = np.arange(4 * size, dtype="<f4").reshape(size, 4)
        assert model.run({"x": x})["y"].tolist() == (8 * x).tolist()
    with pytest.raises(RuntimeShapeError, match="this device compiled the model for 'x'"):
        model.run({"x": np.ones((2, 5), "<f4")})
    assert model.placement == of_nodes({GPU: 3, "CPU": 2})


def test_shapes_that_are_free_must_be_known(board: BoardFacts) -> None:
    runtime = TfliteRuntime(board)
    with pytest.raises(RuntimeLoadError, match=r"'x' has free dimensions.*'static_shapes'"):
        runtime.load(ADDS, {}, gpu(board))
    model = runtime.load(ADDS, {"static_shapes": {"x": [3, 4]}}, gpu(board), None, SHAPES)
    with pytest.raises(RuntimeShapeError, match=re.escape("[3, 4]")):
        model.run({"x": np.ones((3, 9), "<f4")})
    with pytest.raises(RuntimeLoadError, match="cannot load the model"):
        runtime.load(ADDS, {}, gpu(board), None, {"x": (2, 7)})


def test_options_of_delegates_that_other_boards_have_are_passed_over(board: BoardFacts) -> None:
    options = {"provider_options": {"TFLiteNnapiDelegate": {"a": "b"}, GPU: {"adds": 1}}}
    for facts, count in ((board, 3), (None, 1)):
        sets = TfliteRuntime(facts).provider_sets(options)
        assert len(sets) == count
    with pytest.raises(RuntimeLoadError, match="'NoDelegate' is not available"):
        TfliteRuntime(board).provider_sets({"provider_options": {"NoDelegate": {}}})
    with pytest.raises(RuntimeLoadError, match="must map"):
        TfliteRuntime(board).provider_sets({"provider_options": 5})


@pytest.mark.parametrize(
    ("how", "reason"),
    [("refuse", "the accelerator is in use"), ("refuse-silently", "it gave no reason")],
)
def test_a_delegate_that_refuses_says_why(board: BoardFacts, how: str, reason: str) -> None:
    with pytest.raises(RuntimeLoadError) as caught:
        load(board, on_create=how)
    assert str(caught.value) == f"{GPU} cannot be loaded: {reason}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            None,
            "libtensorflowlite_gpu_delegate.so not found: install the delegate of this board's "
            "image",
        ),
        (b"", "libtensorflowlite_gpu_delegate.so is damaged or for another processor"),
        (b"no library" * 99, "libtensorflowlite_gpu_delegate.so is damaged or for another"),
    ],
)
def test_a_library_that_cannot_be_loaded(
    board: BoardFacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    sentence: str,
) -> None:
    chosen = gpu(board)
    if content is not None:
        (tmp_path / LIBRARIES[GPU]).write_bytes(content)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(RuntimeLoadError, match=f"^{re.escape(sentence)}"):
        TfliteRuntime(board).load(ADDS, {}, chosen, None, SHAPES)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_library_that_is_no_delegate(board: BoardFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_agent.runtimes.tflite.find_library", lambda _: "libc.so.6")
    with pytest.raises(RuntimeLoadError, match=r"^libc\.so\.6 is no TFLite delegate$"):
        load(board)


# In a child, as the agent does it.


def task(chosen: ProviderSet, folder: Path) -> TrialTask:
    x = np.array([[1, -2, 3, -4], [0, 0.5, 0, -1]], "<f4")
    golden = folder / "golden"
    golden.write_bytes(encode(Golden((Case({"x": x}, {"y": 8 * np.abs(x)}),))))
    return TrialTask(
        format="tflite",
        path=str(ADDS),
        options={},
        provider_set=chosen,
        shapes=SHAPES,
        golden=str(golden),
    )


async def test_a_trial_proves_the_placement(board: BoardFacts, tmp_path: Path) -> None:
    outcome = await try_in_child(task(gpu(board), tmp_path))
    assert outcome.placement == of_nodes({GPU: 3, "CPU": 2})
    assert outcome.placement.is_accelerated
    assert (outcome.agrees, outcome.golden_error) == (True, 0.0)
    few = await try_in_child(task(gpu(board, adds="1"), tmp_path))
    assert not few.placement.is_accelerated


async def test_a_delegate_that_crashes_is_named(board: BoardFacts, tmp_path: Path) -> None:
    with pytest.raises(RuntimeLoadError, match=rf"^{GPU} crashed \(SIGABRT\) while it loaded"):
        await try_in_child(task(gpu(board, on_create="crash"), tmp_path))


async def test_a_library_that_went_away_is_named(
    board: BoardFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = gpu(board)
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    with pytest.raises(RuntimeLoadError, match=f"^{re.escape(LIBRARIES[GPU])} not found: install"):
        await try_in_child(task(chosen, tmp_path))
