"""The benchmark `agent`: memory, idle CPU and start of `shoal-agent run` as a real process."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from shoal_bench.brokers import mosquitto, start_mosquitto
from shoal_bench.figures import Result, Target, figure
from shoal_bench.processes import NotStartedError, Service
from shoal_controlplane.mqtt.broker import EmbeddedBroker

MAX_MEMORY_MB = 60.0
MAX_IDLE_PERCENT = 1.0
MAX_START_S = 1.5

_SETTLE_S = 3.0
_START_S = 30.0
_LOGS = Path(__file__).resolve().parents[4] / "build" / "bench" / "logs"
_RUNTIMES = ("onnxruntime", "tflite", "litert")


@dataclass(frozen=True, slots=True)
class Sample:
    """One start of the agent. `runtimes` are those whose libraries it had mapped when idle."""

    start_s: float
    memory_mb: float
    idle_percent: float
    runtimes: tuple[str, ...]


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """Start it several times; two minutes and a half, 20 seconds if `quick`."""
    runs, idle_s = (2, 5.0) if quick else (5, 20.0)
    result = Result("agent", quick=quick)
    samples = []
    with _broker() as (port, broker):
        for number in range(runs):
            say(f"agent: run {number + 1} of {runs}")
            samples.append(sample(port, idle_s))
    result.figures = [
        figure(
            "start to READY=1",
            "s",
            [s.start_s for s in samples],
            target=Target(MAX_START_S, of_ratio=False),
        ),
        figure(
            "resident memory, no model loaded",
            "MB",
            [s.memory_mb for s in samples],
            target=Target(MAX_MEMORY_MB, of_ratio=False),
        ),
        figure(
            "idle CPU of one core",
            "%",
            [s.idle_percent for s in samples],
            target=Target(MAX_IDLE_PERCENT, of_ratio=False),
        ),
    ]
    result.notes = [
        f"{runs} starts of `shoal-agent run` with an empty state folder against {broker}, each "
        "from the start of the process to the READY=1 that it sends its service manager, which it "
        "does once it has a session with the broker.",
        f"Memory and CPU (user and system) of the process and its children over {idle_s:g} s, "
        f"{_SETTLE_S:g} s after it was ready, with telemetry at its default interval.",
    ]
    loaded = sorted({name for s in samples for name in s.runtimes})
    if loaded:
        result.notes.append(f"Libraries mapped already, without a model: {', '.join(loaded)}.")
    return result


def sample(broker_port: int, idle_s: float) -> Sample:
    """Start the agent, let it idle, stop it. Raises `NotStartedError`."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name, _notify_socket(name) as sock:
        command = [
            *(str(Path(sys.executable).parent / "shoal-agent"), "run", "--device", "bench"),
            *("--broker", f"127.0.0.1:{broker_port}", "--state-dir", f"{name}/state"),
        ]
        started = time.perf_counter()
        service = Service(
            command, _LOGS / "agent.log", env={"NOTIFY_SOCKET": str(sock.getsockname())}
        )
        try:
            start_s = _wait_ready(sock, service) - started
            time.sleep(_SETTLE_S)
            family = psutil.Process(service.process.pid)
            before, since = _cpu_s(family), time.perf_counter()
            time.sleep(idle_s)
            used, took = _cpu_s(family) - before, time.perf_counter() - since
            processes = [family, *family.children(recursive=True)]
            memory = sum(process.memory_info().rss for process in processes)
            return Sample(start_s, memory / 1e6, 100 * used / took, _mapped_runtimes(family.pid))
        finally:
            service.stop()


@contextmanager
def _broker() -> Iterator[tuple[int, str]]:
    """A broker's port, and which it is."""
    program = mosquitto()
    if program is not None:
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
            service, port = start_mosquitto(program, Path(folder), _LOGS / "mosquitto.log")
            try:
                yield port, "Mosquitto"
            finally:
                service.stop()
        return
    broker = EmbeddedBroker(port=0)
    asyncio.run(broker.start())
    try:
        yield broker.port, "the embedded broker"
    finally:
        asyncio.run(broker.stop())


@contextmanager
def _notify_socket(folder: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{folder}/notify")
        sock.settimeout(_START_S)
        yield sock


def _wait_ready(sock: socket.socket, service: Service) -> float:
    """The reading of `perf_counter` when READY=1 came. Raises `NotStartedError`."""
    try:
        while "READY=1" not in sock.recv(4096).decode().splitlines():
            continue
    except TimeoutError:
        raise NotStartedError(
            f"the agent is not ready after {_START_S:g} s: {service.tail()}"
        ) from None
    return time.perf_counter()


def _cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        times = member.cpu_times()
        total += times.user + times.system
    return total


def _mapped_runtimes(pid: int) -> tuple[str, ...]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return tuple(name for name in _RUNTIMES if name in maps)
