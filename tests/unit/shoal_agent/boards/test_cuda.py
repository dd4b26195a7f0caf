from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal_agent.boards import cuda
from shoal_shared.messages import Accelerator

ORIN = {
    "name": "Orin",
    "capability": [8, 7],
    "memory_bytes": 64 << 30,
    "integrated": True,
    "transfer_bytes_per_s": 2.5e10,
}
CARD = {
    "name": "NVIDIA RTX A2000",
    "capability": [8, 6],
    "memory_bytes": 6 << 30,
    "integrated": False,
}

# As much of PyCUDA 2026.1 as is used, of a machine with one GPU.
FAKE_PYCUDA = """
class Error(Exception): pass
class device_attribute: INTEGRATED = "integrated"
def init(): pass
class Context:
    def pop(self): pass
class Device:
    def __init__(self, index): pass
    @staticmethod
    def count(): return 1
    def name(self): return "Orin"
    def compute_capability(self): return (8, 7)
    def total_memory(self): return 1 << 33
    def get_attribute(self, attribute): return 1 if attribute == "integrated" else 0
    def make_context(self): return Context()
def pagelocked_empty(shape, dtype):
    import numpy
    return numpy.empty(shape, dtype)
def mem_alloc(size): return 0
class Stream: pass
class Event:
    def record(self, stream): pass
    def synchronize(self): pass
    def time_till(self, other): return 2.0
def memcpy_htod_async(target, source, stream): pass
"""


def say(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"print({text!r})")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a PyCUDA, found by this process and its children."""
    package = tmp_path / "pycuda"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "driver.py").write_text(FAKE_PYCUDA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield package / "driver.py"
    # What was imported from here must not be found by the tests that follow.
    for name in ("pycuda", "pycuda.driver"):
        sys.modules.pop(name, None)


def test_the_childs_answer_describes_the_gpus() -> None:
    found, reason = cuda.cuda_accelerators(say(json.dumps({"devices": [ORIN, CARD]})))
    assert reason == ""
    assert found == (
        Accelerator(
            kind="gpu",
            name="Orin",
            precisions=("fp32", "tf32", "fp16", "int8"),
            compute_capability="8.7",
            transfer_bytes_per_s=2.5e10,
        ),
        Accelerator(
            kind="gpu",
            name="NVIDIA RTX A2000",
            memory_bytes=6 << 30,
            precisions=("fp32", "tf32", "fp16", "int8"),
            compute_capability="8.6",
        ),
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (say(json.dumps({"devices": []})), "finds no GPU"),
        (say(json.dumps({"error": "libcuda.so.1: not found."})), "libcuda.so.1: not found."),
        (say("nonsense"), "cannot be read"),
        (say('{"devices": [{"name": 7}]}'), "cannot be read"),
        ((sys.executable, "-c", ""), "gave no answer"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"), "status -11"),
        (("/no/such/program",), "cannot be asked"),
    ],
)
def test_what_goes_wrong_is_said_in_one_sentence(command: tuple[str, ...], words: str) -> None:
    found, reason = cuda.cuda_accelerators(command)
    assert found == ()
    assert words in reason
    assert reason.endswith(".")
    assert "\n" not in reason


def test_warnings_before_the_answer_are_passed_over() -> None:
    found, _ = cuda.cuda_accelerators(say("warning: slow\n" + json.dumps({"devices": [ORIN]})))
    assert [gpu.name for gpu in found] == ["Orin"]


def test_a_child_that_hangs_is_ended() -> None:
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    assert cuda.cuda_accelerators(command, timeout_s=0.05) == (
        (),
        "PyCUDA gave no answer within 0.05 s.",
    )


def test_without_pycuda_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("subprocess.Popen", None)
    assert cuda.cuda_accelerators() == ((), "")


def test_pycuda_is_asked_in_a_child(fake: Path) -> None:
    found, reason = cuda.cuda_accelerators()
    assert reason == ""
    assert [(gpu.name, gpu.memory_bytes, gpu.compute_capability) for gpu in found] == [
        ("Orin", 0, "8.7")
    ]
    assert found[0].transfer_bytes_per_s == pytest.approx(4 * (16 << 20) / 0.002)
    assert "pycuda.driver" not in sys.modules


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    cuda.main()
    return json.loads(capsys.readouterr().out)


def test_a_driver_that_fails_is_told(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.write_text(FAKE_PYCUDA + "\ndef init(): raise Error('cuInit failed: no device')\n")
    assert answer(capsys) == {"devices": [], "error": "cuInit failed: no device."}


def test_a_driver_that_is_missing_is_told(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.write_text("raise ImportError('libcuda.so.1: no such file')\n")
    assert answer(capsys)["error"] == "libcuda.so.1: no such file."


@pytest.mark.parametrize(
    "failure",
    [
        "def pagelocked_empty(shape, dtype): raise Error('out of memory')",
        "Device.make_context = lambda self: (_ for _ in ()).throw(Error('busy'))",
        "Event.time_till = lambda self, other: 0.0",
    ],
)
def test_without_memory_for_a_copy_the_rest_is_told(
    fake: Path, capsys: pytest.CaptureFixture[str], failure: str
) -> None:
    fake.write_text(FAKE_PYCUDA + "\n" + failure + "\n")
    (device,) = answer(capsys)["devices"]
    assert device["capability"] == [8, 7]
    assert device["transfer_bytes_per_s"] is None


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((5, 3), "fp32 fp16"),
        ((6, 1), "fp32 int8"),
        ((6, 2), "fp32 fp16"),
        ((7, 2), "fp32 fp16 int8"),
        ((8, 7), "fp32 tf32 fp16 int8"),
        ((9, 0), "fp32 tf32 fp16 int8 fp8"),
        ((11, 0), "fp32 tf32 fp16 int8 fp8 fp4"),
    ],
)
def test_precisions_of_each_generation(capability: tuple[int, int], expected: str) -> None:
    assert " ".join(cuda.precisions(capability)) == expected
