"""Schemathesis over the API: whatever it sends, the server never fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import onnx_models
from support.processes import BIN, ControlPlane, Process, free_port, start_agent


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    processes: list[Process] = []
    try:
        plane = ControlPlane(tmp_path, broker_port=free_port())
        processes.append(plane.process)
        processes.append(start_agent(tmp_path, "board-0", plane))
        plane.wait_condition("board-0", "online")
        plane.deploy(onnx_models.add(tmp_path / "add.onnx"), "add")
        yield plane
    finally:
        for process in reversed(processes):
            process.stop()


@pytest.mark.timeout(300)
def test_no_request_makes_the_server_fail(plane: ControlPlane, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            str(BIN / "schemathesis"),
            "run",
            f"{plane.url}/openapi.json",
            "--checks",
            "not_a_server_error",
            "--exclude-path",
            # An endless stream by design; its JSON form is tested elsewhere.
            "/api/v1/events",
            "--max-examples",
            "20",
            "--seed",
            "1",
            "--request-timeout",
            "10",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert plane.get("/livez")[0] == 200
    assert "Traceback" not in plane.process.output
