"""Worker processes of this machine: started, mended, stopped; with a stand-in for the worker."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal_controlplane.offload.local.workers import Program, Record, Replica, Workers
from shoal_controlplane.offload.target import Fault, TargetError

STAYS = '#!/bin/sh\necho "$WORKER_TOKEN $WORKER_CHIP $SECRET"\nexec sleep 600\n'
ENDS = "#!/bin/sh\necho one\necho the TPU worker has no operator Unique\nexit 3\n"
TOKEN = "the-token"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "workers"
    yield folder
    for path in folder.glob("*.json"):
        for pid in re.findall(r'"pid":([0-9]+)', path.read_text()):
            kill(int(pid))


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def ended(replica: Replica) -> None:
    """Wait until a worker has ended by itself, and leave it to be found."""
    os.waitid(os.P_PID, replica.pid, os.WEXITED | os.WNOWAIT)


def workers_of(folder: Path, script: str, clock: Clock, chips: int = 0) -> Workers:
    program = folder.parent / "worker.sh"
    program.write_text(script)
    program.chmod(0o700)
    return Workers(
        folder,
        Program(
            str(program),
            "worker",
            "WORKER_TOKEN",
            chips=chips,
            chip_environment=lambda chip: {"WORKER_CHIP": str(chip)},
        ),
        clock,
    )


def mended(workers: Workers) -> Record:
    record = workers.mend("m", TOKEN)
    assert record is not None
    return record


def test_as_many_run_as_are_wanted(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, STAYS, clock)
    assert workers.scale("m", 1, TOKEN) is None
    workers.deploy("m", ["a"], TOKEN)
    assert mended(workers).replicas == []
    for wanted in (1, 3, 2):
        record = workers.scale("m", wanted, TOKEN)
        assert record is not None
        assert len(record.replicas) == wanted
        assert len({replica.port for replica in record.replicas}) == wanted
    pids = [replica.pid for replica in mended(workers).replicas]
    workers.remove("m")
    assert workers.mend("m", TOKEN) is None
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["lock"]


def test_another_goes_on_with_them(folder: Path, clock: Clock) -> None:
    workers_of(folder, STAYS, clock).deploy("m", ["a"], TOKEN)
    before = workers_of(folder, STAYS, clock).scale("m", 1, TOKEN)
    again = workers_of(folder, STAYS, clock)
    again.deploy("m", ["a"], TOKEN)
    assert before is not None
    assert mended(again).replicas == before.replicas


def test_other_arguments_replace_them(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, STAYS, clock)
    workers.deploy("m", ["a"], TOKEN)
    workers.scale("m", 2, TOKEN)
    before = {replica.pid for replica in mended(workers).replicas}
    workers.deploy("m", ["b"], TOKEN)
    after = {replica.pid for replica in mended(workers).replicas}
    assert len(after) == 2
    assert not before & after


def test_it_listens_before_it_runs_and_refuses_once_it_ended(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, STAYS, clock)
    workers.deploy("m", ["a"], TOKEN)
    record = workers.scale("m", 1, TOKEN)
    assert record is not None
    [replica] = record.replicas
    socket.create_connection(("127.0.0.1", replica.port)).close()
    kill(replica.pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", replica.port))


def test_one_that_was_ready_is_started_anew_at_once(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, STAYS, clock)
    workers.deploy("m", ["a"], TOKEN)
    workers.scale("m", 1, TOKEN)
    [replica] = mended(workers).replicas
    workers.ready("m", [replica.pid])
    kill(replica.pid)
    record = mended(workers)
    assert record.reason
    assert [other.pid != replica.pid for other in record.replicas] == [True]


def test_one_that_ends_again_and_again_is_started_less_and_less(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, ENDS, clock)
    workers.deploy("m", ["a"], TOKEN)
    record = workers.scale("m", 1, TOKEN)
    for pause_s in (1, 2, 4):
        assert record is not None
        [replica] = record.replicas
        ended(replica)
        record = mended(workers)
        assert record.replicas == []
        assert record.reason == "a worker ended: the TPU worker has no operator Unique"
        clock.now += pause_s - 0.01
        assert mended(workers).replicas == []
        clock.now += 0.02
        record = mended(workers)
    assert record is not None
    ended(record.replicas[0])
    assert mended(workers).replicas == []
    # Who asks for replicas anew does not wait.
    record = workers.scale("m", 1, TOKEN)
    assert record is not None
    assert len(record.replicas) == 1


def test_each_has_a_chip_of_its_own(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, STAYS, clock, chips=2)
    for name in ("m", "n"):
        workers.deploy(name, ["a"], TOKEN)
    workers.scale("m", 1, TOKEN)
    record = workers.scale("n", 1, TOKEN)
    assert record is not None
    assert [replica.chip for replica in record.replicas] == [1]
    with pytest.raises(TargetError, match="2 chips") as caught:
        workers.scale("m", 3, TOKEN)
    assert caught.value.fault is Fault.QUOTA
    with pytest.raises(TargetError, match="are taken") as caught:
        workers.scale("m", 2, TOKEN)
    assert caught.value.fault is Fault.QUOTA


def test_they_get_the_token_and_no_other_secret(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of-the-control-plane")
    workers = workers_of(folder, STAYS, clock, chips=1)
    workers.deploy("m", ["a"], TOKEN)
    record = workers.scale("m", 1, TOKEN)
    assert record is not None
    [replica] = record.replicas
    environment = Path(f"/proc/{replica.pid}/environ").read_bytes()
    assert f"WORKER_TOKEN={TOKEN}".encode() in environment
    assert b"WORKER_CHIP=0" in environment
    assert b"of-the-control-plane" not in environment
    assert TOKEN not in (folder / "m.json").read_text()


def test_another_token_is_refused_while_they_run(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, STAYS, clock)
    workers.deploy("m", ["a"], TOKEN)
    workers.check("another")
    workers.scale("m", 1, TOKEN)
    workers.check(TOKEN)
    with pytest.raises(TargetError) as caught:
        workers.check("another")
    assert caught.value.fault is Fault.CREDENTIALS
    assert "another-" not in str(caught.value)
    workers.scale("m", 0, TOKEN)
    workers.check("another")


def test_the_folders_own_token_stays(folder: Path, clock: Clock) -> None:
    token = workers_of(folder, STAYS, clock).own_token()
    assert len(token) >= 32
    assert workers_of(folder, STAYS, clock).own_token() == token
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_number_that_another_process_has_now_is_not_killed(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, STAYS, clock)
    workers.deploy("m", ["a"], TOKEN)
    record = json.loads((folder / "m.json").read_text())
    mine = {"pid": os.getpid(), "born": 1, "port": 1, "token": "", "chip": 0}
    (folder / "m.json").write_text(json.dumps({**record, "replicas": [mine]}))
    assert mended(workers).replicas == []


def test_a_program_that_is_not_there_is_told(folder: Path, clock: Clock) -> None:
    workers = Workers(folder, Program(str(folder / "none"), "worker", "WORKER_TOKEN"), clock)
    workers.deploy("m", ["a"], TOKEN)
    with pytest.raises(TargetError, match="cannot be started") as caught:
        workers.scale("m", 1, TOKEN)
    assert caught.value.fault is Fault.UNREACHABLE


def test_a_damaged_record_is_told(folder: Path, clock: Clock) -> None:
    workers = workers_of(folder, STAYS, clock)
    workers.deploy("m", ["a"], TOKEN)
    (folder / "m.json").write_text("{")
    with pytest.raises(TargetError, match=r"m\.json cannot be used") as caught:
        workers.mend("m", TOKEN)
    assert caught.value.fault is Fault.BROKEN


def test_a_folder_that_cannot_be_is_told(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match="cannot be used") as caught:
        workers_of(tmp_path / "file", STAYS, clock).mend("m", TOKEN)
    assert caught.value.fault is Fault.UNREACHABLE
