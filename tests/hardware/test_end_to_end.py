"""The whole way with real agents in the environments of their runtimes: control plane, broker,
`shoal-agent run` beside onnxruntime-qnn's HTP simulator, and beside CANN, CUDA and TensorRT
without their toolkits.

Run by `make test-hardware`, which makes the environments.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.processes import ControlPlane, Process, free_port, need, until

if os.environ.get("SHOAL_HARDWARE_ENV") != "fleet":
    pytest.skip("needs the environments of `make test-hardware`", allow_module_level=True)

ROOT = Path(__file__).parents[2]
MODEL = "efficientnet-lite0"
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from shoal_simulators.demo.assets import default_cache
    from shoal_simulators.demo.models import build_demo_models

    folder = tmp_path_factory.mktemp("models")
    build_demo_models(default_cache(), folder)
    return folder


@pytest.fixture(scope="module")
def picture() -> Path:
    from shoal_simulators.demo.assets import default_cache
    from shoal_simulators.demo.models import demo_pictures

    return demo_pictures(default_cache()).coffee


@pytest.fixture
def plane(tmp_path: Path, models: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path / "plane", broker_port=free_port())
    try:
        done = plane.shoal("model", "push", str(models / MODEL), "--name", MODEL)
        assert done.returncode == 0, done.stderr
        yield plane
    finally:
        plane.process.stop()


@contextmanager
def agent(
    kind: str, name: str, folder: Path, plane: ControlPlane, **environment: str
) -> Iterator[Process]:
    """`shoal-agent run` in the environment of a runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ROOT / f".venv-{kind}/bin/shoal-agent"
    assert command.exists(), f"{command} is missing: make test-hardware"
    address = f"127.0.0.1:{plane.broker_port}"
    options = ["--device", name, "--broker", address, "--server", plane.url]
    process = Process(
        [str(command), "run", *options, "--state-dir", str(folder / name)],
        folder / f"{name}.log",
        environment,
    )
    try:
        plane.wait_condition(name, "online")
        yield process
    finally:
        process.stop()


def deploy(plane: ControlPlane) -> None:
    done = plane.shoal("deployment", "create", MODEL, "--all", "--require-accelerator", "--no-wait")
    assert done.returncode == 0, done.stderr


def placement(plane: ControlPlane, device: str, state: str) -> dict[str, Any]:
    """The replica on a device once it is in a state."""

    def look() -> dict[str, Any] | None:
        _, body = plane.get(f"/api/v1/deployments/{MODEL}")
        for found in body["placements"]:
            if (found["device"], found["state"]) == (device, state):
                return found
        return None

    found: dict[str, Any] = until(look, f"{device} being {state}", PATIENCE_S)
    return found


def test_qnn_serves_with_proof_and_a_sibling_takes_its_code(
    plane: ControlPlane, tmp_path: Path, picture: Path
) -> None:
    with agent("qnn", "snap-1", tmp_path, plane):
        deploy(plane)
        first = placement(plane, "snap-1", "ready")
        assert first["placement"]["proof"] == "graph"
        assert first["placement"]["accelerated"] == 1.0
        assert first["placement"]["nodes"] == {"QNNExecutionProvider": 97}
        assert first["compiled"] == "here"
        assert first["golden_error"] < 0.01
        done = plane.shoal("infer", MODEL, "--image", str(picture))
        assert done.returncode == 0, done.stderr
        assert "espresso" in done.stdout
        shown = plane.shoal("deployment", "show", MODEL).stdout
        assert "100 %" in shown
        assert "97 of 97" in shown
        assert "100 %" in plane.shoal("device", "show", "snap-1").stdout
        until(lambda: "shared" in (tmp_path / "snap-1.log").read_text(), "the upload")

        with agent("qnn", "snap-2", tmp_path, plane):
            second = placement(plane, "snap-2", "ready")
            assert second["compiled"] == "shared"
            assert second["placement"]["nodes"] == {"QNNExecutionProvider": 97}
            assert "compiled anew" not in (tmp_path / "snap-2.log").read_text()
            assert second["load_s"] < first["load_s"]


