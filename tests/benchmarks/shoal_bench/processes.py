"""Processes that benchmarks start, and stop for certain."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_STOP_S = 10.0


class NotStartedError(Exception):
    """A process ended, or did not come up in time."""


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Service:
    """A process and what it starts, in a session of its own; its output goes to `log`."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._output = log.open("wb")
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Ask `ready` until it is true. Raises `NotStartedError`."""
        until = time.monotonic() + timeout_s
        while not ready():
            if self.process.poll() is not None:
                raise NotStartedError(f"ended with {self.process.returncode}: {self.tail()}")
            if time.monotonic() > until:
                raise NotStartedError(f"not ready after {timeout_s:.0f} s: {self.tail()}")
            time.sleep(0.05)

    def tail(self, size: int = 400) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-size:].strip()

    def stop(self) -> None:
        """End it and all its descendants, gently at first."""
        family = [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        if family:
            family += family[0].children(recursive=True)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=1.0)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=_STOP_S)
        self._output.close()
