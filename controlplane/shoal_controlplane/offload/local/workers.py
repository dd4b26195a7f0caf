"""Worker processes of this machine, and what is known of them, in a folder.

They outlive who started them: another process that is given the same folder goes on with them. All
functions block; a file is locked around each change.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal_controlplane.offload.target import Fault, TargetError

_GRACE_S = 5.0
_LONGEST_WAIT_S = 60.0
_SOCKET = 3
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Program:
    """What a worker is: `python -m module … --fd=3`, which demands the token in `token_variable`
    of its environment. Of ours it gets variables with `kept` as prefix, besides the usual ones.
    `chips` are given one to each worker, which `chip_environment` makes see no other; 0: none
    are."""

    python: str
    module: str
    token_variable: str
    kept: tuple[str, ...] = ("LC_",)
    chips: int = 0
    chip_environment: Callable[[int], dict[str, str]] = lambda _: {}


class Replica(msgspec.Struct):
    """A process. `born` tells it from a later one with its number; `token` is the digest of the
    token that it demands."""

    pid: int
    born: int
    port: int
    token: str
    chip: int
    was_ready: bool = False


class Record(msgspec.Struct):
    """A model: what its workers are started with, how many are wanted and which there are.
    `reason` says why the last one ended; after failures none is started before `not_before`."""

    arguments: list[str]
    wanted: int = 0
    replicas: list[Replica] = []
    failures: int = 0
    not_before: float = 0.0
    reason: str = ""


class Workers:
    """All workers of a folder, which run one program."""

    def __init__(
        self, folder: Path, program: Program, now: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._program = program
        self._chips = program.chips
        self._now = now

    def own_token(self) -> str:
        """A token that is kept in the folder, made when it is first asked for."""
        with self._locked():
            path = self._folder / "token"
            if not path.exists():
                _write(path, secrets.token_urlsafe(32).encode())
            return path.read_text().strip()

    def check(self, token: str) -> None:
        """Raises `TargetError` CREDENTIALS where workers run that demand another token."""
        mark = _mark(token)
        with self._locked():
            for path in self._folder.glob("*.json"):
                record = self._read(path.stem)
                if record and any(r.token != mark for r in record.replicas if _alive(r)):
                    raise TargetError(
                        Fault.CREDENTIALS,
                        f"workers in {self._folder} run with another token: give the same "
                        "credential, or remove their models first",
                    )

    def deploy(self, name: str, arguments: list[str], token: str) -> None:
        """Know a model; its workers are replaced where `arguments` are other ones."""
        with self._locked():
            record = self._read(name) or Record(arguments)
            stopped: list[Replica] = []
            if record.arguments != arguments:
                stopped = record.replicas
                record = Record(arguments, record.wanted)
            self._write(name, record)
        # First, since the new ones need their chips.
        self._stop(name, stopped)
        self.mend(name, token)

    def scale(self, name: str, wanted: int, token: str) -> Record | None:
        """Have so many workers, None where the model is unknown. Raises `TargetError` QUOTA."""
        if self._chips and wanted > self._chips:
            raise TargetError(
                Fault.QUOTA, f"this machine has {self._chips} chips, one for each worker"
            )
        with self._locked():
            record = self._read(name)
            if record is None:
                return None
            record.wanted = wanted
            # Somebody asked anew: what failed before may be mended.
            record.failures, record.not_before = 0, 0.0
            stopped = record.replicas[wanted:]
            record.replicas = record.replicas[:wanted]
            if not wanted:
                record.reason = ""
            self._write(name, record)
        self._stop(name, stopped)
        return self.mend(name, token)

    def mend(self, name: str, token: str) -> Record | None:
        """Start anew what has ended. None where the model is unknown."""
        with self._locked():
            record = self._read(name)
            if record is None:
                return None
            try:
                self._fill(name, record, token)
            finally:
                self._write(name, record)
            return record

    def ready(self, name: str, pids: Sequence[int]) -> None:
        """Note which workers answered: they were started well."""
        with self._locked():
            record = self._read(name)
            if record is None:
                return
            for replica in record.replicas:
                replica.was_ready = replica.was_ready or replica.pid in pids
            if pids:
                record.failures, record.reason = 0, ""
            self._write(name, record)

    def remove(self, name: str) -> None:
        """Stop all workers of a model and forget it."""
        with self._locked():
            record = self._read(name)
            (self._folder / f"{name}.json").unlink(missing_ok=True)
        if record is not None:
            self._stop(name, record.replicas)

    def _fill(self, name: str, record: Record, token: str) -> None:
        """Forget what has ended, and start what is missing."""
        for replica in [r for r in record.replicas if not _alive(r)]:
            record.replicas.remove(replica)
            record.reason = self._last_words(name, replica)
            if not replica.was_ready:
                # It may end again and again: wait longer each time.
                record.failures += 1
                pause_s = min(2.0 ** (record.failures - 1), _LONGEST_WAIT_S)
                record.not_before = self._now() + pause_s
        if self._now() < record.not_before:
            return
        for _ in range(record.wanted - len(record.replicas)):
            record.replicas.append(self._start(name, record, token))

    def _start(self, name: str, record: Record, token: str) -> Replica:
        chip = min(set(range(64)) - self._chips_taken(record))
        if self._chips and chip >= self._chips:
            raise TargetError(Fault.QUOTA, f"all {self._chips} chips of this machine are taken")
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        try:
            port = listener.getsockname()[1]
            log = os.open(
                self._log(name, port), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            try:
                # It gets the socket that listens already: no port is free one moment and taken
                # the next, and nobody is refused while it starts.
                python = self._program.python
                pid = os.posix_spawn(
                    python,
                    [python, "-m", self._program.module, *record.arguments, f"--fd={_SOCKET}"],
                    self._environment(token, chip),
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, log, 1),
                        (os.POSIX_SPAWN_DUP2, log, 2),
                        (os.POSIX_SPAWN_DUP2, listener.fileno(), _SOCKET),
                    ],
                    setsid=True,
                )
            finally:
                os.close(log)
        except OSError as error:
            raise TargetError(
                Fault.UNREACHABLE, f"{self._program.python} cannot be started: {error.strerror}"
            ) from None
        finally:
            listener.close()
        return Replica(pid, _process(pid)[1], port, _mark(token), chip)

    def _chips_taken(self, record: Record) -> set[int]:
        """By all models of the folder; `record` may not be written yet."""
        taken = {replica.chip for replica in record.replicas}
        for path in self._folder.glob("*.json"):
            other = self._read(path.stem)
            if other is not None:
                taken |= {replica.chip for replica in other.replicas if _alive(replica)}
        return taken

    def _environment(self, token: str, chip: int) -> dict[str, str]:
        program = self._program
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT or name.startswith(program.kept)
        }
        kept[program.token_variable] = token
        if self._chips:
            kept |= program.chip_environment(chip)
        return kept

    def _stop(self, name: str, replicas: Sequence[Replica]) -> None:
        """End processes: by themselves if they do so in time."""
        for replica in replicas:
            _kill(replica, signal.SIGTERM)
        end = time.monotonic() + _GRACE_S
        while any(map(_alive, replicas)) and time.monotonic() < end:
            time.sleep(0.02)
        for replica in replicas:
            _kill(replica, signal.SIGKILL)
            self._log(name, replica.port).unlink(missing_ok=True)

    def _last_words(self, name: str, replica: Replica) -> str:
        path = self._log(name, replica.port)
        try:
            lines = path.read_bytes()[-4096:].decode("utf-8", "replace").strip().splitlines()
        except OSError:
            lines = []
        path.unlink(missing_ok=True)
        said = "".join(c for c in lines[-1] if c.isprintable())[:300] if lines else ""
        if said.startswith("ready: ") or not said:
            return "a worker ended without a word: it was killed, or this machine lacks memory"
        return f"a worker ended: {said}"

    def _log(self, name: str, port: int) -> Path:
        return self._folder / f"{name}-{port}.log"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TargetError(
                Fault.UNREACHABLE, f"the folder {self._folder} cannot be used: {error.strerror}"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self, name: str) -> Record | None:
        path = self._folder / f"{name}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise TargetError(Fault.BROKEN, f"{path} cannot be used: {error}") from None

    def _write(self, name: str, record: Record) -> None:
        _write(self._folder / f"{name}.json", msgspec.json.encode(record))


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, for this user only."""
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123  # it is open already
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _mark(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _alive(replica: Replica) -> bool:
    state, born = _process(replica.pid)
    if born != replica.born:
        return False
    if state in "ZX":
        with contextlib.suppress(ChildProcessError):
            # Where it is a child of this process, that lets it go.
            os.waitpid(replica.pid, os.WNOHANG)
        return False
    return True


def _process(pid: int) -> tuple[str, int]:
    """The state of a process, and when it was started, in the kernel's ticks; -1 where there is
    none.

    Source: proc_pid_stat(5), fields 3 and 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, LookupError):
        return "X", -1


def _kill(replica: Replica, number: int) -> None:
    if _alive(replica):
        with contextlib.suppress(ProcessLookupError):
            os.kill(replica.pid, number)
