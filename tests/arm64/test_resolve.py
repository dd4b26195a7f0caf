"""The boards are arm64: every extra of a device must resolve to wheels there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
# Ubuntu 22.04, which JetPack 6 and Ascend's images are made of, has glibc 2.35.
PLATFORM = "aarch64-manylinux_2_35"

# What runs models on each Python, by extra. On Python 3.10, JetPack 6 has ONNX Runtime from
# NVIDIA, and Qualcomm's provider does not exist: the CPU serves there.
RUNTIMES = {
    ("", "3.10"): "",
    ("", "3.11"): "",
    ("", "3.12"): "",
    ("cpu", "3.10"): "onnxruntime",
    ("cpu", "3.11"): "onnxruntime",
    ("cpu", "3.12"): "onnxruntime",
    ("jetson", "3.10"): "",
    ("jetson", "3.11"): "onnxruntime-gpu",
    ("jetson", "3.12"): "onnxruntime-gpu",
    ("ascend", "3.10"): "onnxruntime-cann",
    ("ascend", "3.11"): "onnxruntime-cann",
    ("ascend", "3.12"): "onnxruntime-cann",
    ("qualcomm", "3.10"): "onnxruntime",
    ("qualcomm", "3.11"): "onnxruntime onnxruntime-qnn",
    ("qualcomm", "3.12"): "onnxruntime onnxruntime-qnn",
    ("tflite", "3.10"): "ai-edge-litert",
    ("tflite", "3.11"): "ai-edge-litert",
    ("tflite", "3.12"): "ai-edge-litert",
}


@pytest.mark.parametrize(("extra", "python"), RUNTIMES)
def test_an_extra_resolves_to_wheels_for_arm64(extra: str, python: str) -> None:
    """The resolver's report: one pinned wheel a line, nothing that would be built on the board."""
    command = [
        str(UV),
        *("pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--no-annotate"),
        *("--python-platform", PLATFORM, "--python-version", python, "--only-binary", ":all:"),
        *(("--extra", extra) if extra else ()),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    pins = dict(line.split("==") for line in done.stdout.split() if "==" in line)
    assert {"msgspec", "numpy", "paho-mqtt", "psutil", "cryptography"} <= pins.keys()
    runtimes = {name for name in pins if name.startswith(("onnxruntime", "ai-edge"))}
    assert runtimes == set(RUNTIMES[extra, python].split())
