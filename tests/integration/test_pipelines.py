"""Sharded models on a simulated fleet, by the commands that an operator types."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from support.pipelines import WIDTH, chain, example, in_one_piece, reference
from support.processes import ControlPlane, Process, free_port, start_fleet, until

from shoal_simulators.demo.assets import default_cache, missing_assets
from shoal_simulators.demo.models import LINE_TEXT, build_demo_models, demo_pictures

pytestmark = pytest.mark.xdist_group("pipelines")

FLEET = """
[[device]]
board = "jetson-orin-nano"
labels = { site = "demo" }

[[device]]
board = "ascend-310"
labels = { site = "demo" }

[[device]]
board = "snapdragon-8gen3"
count = 4
memory_mb = 140
labels = { site = "small" }

[[device]]
board = "jetson-nano"
count = 2
memory_mb = 80
labels = { site = "scarce" }
"""
DEVICES = 8
LARGE = 1968
"""Width of a chain with 62 MB of weights, more than a board of 140 MB can hold."""
MEDIUM = 1136
"""Width of a chain with 21 MB, half of which fills a board of 80 MB."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane on its embedded broker with the simulated fleet."""
    folder = tmp_path_factory.mktemp("pipelines")
    started: list[Process] = []
    try:
        plane = ControlPlane(folder, broker_port=free_port())
        started.append(plane.process)
        started.append(start_fleet(folder, FLEET, plane))
        until(lambda: _online(plane) == DEVICES, "the fleet's arrival")
        yield plane
    finally:
        for process in reversed(started):
            process.stop()


