"""Builds the delegate of tflite_delegate.c under the names of the delegates of boards."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shoal_agent.boards.base import BoardFacts
from shoal_shared.messages import Board

ADDS = Path(__file__).parents[1] / "fixtures/tflite/adds.tflite"
"""y = 8 |x|, FP32 [-1, 4]: three ADD and two ABS; see `tflite_models.ADDS`."""
GPU, QNN = "TFLiteGpuDelegate", "TFLiteQnnDelegate"
LIBRARIES = {GPU: "libtensorflowlite_gpu_delegate.so", QNN: "libQnnTFLiteDelegate.so"}
SNAPDRAGON = BoardFacts(
    description=Board(family="snapdragon", model="test", soc="test"), cores=1, memory_bytes=1
)


def build(folder: Path) -> Path:
    """A folder with the libraries, for LD_LIBRARY_PATH; skips without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed: apt install gcc libc6-dev")
    folder.mkdir()
    first, *others = (folder / name for name in LIBRARIES.values())
    source = Path(__file__).with_name("tflite_delegate.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", first, source], check=True)
    for other in others:
        shutil.copyfile(first, other)
    return folder
