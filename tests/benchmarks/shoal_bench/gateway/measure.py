"""One measurement: a server that runs, a workload, a number of clients."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal_bench.gateway.workload import Workload, WrongAnswerError

HOST = "127.0.0.1"
_CLIENT = Path(__file__).with_name("client.py")
_BARE = Path(__file__).with_name("bare.py")
_GRACE_S = 60.0


class FailedError(Exception):
    """A measurement that counts for nothing."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the client process reads."""

    host: str
    port: int
    requests: list[str]
    answers: str
    connections: int
    warm_up_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers a second and the time of one, at the client."""

    per_second: float
    p50_ms: float
    p99_ms: float


def measure(
    workload: Workload, port: int, connections: int, warm_up_s: float, seconds: float
) -> Measured:
    """Load the server from a process of its own, and check the answers that it gave meanwhile.

    Raises `FailedError`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requests = []
        for turn, request in enumerate(workload.http_requests(HOST, port)):
            path = folder / f"request-{turn}"
            path.write_bytes(request)
            requests.append(str(path))
        answers = folder / "answers"
        answers.mkdir()
        spec = Spec(HOST, port, requests, str(answers), connections, warm_up_s, seconds)
        (folder / "spec.json").write_text(json.dumps(asdict(spec)))
        command = [sys.executable, str(_CLIENT), str(folder / "spec.json")]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds + _GRACE_S, check=True
            )
        except subprocess.TimeoutExpired:
            raise FailedError("the client did not end in time") from None
        except subprocess.CalledProcessError as error:
            raise FailedError(f"the client failed: {error.stderr[-400:]}") from None
        found = json.loads(done.stdout)
        if found["error"]:
            raise FailedError(found["error"])
        try:
            for path in answers.iterdir():
                workload.check(int(path.name), path.read_bytes())
        except WrongAnswerError as error:
            raise FailedError(str(error)) from None
    return Measured(found["per_second"], found["p50_ms"], found["p99_ms"])


def serves(workloads: Sequence[Workload], port: int) -> bool:
    """Whether the server on `port` answers one request of each workload with 200."""
    for workload in workloads:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        try:
            connection.request(
                "POST",
                f"/v2/models/{workload.model}/infer",
                workload.bodies[0],
                dict(workload.headers),
            )
            if connection.getresponse().status != 200:
                return False
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
    return True


def bare_ms(model: Path, seconds: float) -> float:
    """The median time of a bare ONNX Runtime call on one thread, in a process of its own."""
    command = [sys.executable, str(_BARE), str(model), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)