@pytest.fixture(scope="module")
def large(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `large`, which no board of 140 MB can hold."""
    path = chain(tmp_path_factory.mktemp("large") / "large.onnx", width=LARGE)
    push(plane, path, "large")
    return path


def _online(plane: ControlPlane) -> int:
    return len(plane.get("/api/v1/devices?state=online&limit=100")[1]["items"])


def push(plane: ControlPlane, path: Path, name: str, *options: str) -> None:
    done = plane.shoal("model", "push", str(path), "--name", name, *options)
    assert done.returncode == 0, done.stderr


def delete(plane: ControlPlane, name: str) -> None:
    assert plane.call("DELETE", f"/api/v1/deployments/{name}")[0] == 204


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that went well printed."""
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def complained(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed said: one sentence and no traceback."""
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def deployment(plane: ControlPlane, name: str) -> dict[str, Any]:
    return plane.get(f"/api/v1/deployments/{name}")[1]


def compute(plane: ControlPlane, model: str, x: np.ndarray) -> np.ndarray:
    """A request by an ordinary client."""
    with triton.InferenceServerClient(f"127.0.0.1:{plane.port}") as client:
        tensor = triton.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        return client.infer(model, [tensor]).as_numpy("y")


def test_a_line_reads_the_same_in_stages(plane: ControlPlane, tmp_path: Path) -> None:
    cache = default_cache()
    if missing_assets(cache):
        pytest.skip("the demo models are absent: run `make setup`")
    models = {model.name: model for model in build_demo_models(cache, tmp_path)}
    push(plane, models["ppocr-rec"].path, "ppocr-rec")
    read = ("infer", "ppocr-rec", "--image", str(demo_pictures(cache).line))
    create = ("deployment", "create", "ppocr-rec", "--select", "site=demo")

    shown = said(plane.shoal("plan", "ppocr-rec", "--select", "site=demo"))
    assert "ppocr-rec:1 for throughput" in shown
    assert "gateway -> " in shown
    assert "bottleneck" in shown

    said(plane.shoal(*create, "--shards", "auto"))
    assert LINE_TEXT in said(plane.shoal(*read))
    delete(plane, "ppocr-rec")

    assert "2 stages, " in said(plane.shoal(*create, "--shards", "2"))
    assert LINE_TEXT in said(plane.shoal(*read))
    assert len(plane.get("/api/v1/plans/ppocr-rec")[1]["stages"]) == 2
    shown = said(plane.shoal("deployment", "show", "ppocr-rec"))
    assert "What takes over at once" in shown
    assert {"ascend-310-1", "jetson-orin-nano-1"} <= set(shown.split())
    listed = said(plane.shoal("deployment", "list"))
    assert ["ppocr-rec", "ppocr-rec:1", "ready", "2/2", "2"] in [
        line.split()[:5] for line in listed.splitlines()
    ]


def test_a_model_too_large_for_every_board_serves_in_stages(
    plane: ControlPlane, large: Path
) -> None:
    create = ("deployment", "create", "large", "--select", "site=small")
    refused = complained(plane.shoal(*create, "--timeout", "1"))
    assert "needs 158 MB, the largest free is" in refused
    delete(plane, "large")

    assert "stages, " in said(plane.shoal(*create, "--shards", "auto"))
    plan = plane.get("/api/v1/plans/large")[1]
    assert len(plan["stages"]) >= 2
    assert plan["single"] is None
    x = example(large)
    assert np.abs(compute(plane, "large", x) - reference(large, x)).max() <= 1e-5
    delete(plane, "large")


def test_what_fits_nowhere_even_in_stages_is_told(plane: ControlPlane, large: Path) -> None:
    done = plane.shoal("plan", "large", "--select", "site=scarce")
    assert "MB of free memory" in complained(done)
    status, document = plane.call(
        "POST", "/api/v1/plans", {"model": "large", "select": {"site": "scarce"}}
    )
    assert status == 200
    assert document["plan"] is None
    assert document["missing_bytes"] > 10e6


def test_a_graph_that_cannot_be_cut_gets_one_device(plane: ControlPlane, tmp_path: Path) -> None:
    push(plane, in_one_piece(tmp_path / "piece.onnx"), "piece")
    shown = said(plane.shoal("plan", "piece", "--select", "site=demo"))
    assert "1 stage on 1 device" in shown
    assert "the graph cannot be cut" in shown
    refused = plane.shoal("plan", "piece", "--select", "site=demo", "--shards", "2")
    assert "piece:1 cannot be cut into 2 stages" in complained(refused)


def test_tflite_is_told_to_take_one_device(plane: ControlPlane) -> None:
    adds = Path(__file__).parents[1] / "fixtures" / "tflite" / "adds.tflite"
    push(plane, adds, "adds")
    refused = complained(plane.shoal("plan", "adds"))
    assert "only ONNX models can be cut: deploy it on one device" in refused


def test_open_sizes_need_a_hint(plane: ControlPlane, tmp_path: Path) -> None:
    path = chain(tmp_path / "open.onnx", rows="length")
    push(plane, path, "open")
    assert "--shape" in complained(plane.shoal("plan", "open", "--select", "site=demo"))
    shape = ("--select", "site=demo", "--shape", f"x=1x4x{WIDTH}")
    assert "shapes " in said(plane.shoal("plan", "open", *shape))
    said(plane.shoal("deployment", "create", "open", *shape, "--shards", "2"))
    x = np.random.default_rng(1).normal(size=(1, 4, WIDTH)).astype(np.float32)
    assert np.abs(compute(plane, "open", x) - reference(path, x)).max() <= 1e-5


def test_of_two_deployments_that_race_for_memory_one_waits(
    plane: ControlPlane, tmp_path: Path
) -> None:
    names = ("first", "second")
    for seed, name in enumerate(names):
        push(plane, chain(tmp_path / f"{name}.onnx", width=MEDIUM, seed=seed), name)
    for name in names:
        body = {"model": name, "shards": 2, "select": {"site": "scarce"}}
        status, answer = plane.call("POST", "/api/v1/deployments", body)
        assert status == 201, answer

    def settled() -> tuple[str, str] | None:
        found = {name: deployment(plane, name) for name in names}
        ready = [name for name in names if found[name]["state"] == "ready"]
        told = [name for name in names if "MB of free memory" in found[name]["reason"]]
        return (ready[0], told[0]) if ready and told else None

    winner, loser = until(settled, "one that serves and one that says what is missing")
    assert {winner, loser} == set(names)
    for name, serves in ((winner, True), (loser, False)):
        status, _ = plane.get(f"/v2/models/{name}/ready")
        assert (status == 200) == serves
    delete(plane, winner)
    until(lambda: deployment(plane, loser)["state"] == "ready", "the other's turn")
    x = example(tmp_path / f"{loser}.onnx")
    expected = reference(tmp_path / f"{loser}.onnx", x)
    assert np.abs(compute(plane, loser, x) - expected).max() <= 1e-5
