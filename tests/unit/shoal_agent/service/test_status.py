from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shoal_agent.service.lock import StateLock
from shoal_agent.service.status import (
    FILE_NAME,
    AgentStatus,
    StatusError,
    format_status,
    read_status,
    write_status,
)
from shoal_shared.messages import ReplicaReport
from shoal_shared.profiles import fit
from shoal_shared.status import ReplicaState

STATUS = AgentStatus(
    pid=7,
    agent_version="1",
    device="jetson-1",
    fleet="default",
    boot_id="b",
    board="Orin",
    broker="127.0.0.1:1883",
    connected=True,
    started_at=100.0,
    changed_at=101.0,
    goal=3,
    models=(
        ReplicaReport(
            deployment="d",
            model="m",
            version="2",
            digest="sha256:0",
            state=ReplicaState.READY,
            providers=("CPUExecutionProvider",),
            memory_bytes=3 * 2**20,
            profile=fit([(1, 2.0), (2, 3.0)]),
        ),
    ),
)


def test_what_the_agent_writes_is_what_status_reads(tmp_path: Path) -> None:
    lock = StateLock(tmp_path)
    with pytest.raises(StatusError, match="only just started"):
        read_status(tmp_path)
    write_status(tmp_path, STATUS)
    assert read_status(tmp_path) == STATUS
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
    (tmp_path / FILE_NAME).write_text("{}")
    with pytest.raises(StatusError, match="damaged"):
        read_status(tmp_path)
    lock.release()


def test_a_file_without_its_agent_is_not_believed(tmp_path: Path) -> None:
    write_status(tmp_path, STATUS)
    with pytest.raises(StatusError, match="no agent runs"):
        read_status(tmp_path)


def test_people_get_a_table() -> None:
    text = format_status(STATUS, 160.0)
    assert "running for  60 s" in text
    row = next(line for line in text.splitlines() if line.startswith("m:2"))
    assert row.split() == ["m:2", "ready", "d", "CPUExecutionProvider", "3", "MiB", "2.0", "ms"]
    assert "stages" not in text
    more = msgspec.structs.replace(STATUS, stages=("0 of ocr, epoch 3", "1 of ocr, epoch 3"))
    assert "stages       0 of ocr, epoch 3; 1 of ocr, epoch 3\n" in format_status(more, 160.0)
    assert "no models" in format_status(
        AgentStatus(**{f: getattr(STATUS, f) for f in STATUS.__struct_fields__ if f != "models"}),
        160.0,
    )
