from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
from shoal_bench.agent import bench
from shoal_bench.agent.bench import Sample
from shoal_bench.processes import NotStartedError, Service


def test_ready_is_told_from_other_notifications(tmp_path: Path) -> None:
    service = Service([sys.executable, "-c", ""], tmp_path / "log")
    with bench._notify_socket(str(tmp_path)) as sock:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
            agent.sendto(b"STATUS=starting", sock.getsockname())
            agent.sendto(b"STATUS=up\nREADY=1", sock.getsockname())
        before = time.perf_counter()
        assert bench._wait_ready(sock, service) >= before
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
    service.stop()


def test_an_agent_that_is_never_ready(tmp_path: Path) -> None:
    service = Service([sys.executable, "-c", "print('no broker')"], tmp_path / "log")
    service.process.wait()
    with bench._notify_socket(str(tmp_path)) as sock:
        sock.settimeout(0.001)
        with pytest.raises(NotStartedError, match=r"not ready after .* no broker"):
            bench._wait_ready(sock, service)
    service.stop()


def test_cpu_time_of_this_process_grows() -> None:
    process = psutil.Process()
    before = bench._cpu_s(process)
    while time.process_time() < before + 0.05:
        pass
    assert bench._cpu_s(process) > before


def test_mapped_runtimes() -> None:
    import onnxruntime

    assert onnxruntime.__version__
    assert "onnxruntime" in bench._mapped_runtimes(os.getpid())


def test_figures_are_judged_by_their_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([Sample(1.0, 50, 0.5, ()), Sample(1.9, 61, 0.7, ("onnxruntime",))])
    monkeypatch.setattr(bench, "sample", lambda *_: next(samples))
    result = bench.run(quick=True, say=lambda _: None)
    start, memory, idle = result.figures
    assert (start.value, start.worst, start.met) == (1.45, 1.9, True)
    assert (memory.value, memory.met) == (55.5, True)
    assert (idle.runs, idle.met) == ((0.5, 0.7), True)
    assert "onnxruntime" in result.notes[-1]
