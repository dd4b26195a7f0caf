from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from shoal_bench.processes import NotStartedError, Service

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_stop_ends_children_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    service = Service([sys.executable, "-c", _PARENT], log)
    try:
        service.wait_until(lambda: log.read_text().endswith("\n"), 30)
        child = psutil.Process(int(log.read_text()))
    finally:
        service.stop()
    assert service.process.returncode is not None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    service = Service([sys.executable, "-c", "import sys; sys.exit('no port')"], tmp_path / "log")
    with pytest.raises(NotStartedError, match="ended with 1: no port"):
        service.wait_until(lambda: False, 30)
    service.stop()


def test_a_process_that_is_never_ready(tmp_path: Path) -> None:
    service = Service([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    try:
        with pytest.raises(NotStartedError, match="not ready"):
            service.wait_until(lambda: False, 0.0)
    finally:
        service.stop()
