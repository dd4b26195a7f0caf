"""Real networks on QNN's HTP simulator: every node is proven to be there, the answers are those
of the CPU. See `make test-hardware`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("SHOAL_HARDWARE_ENV") != "qnn":
    pytest.skip("for the environment qnn: make test-hardware", allow_module_level=True)

import onnx
import onnxruntime

from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError, RuntimeShapeError
from shoal_agent.runtimes.onnx import OnnxRuntime
from shoal_shared.placement import Proof
from shoal_simulators.demo import assets
from shoal_simulators.demo.checkpoint import read_checkpoint
from shoal_simulators.demo.efficientnet import build_efficientnet_lite0

CPU, QNN = "CPUExecutionProvider", "QNNExecutionProvider"
IMAGE = {"image": (1, 3, 224, 224)}


@pytest.fixture(scope="module")
def runtime() -> OnnxRuntime:
    return OnnxRuntime()


@pytest.fixture(scope="module")
def htp(runtime: OnnxRuntime) -> ProviderSet:
    return runtime.provider_sets({"provider_set": "qnn-htp"})[0]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0, its batch dimension free."""
    path = tmp_path_factory.mktemp("models") / "classifier.onnx"
    cache = assets.default_cache()
    assets.fetch_assets(cache, [assets.EFFICIENTNET_WEIGHTS])
    weights = read_checkpoint(assets.asset_path(cache, assets.EFFICIENTNET_WEIGHTS))
    onnx.save(build_efficientnet_lite0(weights), path)
    return path


@pytest.fixture(scope="module")
def recogniser() -> Path:
    """PP-OCR's recogniser, in which several dimensions are all named "?"."""
    cache = assets.default_cache()
    assets.fetch_assets(cache, [assets.TEXT_RECOGNISER])
    return assets.asset_path(cache, assets.TEXT_RECOGNISER)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, 224, 224)).astype(np.float32)


def test_a_classifier_is_on_the_npu_with_all_nodes_and_right(
    runtime: OnnxRuntime, htp: ProviderSet, classifier: Path, tmp_path: Path
) -> None:
    x = pictures(3)
    expected = runtime.load(classifier, {}).run({"image": x})["prob"]
    for _ in ("compiled", "from the code"):
        model = runtime.load(classifier, {}, htp, tmp_path / "code", IMAGE)
        assert model.placement.proof is Proof.GRAPH
        assert model.placement.nodes == {QNN: 97}
        assert model.providers[0] == QNN
        got = model.run({"image": x})["prob"]
        assert got.argmax(-1).tolist() == expected.argmax(-1).tolist()
        assert np.abs(got - expected).max() < 2e-3
        assert model.signature == runtime.load(classifier, {}).signature
        model.close()


def test_text_is_read_as_on_the_cpu(
    runtime: OnnxRuntime, htp: ProviderSet, recogniser: Path
) -> None:
    shape = (1, 3, 48, 64)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    model = runtime.load(recogniser, {"static_shapes": {"x": list(shape)}}, htp)
    assert model.placement.accelerated == 1.0
    (got,) = model.run({"x": x}).values()
    (expected,) = runtime.load(recogniser, {}).run({"x": x}).values()
    assert np.abs(got - expected).max() < 0.05
    assert got.argmax(-1).tolist() == expected.argmax(-1).tolist()
    with pytest.raises(RuntimeShapeError, match=r"compiled the model for 'x' of \[1, 3, 48, 64\]"):
        model.run({"x": np.zeros((1, 3, 48, 80), np.float32)})


def test_free_shapes_are_refused(runtime: OnnxRuntime, htp: ProviderSet, classifier: Path) -> None:
    with pytest.raises(RuntimeLoadError, match=r"'image' has free dim.* option 'static_shapes'"):
        runtime.load(classifier, {}, htp)


def test_code_of_a_board_loads_like_any_model(
    runtime: OnnxRuntime, htp: ProviderSet, classifier: Path, tmp_path: Path
) -> None:
    """An ONNX file with QNN's code in it, as Qualcomm's tools make them and users push them."""
    runtime.load(classifier, {}, htp, tmp_path / "any", IMAGE).close()  # Registers the plugin.
    path, code = tmp_path / "board.onnx", tmp_path / "code"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("N", 1)
    device = next(d for d in onnxruntime.get_ep_devices() if d.ep_name == QNN)
    options.add_provider_for_devices([device], dict(htp.providers)[QNN])
    compiler = onnxruntime.ModelCompiler(
        options,
        str(classifier),
        embed_compiled_data_into_model=True,
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    )
    compiler.compile_to_file(str(path))
    x = pictures(1)
    expected = runtime.load(classifier, {}).run({"image": x})["prob"]
    for folder in (None, code):
        model = runtime.load(path, {}, htp, folder, IMAGE)
        assert model.placement.nodes == {QNN: 1}
        assert model.run({"image": x})["prob"].argmax() == expected.argmax()
    # It is compiled already: there is nothing to keep.
    assert list(code.iterdir()) == []
    with pytest.raises(RuntimeLoadError, match="not compatible with any execution provider"):
        runtime.load(path, {})


@pytest.mark.parametrize("file", ["model_ctx.onnx", "model_ctx_qnn.bin"])
def test_code_that_is_garbage_is_refused(
    runtime: OnnxRuntime, htp: ProviderSet, classifier: Path, tmp_path: Path, file: str
) -> None:
    runtime.load(classifier, {}, htp, tmp_path, IMAGE).close()
    target = tmp_path / file
    target.write_bytes(bytes(target.stat().st_size))
    with pytest.raises(RuntimeLoadError, match="cannot load the model") as caught:
        runtime.load(classifier, {}, htp, tmp_path, IMAGE)
    assert "\n" not in str(caught.value)


def test_the_operator_is_told_that_it_is_a_simulator(runtime: OnnxRuntime) -> None:
    assert runtime.info.providers == (QNN, CPU)
    assert "onnxruntime-qnn 2." in runtime.version
    assert "simulator" in (runtime.note or "")
