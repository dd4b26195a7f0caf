"""The wheel, installed bare in a clean environment, is the device agent and nothing more."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.processes import Process, free_port, start_mosquitto, until

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]

FORBIDDEN = ("fastapi", "sqlmodel", "uvicorn", "pydantic", "onnx", "onnxruntime", "httpx", "typer")
BASE = {"cffi", "cryptography", "msgspec", "numpy", "paho-mqtt", "psutil", "pycparser", "shoal"}


def pip(*arguments: str, python: Path | str = sys.executable) -> str:
    done = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.glob("shoal-*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a clean environment with the bare wheel."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    pip("install", "--quiet", str(wheel), python=interpreter)
    return interpreter


def test_the_wheel_holds_what_runs_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"shoal_agent", "shoal_controlplane", "shoal_shared", "shoal_simulators"}
    for needed in (
        "shoal_controlplane/dashboard/static/index.html",
        "shoal_controlplane/migrations/env.py",
        "shoal_shared/py.typed",
    ):
        assert needed in names
    assert not [name for name in names if name.endswith((".onnx", ".tflite", ".png", ".pth"))]


def test_the_bare_install_is_small(python: Path) -> None:
    installed = {p["name"].lower() for p in json.loads(pip("list", "--format=json", python=python))}
    assert installed - {"pip", "setuptools", "wheel", "tomli", "typing-extensions"} <= BASE
    for module in FORBIDDEN:
        done = subprocess.run(
            [str(python), "-c", f"import {module}"], capture_output=True, check=False
        )
        assert done.returncode != 0, f"{module} came with the bare install"


def test_the_bare_agent_starts_and_says_what_it_lacks(python: Path, tmp_path: Path) -> None:
    port = free_port()
    broker = start_mosquitto(tmp_path, port)
    agent = Process(
        [
            str(python.with_name("shoal-agent")),
            "run",
            "--device",
            "bare",
            "--broker",
            f"127.0.0.1:{port}",
            "--state-dir",
            str(tmp_path / "state"),
        ],
        tmp_path / "agent.log",
    )
    try:
        status = tmp_path / "state" / "status.json"
        until(
            lambda: status.exists() and json.loads(status.read_text())["connected"],
            "the agent's session with the broker",
        )
        doctor = subprocess.run(
            [str(python.with_name("shoal-agent")), "doctor"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert doctor.returncode == 1
        assert "shoal[cpu]" in doctor.stdout + doctor.stderr
        assert agent.stop() == 0
    finally:
        agent.stop()
        broker.stop()


def test_the_operators_command_says_which_extra_it_needs(python: Path) -> None:
    done = subprocess.run(
        [str(python.with_name("shoal")), "device", "list"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "shoal[controlplane]" in done.stderr
    assert "Traceback" not in done.stderr
