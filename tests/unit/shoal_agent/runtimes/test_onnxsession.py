"""ONNX Runtime as it behaves with accelerators, on the CPU: the real library computes, what it
says of providers and nodes is made up."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")
pytest.importorskip("onnx", reason="onnx is not installed: make setup")

from support import onnx_models  # noqa: E402

from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError, RuntimeShapeError  # noqa: E402
from shoal_agent.runtimes.onnx import OnnxRuntime  # noqa: E402
from shoal_agent.runtimes.providers import CANN, CPU, CUDA, TENSORRT, board_sets  # noqa: E402
from shoal_shared.placement import Proof  # noqa: E402


class FakeOrt:
    """The library, with providers that it pretends to have used."""

    __version__ = "9.9"
    SessionOptions = ort.SessionOptions
    GraphOptimizationLevel = ort.GraphOptimizationLevel
    OrtValue = ort.OrtValue

    def __init__(self) -> None:
        self.calls: list[SimpleNamespace] = []
        self.left_out: set[str] = set()
        self.error: Exception | None = None
        self.nodes: dict[str, int] | None = {}

    def InferenceSession(self, model: Any, **arguments: Any) -> Any:
        self.calls.append(SimpleNamespace(model=model, **arguments))
        if self.error is not None:
            raise self.error
        session = ort.InferenceSession(model, providers=[CPU])
        asked = [name for name, _ in arguments["providers"]]
        session.get_providers = lambda: [n for n in asked if n not in self.left_out] or [CPU]
        parts = [
            SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
            for name, count in (self.nodes or {}).items()
        ]
        session.get_provider_graph_assignment_info = lambda: parts
        if self.nodes is None:
            session = SimpleNamespace(
                get_providers=session.get_providers,
                get_inputs=session.get_inputs,
                get_outputs=session.get_outputs,
                run=session.run,
                disable_fallback=session.disable_fallback,
            )
        return session

    @property
    def options(self) -> dict[str, dict[str, str]]:
        return dict(self.calls[-1].providers)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    fake = FakeOrt()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Only its batch dimension is free."""
    return onnx_models.dense(tmp_path / "m.onnx")


def a_set(name: str) -> ProviderSet:
    sets = board_sets((TENSORRT, CUDA, CANN, CPU), None, "aarch64")
    return next(s for s in sets if s.name == name)


def test_nodes_prove_where_the_model_runs(library: FakeOrt, model: Path) -> None:
    library.nodes = {CUDA: 3, CPU: 1}
    placement = OnnxRuntime().load(model, {}, a_set("cuda")).placement
    assert (placement.accelerated, placement.proof) == (0.75, Proof.GRAPH)
    assert placement.nodes == library.nodes
    assert library.calls[-1].enable_fallback == 0


def test_a_library_that_does_not_tell_nodes_proves_nothing(library: FakeOrt, model: Path) -> None:
    library.nodes = None
    placement = OnnxRuntime().load(model, {}, a_set("cuda")).placement
    assert (placement.accelerated, placement.proof) == (1.0, Proof.LISTED)
    assert not placement.is_accelerated


@pytest.mark.parametrize(
    ("name", "left_out"), [("cuda", CUDA), ("tensorrt", TENSORRT), ("tensorrt", CUDA)]
)
def test_a_provider_that_was_left_out_in_silence_is_an_error(
    library: FakeOrt, model: Path, name: str, left_out: str
) -> None:
    library.left_out = {left_out}
    with pytest.raises(RuntimeLoadError, match=f"^{left_out} could not be used$"):
        OnnxRuntime().load(model, {}, a_set(name))


def test_a_provider_that_fails_is_an_error_in_one_line(library: FakeOrt, model: Path) -> None:
    library.error = RuntimeError("Failed to load library libx.so: cannot open\n at line 3")
    with pytest.raises(RuntimeLoadError, match=r"^ONNX Runtime 9\.9 cannot load the model: Fai"):
        OnnxRuntime().load(model, {}, a_set("cann"))


