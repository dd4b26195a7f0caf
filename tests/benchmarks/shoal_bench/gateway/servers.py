"""The servers that are compared: how each is installed, started and stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoal_bench.processes import NotStartedError, Service, free_port

_START_S = 120.0
_PEERS = Path(__file__).with_name("peers")

Ready = Callable[[int], bool]
"""Whether every model answers on a port."""


class NotInstalledError(Exception):
    """A server's environment cannot be made here."""


class Running(Protocol):
    """A server that answers on `port` of loopback until it is stopped."""

    port: int

    def stop(self) -> None: ...


class Server(Protocol):
    """A way to serve models. `binary` tells whether it speaks the binary extension over HTTP."""

    name: str
    binary: bool

    def prepare(self) -> str:
        """Install what is missing, and return name and version. Raises `NotInstalledError`."""

    def start(self, models: Mapping[str, Path], folder: Path, ready: Ready) -> Running:
        """Start it with files of its own below `folder`, and wait until it is `ready`.

        Raises `NotStartedError`.
        """


@dataclass(slots=True)
class _RunningPeer:
    port: int
    service: Service

    def stop(self) -> None:
        self.service.stop()


@dataclass(slots=True)
class Peer:
    """A server in an environment of its own, started by a script from `peers/`."""

    name: str
    script: str
    requirements: tuple[str, ...]
    environments: Path
    binary: bool = True

    @property
    def _python(self) -> Path:
        return self.environments / self.script / "bin" / "python"

    def prepare(self) -> str:
        folder = self.environments / self.script
        wanted = "\n".join(self.requirements)
        stamp = folder / "installed.txt"
        if not stamp.exists() or stamp.read_text() != wanted:
            pip = [str(self._python), "-m", "pip", "install", "--quiet", *self.requirements]
            for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], pip):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    lines = (done.stderr or done.stdout).strip().splitlines()
                    raise NotInstalledError(f"{self.name}: {lines[-1] if lines else 'failed'}")
            stamp.write_text(wanted)
        return f"{self.name} {self.requirements[0].partition('==')[2]}"

    def start(self, models: Mapping[str, Path], folder: Path, ready: Ready) -> Running:
        port = free_port()
        script = _PEERS / f"{self.script}_server.py"
        arguments = [f"{name}={path.resolve()}" for name, path in models.items()]
        service = Service(
            [str(self._python), str(script), str(port), *arguments],
            folder / f"{self.script}.log",
            env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"},
        )
        try:
            service.wait_until(lambda: ready(port), _START_S)
        except NotStartedError as error:
            service.stop()
            raise NotStartedError(f"{self.name}: {error}") from None
        return _RunningPeer(port, service)


def peers(environments: Path) -> list[Peer]:
    """The other model servers, in the versions that were compared."""
    runtime = ("onnxruntime==1.32.0", "orjson==3.13.0", "uvloop==0.23.0", "httptools==0.9.0")
    return [
        Peer("KServe", "kserve", ("kserve==0.21.0", *runtime), environments),
        Peer("MLServer", "mlserver", ("mlserver==1.7.1", *runtime), environments, False),
        Peer("LitServe", "litserve", ("litserve==0.2.19", *runtime), environments),
        Peer("Ray Serve", "ray", ("ray[serve]==2.60.0", *runtime), environments),
    ]
