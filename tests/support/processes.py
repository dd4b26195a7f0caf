"""Real processes for integration tests: broker, control plane, agents."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent


def need(command: str, remedy: str) -> str:
    """Path of a system command; without it skip, or fail where nothing may be skipped."""
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")
    if found is None:
        reason = f"{command} is not installed: {remedy}"
        if os.environ.get("SHOAL_REQUIRE_COMPONENTS"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(check: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Wait for `check` to return something true; fail with `what` if it never does."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.05)


class Process:
    """A child process whose output goes to a file; killed with its group at the end."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        env: dict[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.command, self.log, self._stdin = command, log, stdin
        self._env = {**os.environ, **(env or {})}
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.child = subprocess.Popen(
                self.command,
                stdin=self._stdin,
                stdout=out,
                stderr=out,
                env=self._env,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, the whole group."""
        self._signal(signal.SIGKILL)

    def stop(self) -> int:
        """Terminate and wait; kill what does not go."""
        self._signal(signal.SIGTERM)
        try:
            return self.child.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.child.wait(5)

    def _signal(self, number: int) -> None:
        if self.child.poll() is None:
            os.killpg(self.child.pid, number)
        if number == signal.SIGKILL:
            self.child.wait(5)


def start_mosquitto(folder: Path, port: int) -> Process:
    command = need("mosquitto", "apt install mosquitto")
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
        "max_queued_messages 10000\n"
    )
    process = Process([command, "-c", str(config)], folder / "mosquitto.log")
    until(lambda: _listens(port), "mosquitto")
    return process


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class ControlPlane:
    """`shoal serve` as a process, with an embedded broker or an external one."""

    def __init__(self, folder: Path, *, broker_port: int, external_broker: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.broker_port = broker_port
        self.port, self.grpc_port = free_port(), free_port()
        command = [
            str(BIN / "shoal"),
            "serve",
            "--port",
            str(self.port),
            "--grpc-port",
            str(self.grpc_port),
            "--data-dir",
            str(folder / "data"),
        ]
        if external_broker:
            command += ["--broker", f"127.0.0.1:{broker_port}"]
        else:
            command += ["--mqtt-port", str(broker_port)]
        self.process = Process(command, folder / "serve.log")
        self.wait_ready()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        def ready() -> bool:
            if self.process.child.poll() is not None:
                pytest.fail(f"shoal serve ended:\n{self.process.output}")
            try:
                return self.get("/readyz")[0] == 200
            except OSError:
                return False

        until(ready, "the control plane's readiness")

    def get(self, path: str) -> tuple[int, Any]:
        return self.call("GET", path)

    def call(
        self, method: str, path: str, body: Any = None, timeout: float = 30
    ) -> tuple[int, Any]:
        """Status and decoded JSON (or text) of a request."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                status, raw = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode(errors="replace")

    def shoal(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the operator's command against this control plane."""
        return subprocess.run(
            [str(BIN / "shoal"), *arguments, "--server", self.url],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def deploy(self, path: Path, name: str, *options: str) -> None:
        """Push a model and deploy it; fails the test with the command's own words."""
        for arguments in (
            ("model", "push", str(path), "--name", name),
            ("deployment", "create", name, *options),
        ):
            done = self.shoal(*arguments)
            assert done.returncode == 0, f"shoal {' '.join(arguments)}: {done.stderr}{done.stdout}"

    def device(self, name: str) -> dict[str, Any] | None:
        status, body = self.get(f"/api/v1/devices/{name}")
        return body if status == 200 else None

    def wait_condition(self, device: str, condition: str, timeout_s: float = 30.0) -> None:
        until(
            lambda: (self.device(device) or {}).get("condition") == condition,
            f"device {device} being {condition}",
            timeout_s,
        )


def start_fleet(folder: Path, spec: str, plane: ControlPlane) -> Process:
    """A simulated fleet, several agents in one process; `spec` is a file's text in TOML."""
    file = folder / "fleet.toml"
    file.write_text(spec)
    return Process(
        [
            sys.executable,
            *("-m", "shoal_simulators.fleet", str(file)),
            *("--broker", f"127.0.0.1:{plane.broker_port}", "--server", plane.url),
            *("--state-dir", str(folder / "fleet")),
        ],
        folder / "fleet.log",
        # It stops when its standard input ends.
        stdin=subprocess.PIPE,
    )


def start_agent(folder: Path, name: str, plane: ControlPlane, *options: str) -> Process:
    """`shoal-agent run` as a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Process(
        [
            str(BIN / "shoal-agent"),
            "run",
            "--device",
            name,
            "--broker",
            f"127.0.0.1:{plane.broker_port}",
            "--server",
            plane.url,
            "--state-dir",
            str(folder / name),
            *options,
        ],
        folder / f"{name}.log",
    )
