from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from support.runtimes import CpuRuntime

from shoal_agent.boards.base import BoardFacts, BoardReading
from shoal_agent.config import load_config
from shoal_agent.runtimes.base import RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.trial import TrialOutcome, TrialTask
from shoal_agent.service import doctor
from shoal_agent.service.doctor import (
    check_broker,
    check_disk,
    check_distributions,
    check_python,
    check_runtimes,
    check_server,
    check_state_dir,
    format_findings,
)
from shoal_agent.service.finding import Finding
from shoal_shared.messages import Accelerator, Board, RuntimeInfo


def blocks(finding: Finding) -> bool:
    assert finding.ok or finding.remedy
    return finding.blocks and not finding.ok


def test_an_old_python_is_told() -> None:
    assert blocks(check_python((3, 9)))
    assert check_python((3, 10)).ok


def test_a_device_without_a_runtime_cannot_infer() -> None:
    assert blocks(check_runtimes(()))
    info = RuntimeInfo(name="onnxruntime", version="1.2", formats=("onnx",), providers=("CPU",))
    finding = check_runtimes((info,))
    assert finding.ok
    assert finding.detail == "onnxruntime 1.2 for onnx with CPU"


def test_two_distributions_of_one_runtime_are_a_problem() -> None:
    assert check_distributions(()).ok
    assert check_distributions(("onnxruntime",)).ok
    finding = check_distributions(("onnxruntime", "onnxruntime-gpu"))
    assert blocks(finding)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in finding.remedy
    assert finding.remedy.endswith("pip install onnxruntime-gpu")


def test_the_state_folder_may_be_made_later(tmp_path: Path) -> None:
    assert check_state_dir(tmp_path).ok
    assert check_state_dir(tmp_path / "a" / "b").ok
    assert not (tmp_path / "a").exists()
    file = tmp_path / "file"
    file.write_text("")
    assert blocks(check_state_dir(file))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_someone_else_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert blocks(check_state_dir(tmp_path))
    assert blocks(check_state_dir(tmp_path / "below"))


@pytest.mark.parametrize(
    ("free", "ok", "blocking"), [(3 << 30, True, False), (1 << 30, False, False), (1, False, True)]
)
def test_little_disk_is_told_and_none_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, ok: bool, blocking: bool
) -> None:
    monkeypatch.setattr(doctor, "disk_free", lambda _: free)
    finding = check_disk(tmp_path / "new")
    assert (finding.ok, blocks(finding)) == (ok, blocking)


def test_a_broker_is_there_or_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert check_broker("127.0.0.1", port).ok
    assert blocks(check_broker("127.0.0.1", port))
    assert blocks(check_broker("no host at all", 1))


def test_a_server_that_is_away_only_warns() -> None:
    finding = check_server("http://127.0.0.1:1/base")
    assert not finding.ok
    assert not finding.blocks
    assert "new models cannot be fetched" in finding.detail


class _Orin:
    """A board with a GPU."""

    facts = BoardFacts(
        description=Board(family="jetson", model="Orin"),
        cores=6,
        memory_bytes=2**33,
        accelerators=(Accelerator(kind="gpu", name="Ampere GPU"),),
        notes=("The fan is stuck. Clean it.",),
    )

    def read(self) -> BoardReading:
        return BoardReading(cpu_load=0.0, memory_used_bytes=0)

    def is_throttled(self) -> bool:
        return False


async def test_everything_is_checked(tmp_path: Path) -> None:
    async def trial(task: TrialTask) -> TrialOutcome:
        raise RuntimeLoadError(f"{task.provider_set.name} is broken: use another one")

    config = load_config(
        None,
        {},
        {"state_dir": str(tmp_path), "broker": "127.0.0.1:1", "server": "http://127.0.0.1:1"},
    )
    registry = RuntimeRegistry([CpuRuntime()])
    findings = await doctor.examine(config, _Orin(), registry, trial)
    checks = [f.check for f in findings]
    for check in ("board", "board note", "drivers", "python", "runtimes", "disk", "server"):
        assert check in checks
    problems = {f.check: f for f in findings if blocks(f)}
    assert problems["accelerators"].detail == "no runtime that uses Ampere GPU is installed"
    assert problems["onnx on cpu"].detail == "cpu is broken"
    assert problems["onnx on cpu"].remedy == "use another one"
    assert "broker" in problems


def test_people_get_lines() -> None:
    text = format_findings(
        (
            Finding(check="a", ok=True, detail="fine"),
            Finding(check="b", ok=False, detail="odd", remedy="mend b"),
            Finding(check="c", ok=False, detail="bad", remedy="mend c", blocks=True),
        )
    )
    assert text.splitlines() == [
        "ok       a: fine",
        "warning  b: odd",
        "         mend it with: mend b",
        "PROBLEM  c: bad",
        "         mend it with: mend c",
    ]
