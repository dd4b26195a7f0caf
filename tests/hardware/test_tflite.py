"""TFLite delegates beside tflite-runtime, with a real delegate; the unit tests do the same beside
its successor. See `make test-hardware`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.tflite_delegate import ADDS, GPU, SNAPDRAGON, build

from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.tflite import TfliteRuntime
from shoal_agent.runtimes.trial import TrialTask, try_in_child
from shoal_shared.placement import of_nodes

if os.environ.get("SHOAL_HARDWARE_ENV") != "tflite":
    pytest.skip("for the environment tflite: make test-hardware", allow_module_level=True)

X = np.array([[1, -2, 3, -4], [0, 0.5, 0, -1]], "<f4")


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProviderSet:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build(tmp_path / "lib")))
    return next(s for s in TfliteRuntime(SNAPDRAGON).provider_sets({}) if s.name == "tflite-gpu")


def test_it_is_tflite_runtime() -> None:
    assert TfliteRuntime().info.name == "tflite-runtime"


def test_nodes_on_a_delegate_are_counted(gpu: ProviderSet) -> None:
    model = TfliteRuntime(SNAPDRAGON).load(ADDS, {}, gpu, None, {"x": (2, 4)})
    assert model.placement == of_nodes({GPU: 3, "CPU": 2})
    for size in (2, 1, 5):
        x = np.resize(X, (size, 4))
        assert model.run({"x": x})["y"].tolist() == (8 * np.abs(x)).tolist()


def test_the_cpu_serves_free_shapes() -> None:
    model = TfliteRuntime().load(ADDS, {})
    assert model.placement == of_nodes({"CPU": 5})
    assert model.run({"x": X})["y"].tolist() == (8 * np.abs(X)).tolist()


async def test_a_trial_proves_the_placement(
    gpu: ProviderSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TrialTask(
        format="tflite", path=str(ADDS), options={}, provider_set=gpu, shapes={"x": (2, 4)}
    )
    outcome = await try_in_child(task)
    assert outcome.placement == of_nodes({GPU: 3, "CPU": 2})
    assert outcome.milliseconds is not None
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    with pytest.raises(RuntimeLoadError, match=r"^libtensorflowlite_gpu_delegate\.so not found:"):
        await try_in_child(task)
