"""Shoal as a server to compare: control plane, embedded broker and agent, as an operator would
start them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from shoal_bench.brokers import mosquitto, start_mosquitto
from shoal_bench.gateway.servers import NotInstalledError, Ready, Running
from shoal_bench.processes import NotStartedError, Service, free_port

_START_S = 30.0
_BIN = Path(sys.executable).parent


@dataclass(slots=True)
class _RunningShoal:
    port: int
    folder: Path
    services: list[Service] = field(default_factory=list)

    def stop(self) -> None:
        for service in reversed(self.services):
            service.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Shoal:
    """`shoal serve` and one `shoal-agent run`, on the embedded broker or on Mosquitto."""

    binary = True

    def __init__(self, *, embedded: bool) -> None:
        self.name = "Shoal" if embedded else "Shoal on Mosquitto"
        self._embedded = embedded

    def prepare(self) -> str:
        if not self._embedded and mosquitto() is None:
            raise NotInstalledError("Shoal on Mosquitto: the program mosquitto is not here")
        return f"{self.name} ({version('shoal')})"

    def start(self, models: Mapping[str, Path], folder: Path, ready: Ready) -> Running:
        port = free_port()
        running = _RunningShoal(port, Path(tempfile.mkdtemp(prefix="shoal-bench-")))
        try:
            self._start(running, models, folder)
            running.services[-1].wait_until(lambda: ready(port), _START_S)
        except NotStartedError as error:
            running.stop()
            raise NotStartedError(f"Shoal: {error}") from None
        return running

    def _start(self, running: _RunningShoal, models: Mapping[str, Path], logs: Path) -> None:
        url = f"http://127.0.0.1:{running.port}"
        mqtt_port = free_port()
        broker = ["--mqtt-port", str(mqtt_port)]
        program = None if self._embedded else mosquitto()
        if program is not None:
            service, mqtt_port = start_mosquitto(program, running.folder, logs / "mosquitto.log")
            running.services.append(service)
            broker = ["--broker", f"127.0.0.1:{mqtt_port}"]
        serve = [
            *(str(_BIN / "shoal"), "serve", "--log-level", "warning", *broker),
            *("--port", str(running.port), "--grpc-port", str(free_port())),
            *("--data-dir", str(running.folder / "server")),
        ]
        running.services.append(Service(serve, logs / "shoal-serve.log"))
        running.services[-1].wait_until(lambda: _is_up(f"{url}/readyz"), _START_S)
        agent = [
            *(str(_BIN / "shoal-agent"), "run", "--log-level", "warning", "--device", "bench"),
            *("--broker", f"127.0.0.1:{mqtt_port}", "--server", url),
            *("--state-dir", str(running.folder / "agent")),
        ]
        running.services.append(Service(agent, logs / "shoal-agent.log"))
        for name, path in models.items():
            _shoal(url, "model", "push", str(path), "--name", name)
            _shoal(url, "deployment", "create", name, "--timeout", str(_START_S))


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _shoal(url: str, *arguments: str) -> None:
    """Run one command of the operator. Raises `NotStartedError`."""
    done = subprocess.run(
        [str(_BIN / "shoal"), *arguments],
        env={**os.environ, "SHOAL_SERVER": url},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotStartedError(f"'shoal {arguments[0]} {arguments[1]}' failed: {done.stderr[-300:]}")