def test_causes_reach_the_log_for_accelerators_only(library: FakeOrt, model: Path) -> None:
    OnnxRuntime().load(model, {}, a_set("cuda"))
    assert library.calls[-1].sess_options.log_severity_level == 3
    OnnxRuntime().load(model, {}, a_set("cpu"))
    assert library.calls[-1].sess_options.log_severity_level == 4


def test_without_a_set_it_is_the_cpu(library: FakeOrt, model: Path) -> None:
    OnnxRuntime().load(model, {})
    assert library.calls[-1].providers == [(CPU, {})]


def test_engines_are_kept_in_the_folder_for_the_batch_that_is_known(
    library: FakeOrt, model: Path, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    loaded = OnnxRuntime().load(model, {}, a_set("tensorrt"), code, {"x": (2, 16)})
    options = library.options[TENSORRT]
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(code)
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert code.is_dir()
    # One engine for two items, whatever is asked.
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    expected = ort.InferenceSession(model, providers=[CPU]).run(None, {"x": x})[0]
    assert np.allclose(loaded.run({"x": x})["y"], expected, atol=1e-6)
    assert loaded.signature.batchable
    with pytest.raises(RuntimeShapeError):
        loaded.run({"x": np.zeros((1, 17), np.float32)})


@pytest.mark.parametrize("shapes", [{}, {"x": (1, 4)}])
def test_engines_for_shapes_that_vary_are_not_kept(
    library: FakeOrt, tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    path = onnx_models.identity(tmp_path / "m.onnx", "FP32")  # Two free dimensions.
    loaded = OnnxRuntime().load(path, {}, a_set("tensorrt"), tmp_path / "code", shapes)
    assert "trt_engine_cache_enable" not in library.options[TENSORRT]
    assert loaded.run({"x": np.zeros((3, 7), np.float32)})["y"].shape == (3, 7)


def test_without_a_folder_no_provider_keeps_code(library: FakeOrt, model: Path) -> None:
    OnnxRuntime().load(model, {}, a_set("tensorrt"), None, {"x": (1, 16)})
    assert "trt_engine_cache_enable" not in library.options[TENSORRT]
    OnnxRuntime().load(model, {}, a_set("cann"), None, {"x": (1, 16)})
    # CANN would leave it in the agent's working directory.
    assert library.options[CANN]["dump_om_model"] == "0"


def test_cann_keeps_code_in_the_folder_and_never_changes_it(
    library: FakeOrt, model: Path, tmp_path: Path
) -> None:
    code, here = tmp_path / "code", Path.cwd()
    runtime, shapes = OnnxRuntime(), {"x": (1, 16)}
    loaded = runtime.load(model, {}, a_set("cann"), code, shapes)
    assert library.options[CANN]["dump_om_model"] == "1"
    # Without a path, that names of code would depend on.
    assert isinstance(library.calls[-1].model, bytes)
    seen: list[Path] = []
    real = loaded._model._model._session.run  # What the provider finds when it runs.

    def run(*arguments: Any) -> Any:
        seen.append(Path.cwd())
        Path("main_1_0_2.om").write_bytes(b"code")
        return real(*arguments)

    loaded._model._model._session.run = run
    loaded.run({"x": np.zeros((1, 16), np.float32)})
    assert seen == [code]
    assert Path.cwd() == here
    loaded.close()
    again = runtime.load(model, {}, a_set("cann"), code, shapes)
    assert library.options[CANN]["dump_om_model"] == "0"
    again.close()
    assert [p.name for p in code.iterdir()] == ["main_1_0_2.om"]


@pytest.mark.parametrize("name", ["tensorrt", "cann"])
def test_a_folder_that_cannot_be_made_costs_the_code_and_not_the_model(
    library: FakeOrt, model: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    code = tmp_path / "file" / "code"
    loaded = OnnxRuntime().load(model, {}, a_set(name), code, {"x": (1, 16)})
    assert loaded.run({"x": np.zeros((2, 16), np.float32)})["y"].shape == (2, 4)
    assert "compiled code is not kept: Not a directory" in caplog.text