def test_code_changed_on_disk_is_made_anew(plane: ControlPlane, tmp_path: Path) -> None:
    with agent("qnn", "snap-1", tmp_path, plane):
        deploy(plane)
        placement(plane, "snap-1", "ready")
    code = [p for p in (tmp_path / "snap-1/compiled").rglob("*") if p.stat().st_size > 1_000_000]
    assert code
    for file in code:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)
    with agent("qnn", "snap-1", tmp_path, plane) as process:
        again = placement(plane, "snap-1", "ready")
        assert again["placement"]["accelerated"] == 1.0
        assert again["golden_error"] < 0.01
        assert "changed on disk" in process.output


def test_a_variant_for_another_chip_is_passed_over_with_a_reason(
    plane: ControlPlane, tmp_path: Path, models: Path
) -> None:
    with agent("qnn", "snap-1", tmp_path, plane):
        path = f"/api/v1/models/{MODEL}/versions/1/variants"
        data = (models / MODEL / "model.onnx").read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        status, body = plane.call(
            "POST", path, {"name": "ctx69", "digest": digest, "target": "qualcomm-soc69"}
        )
        assert status == 201, body
        deploy(plane)
        found = placement(plane, "snap-1", "ready")
        assert found["variant"] == "reference"
        assert found["notes"] == [
            "variant 'ctx69' is compiled for qualcomm-soc69, but this board is qualcomm-soc57"
        ]


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("cann", ["libascendcl.so not found: install CANN"]),
        ("gpu", ["libcublas.so.13 not found", "libcublasLt.so.13 not found", "CUDA 13"]),
    ],
)
def test_a_missing_toolkit_fails_the_deployment_and_not_the_device(
    plane: ControlPlane, tmp_path: Path, kind: str, reasons: list[str], picture: Path
) -> None:
    with agent(kind, "board-1", tmp_path, plane) as process:
        deploy(plane)
        failed = placement(plane, "board-1", "failed")
        for reason in reasons:
            assert reason in failed["reason"]
        shown = plane.shoal("deployment", "show", MODEL)
        assert reasons[0] in " ".join(shown.stdout.split())
        assert (plane.device("board-1") or {})["condition"] == "online"
        assert process.child.poll() is None
        # The same model without the demand runs on the CPU, and says so.
        plane.call("DELETE", f"/api/v1/deployments/{MODEL}")
        plane.call("POST", "/api/v1/deployments", {"model": MODEL, "all": True})
        slow = placement(plane, "board-1", "ready")
        assert slow["placement"]["accelerated"] == 0.0
        assert reasons[0] in " ".join(slow["notes"])
        assert "espresso" in plane.shoal("infer", MODEL, "--image", str(picture)).stdout


CRASHING_DLOPEN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
void *dlopen(const char *file, int mode) {
    void *(*real)(const char *, int) = dlsym(RTLD_NEXT, "dlopen");
    if (file && strstr(file, "QnnHtp")) abort();
    return real(file, mode);
}
"""


def test_a_provider_that_crashes_is_named_and_the_agent_lives(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """Loading the NPU's library kills the process that does it."""
    compiler = need("cc", "apt install gcc libc6-dev")
    source, library = tmp_path / "crash.c", tmp_path / "crash.so"
    source.write_text(CRASHING_DLOPEN)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    with agent("qnn", "snap-1", tmp_path, plane, LD_PRELOAD=str(library)) as process:
        deploy(plane)
        failed = placement(plane, "snap-1", "failed")
        assert "qnn-htp" in failed["reason"]
        assert "crashed (SIGABRT)" in failed["reason"]
        assert process.child.poll() is None
        assert (plane.device("snap-1") or {})["condition"] == "online"
