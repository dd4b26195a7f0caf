"""Scoring endpoints of the loopback Azure: a proxy that demands the key, and real servers.

Each instance of a deployment is a process of KServe's model server.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import itertools
import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.azure_replies import Answer, Asked, RefusedError
from support.processes import Process, free_port

if TYPE_CHECKING:
    from support.azure import Azure

SCOPE = "https://ml.azure.com/.default"
START_S = 60.0
HANG_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


def kserve_python() -> str | None:
    """An interpreter that has KServe: this one, or that of the environment for it."""
    if importlib.util.find_spec("kserve") is not None:
        return sys.executable
    other = ROOT / ".venv-kserve" / "bin" / "python"
    return str(other) if other.exists() else None


class Instance:
    """One server process with one model. Raises `RuntimeError` where it does not start."""

    def __init__(self, folder: Path, name: str, model: bytes) -> None:
        python = kserve_python()
        if python is None:
            raise RuntimeError("no environment has kserve: run `make test-clouds`")
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
        self.port = free_port()
        module = "shoal_controlplane.offload.kserve.server"
        command = [python, "-m", module, "--name", name, "--path", str(folder / "model.onnx")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--drain-s", "0"]
        paths = ":".join(str(ROOT / room) for room in ("controlplane", "shared"))
        self._process = Process(command, folder / "server.log", {"PYTHONPATH": paths})
        end = time.monotonic() + START_S
        while not self._ready():
            if self._process.child.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"the server did not start: {self._process.output[-500:]}")
            time.sleep(0.05)

    def ask(self, asked: Asked, path: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        kept = ("content-type", "inference-header-content-length")
        headers = {name: value for name, value in asked.headers.items() if name in kept}
        with contextlib.closing(connection):
            connection.request(asked.method, path, asked.body, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def stop(self) -> None:
        self._process.kill()

    def _ready(self) -> bool:
        asked = Asked("GET", "", {}, {}, b"")
        try:
            return self.ask(asked, "/v2/health/ready")[0] == 200
        except OSError:
            return False


class Scoring:
    """All endpoints' proxies."""

    def __init__(self, azure: Azure) -> None:
        self._azure = azure
        self._instances: dict[tuple[str, str], list[Instance]] = {}
        self._numbers = itertools.count()
        self.resumed = threading.Event()
        self.resumed.set()

    def scale(self, endpoint: str, deployment: str, count: int, name: str, model: bytes) -> None:
        """Have so many instances; raises `RuntimeError` where one does not start."""
        running = self._instances.setdefault((endpoint, deployment), [])
        while len(running) > count:
            running.pop().stop()
        while len(running) < count:
            folder = self._azure.folder / "instances" / str(next(self._numbers))
            running.append(Instance(folder, name, model))

    def answer(self, asked: Asked) -> Answer:
        found = re.fullmatch(r"/endpoints/([^/]+)(/v2/.+)", asked.path)
        if found is None:
            raise RefusedError(404, "NotFound", "no such path")
        endpoint, path = found.groups()
        with self._azure.lock:
            resource = self._azure.arm.endpoints.get(endpoint)
            if resource is None:
                raise RefusedError(404, "NotFound", "no such endpoint")
            if not self._knows(asked, endpoint, resource["properties"]["authMode"]):
                raise RefusedError(401, "Unauthorized", "the key or token is not valid")
            traffic = resource["properties"]["traffic"]
            heaviest = max(traffic, key=lambda n: traffic[n]) if any(traffic.values()) else ""
            deployment = asked.headers.get("azureml-model-deployment") or heaviest
            running = self._instances.get((endpoint, deployment))
            if not running:
                raise RefusedError(404, "NotFound", "no deployment with positive weight")
            running.append(running.pop(0))
            instance = running[0]
        self.resumed.wait(HANG_S)
        try:
            status, headers, body = instance.ask(asked, path)
        except OSError as error:
            raise RefusedError(502, "BadGateway", str(error)) from None
        kept = ("content-type", "inference-header-content-length")
        headers = {name: value for name, value in headers.items() if name in kept}
        if status != 200:
            # So Azure tells that the model's server did not answer with 200.
            headers["ms-azureml-model-error-statuscode"] = str(status)
            return Answer(424, body, headers)
        return Answer(200, body, headers)

    def close(self) -> None:
        self.resumed.set()
        for running in self._instances.values():
            for instance in running:
                instance.stop()
        self._instances.clear()

    def _knows(self, asked: Asked, endpoint: str, mode: str) -> bool:
        if mode == "Key":
            return asked.bearer in self._azure.arm.keys[endpoint]
        return self._azure.knows(asked, SCOPE)
