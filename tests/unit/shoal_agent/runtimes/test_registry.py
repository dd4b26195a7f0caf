from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.runtimes import CpuRuntime
from support.tflite_delegate import LIBRARIES, QNN, SNAPDRAGON

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes import registry as module
from shoal_agent.runtimes.base import LoadedModel, RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry


class FakeRuntime(CpuRuntime):
    def load(self, path: Path, options: Mapping[str, Any], *_: Any) -> LoadedModel:
        raise RuntimeLoadError("fake")


def test_a_missing_runtime_is_named_with_its_remedy() -> None:
    registry = RuntimeRegistry([FakeRuntime()])

    assert registry.for_format("onnx").info.name == "fake"
    with pytest.raises(RuntimeLoadError, match=r"pip install 'shoal\[tflite\]'"):
        registry.for_format("tflite")
    with pytest.raises(RuntimeLoadError, match="'torch' is not known; known are onnx, tflite"):
        registry.for_format("torch")
    assert any("shoal[tflite]" in note for note in registry.notes())
    assert not any("shoal[cpu]" in note for note in registry.notes())


def test_ways_to_run_and_versions_are_those_of_the_formats_runtime() -> None:
    registry = RuntimeRegistry([FakeRuntime()])

    assert [s.name for s in registry.provider_sets("onnx", {})] == ["cpu"]
    assert registry.runtime_version("onnx") == "fake 1"
    assert registry.runtime_version("tflite") == ""
    with pytest.raises(RuntimeLoadError, match=r"pip install 'shoal\[tflite\]'"):
        registry.provider_sets("tflite", {})


def test_the_board_decides_on_the_ways_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: make setup")
    (tmp_path / LIBRARIES[QNN]).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    def names(facts: BoardFacts | None) -> list[str]:
        return [s.name for s in RuntimeRegistry.discover(facts).provider_sets("tflite", {})]

    assert names(SNAPDRAGON) == ["tflite-qnn", "cpu"]
    assert names(None) == ["cpu"]


def test_nothing_installed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    registry = RuntimeRegistry.discover()

    assert registry.infos() == ()
    with pytest.raises(RuntimeLoadError, match=r"pip install 'shoal\[cpu\]'"):
        registry.for_format("onnx")


def test_two_distributions_of_onnx_runtime_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1", "onnxruntime-gpu": "1"}
    monkeypatch.setattr(module, "installed_distributions", lambda: both)
    notes = RuntimeRegistry([FakeRuntime()]).notes()
    assert any("onnxruntime and onnxruntime-gpu overwrite one another" in n for n in notes)


def test_discovery_imports_no_runtime() -> None:
    code = (
        "import sys; from shoal_agent.runtimes.registry import RuntimeRegistry as R; "
        "R.discover().infos(); "
        "sys.exit(bool({'onnxruntime', 'ai_edge_litert', 'tflite_runtime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
