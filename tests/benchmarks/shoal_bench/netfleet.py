"""A fleet on a network of its own: every device in a network namespace, behind a link whose rate
is shaped both ways.

The machine's own namespace holds the bridge, the broker and the control plane; a namespace per
device holds one end of a veth pair, and `tc … tbf` shapes what each end sends. Needs root and
iproute2. Everything is named `shoal-b…`; leftovers of a run that was killed are removed first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shoal_bench.brokers import mosquitto
from shoal_bench.processes import NotStartedError, Service, free_port

BRIDGE = "shoal-bridge"
ADDRESS = "10.213.77.1"
MQTT_PORT = 18830
HTTP_PORT = 18080
TCP_SHARE = 0.95
"""Of a shaped link's rate, what is left for the payload: the rest are headers of TCP, IP and
Ethernet in packets of 1500 bytes."""

_PREFIX = "shoal-b-"
_MASK = 24
_HOSTS = 250
_BURST_BYTES = 4 * 1024
_QUEUE_MS = 100
_START_S = 60.0
_LOCK = Path(tempfile.gettempdir()) / "shoal-bench-network.lock"
_BIN = Path(sys.executable).parent


class NoNetworkError(Exception):
    """Network namespaces cannot be used here; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Board:
    """A device: `factor` times slower than one thread of this machine, with a link of `up` and
    `down` megabits a second."""

    name: str
    factor: float
    memory_mib: int
    up: float
    down: float

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib << 20

    @property
    def up_bytes_per_s(self) -> float:
        return self.up * 1e6 / 8 * TCP_SHARE

    @property
    def down_bytes_per_s(self) -> float:
        return self.down * 1e6 / 8 * TCP_SHARE


class Network:
    """The bridge and one namespace per board, there from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Network:
        """Raises `NoNetworkError`."""
        if os.geteuid() != 0:
            raise NoNetworkError("network namespaces need root: run the benchmark as root")
        for program in ("ip", "tc"):
            if shutil.which(program) is None:
                raise NoNetworkError(f"the program {program} is not here: install iproute2")
        lock = self._stack.enter_context(_LOCK.open("w"))
        try:
            _lock(lock)
            _remove_leftovers()
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
            self._stack.callback(_remove_leftovers)
            _run("ip", "addr", "add", f"{ADDRESS}/{_MASK}", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def attach(self, board: Board) -> str:
        """Give a board its namespace and its link; returns the namespace's name."""
        self._count += 1
        namespace = f"{_PREFIX}{board.name}"
        # Never the names of before: the kernel removes a namespace's links behind our back.
        tag = f"{os.getpid() % 100_000}x{self._count}"
        inside, outside = f"sbi{tag}", f"sbo{tag}"
        address = ADDRESS.rsplit(".", 1)[0] + f".{2 + self._count % _HOSTS}"
        _run("ip", "netns", "add", namespace)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
        _run("ip", "link", "set", inside, "netns", namespace)
        _run("ip", "link", "set", outside, "master", BRIDGE, "up")
        _run("ip", "-n", namespace, "addr", "add", f"{address}/{_MASK}", "dev", inside)
        _run("ip", "-n", namespace, "link", "set", inside, "up")
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        _shape(outside, board.down)
        _shape(inside, board.up, namespace)
        return namespace

    def detach_all(self) -> None:
        """Remove every board's namespace, and what still runs in it."""
        _remove_namespaces()


def _shape(interface: str, mbit: float, namespace: str = "") -> None:
    where = ("-n", namespace) if namespace else ()
    rate = ("rate", f"{mbit:g}mbit", "burst", str(_BURST_BYTES), "latency", f"{_QUEUE_MS}ms")
    _run("tc", *where, "qdisc", "replace", "dev", interface, "root", "tbf", *rate)


def _lock(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise NoNetworkError(
            "another benchmark uses the network namespaces: wait until it ends"
        ) from None


def _remove_leftovers() -> None:
    _remove_namespaces()
    if Path("/sys/class/net", BRIDGE).exists():
        _run("ip", "link", "del", BRIDGE)


def _remove_namespaces() -> None:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for namespace in re.findall(rf"^({_PREFIX}\S+)", listed.stdout, re.MULTILINE):
        inside = subprocess.run(
            ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
        )
        for pid in map(int, inside.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _run("ip", "netns", "del", namespace)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise NoNetworkError(f"'{' '.join(command)}' failed: {said}")


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    """Mosquitto on the bridge; yields its address. Raises `NotStartedError`."""
    program = mosquitto()
    if program is None:
        raise NotStartedError("the program mosquitto is not here: install Mosquitto")
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {MQTT_PORT} {ADDRESS}\nallow_anonymous true\nset_tcp_nodelay true\n"
        "max_queued_messages 10000\n"
    )
    service = Service([program, "-c", str(config)], folder / "mosquitto.log")
    try:
        service.wait_until(lambda: _listens(ADDRESS, MQTT_PORT), _START_S)
        yield f"{ADDRESS}:{MQTT_PORT}"
    finally:
        service.stop()


def start_agent(network: Network, board: Board, folder: Path) -> Service:
    """The real agent on a throttled board, in a namespace of its own."""
    namespace = network.attach(board)
    server = f"http://{ADDRESS}:{HTTP_PORT}"
    return Service(
        [
            *("ip", "netns", "exec", namespace, sys.executable, "-m", "shoal_simulators.throttled"),
            *("--device", board.name, "--factor", f"{board.factor:g}"),
            *("--memory-mib", str(board.memory_mib), "--server", server),
            *("--broker", f"{ADDRESS}:{MQTT_PORT}", "--state-dir", str(folder / board.name)),
        ],
        folder / f"{board.name}.log",
        env={"OMP_NUM_THREADS": "1"},
    )


class Relay:
    """Lets devices reach the control plane, which listens on loopback only: bytes to and fro
    between `ADDRESS:HTTP_PORT` and a port of loopback, a pair of threads per connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((ADDRESS, HTTP_PORT))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # A blocked accept() is woken by shutdown(), not by close().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:
                return
            try:
                inner = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                outer.close()
                continue
            for source, sink in ((outer, inner), (inner, outer)):
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(64 * 1024):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass(slots=True)
class Plane:
    """A running control plane: `port` on loopback."""

    port: int
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def shoal(self, *arguments: str, timeout_s: float = 180.0) -> subprocess.CompletedProcess[str]:
        """Run one command of the operator."""
        return subprocess.run(
            [str(_BIN / "shoal"), *arguments],
            env={**os.environ, "SHOAL_SERVER": self.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )

    def must(self, *arguments: str, timeout_s: float = 180.0) -> str:
        """What a command printed. Raises `NotStartedError` if it failed."""
        done = self.shoal(*arguments, timeout_s=timeout_s)
        if done.returncode:
            said = (done.stderr or done.stdout)[-500:].strip()
            raise NotStartedError(f"'shoal {' '.join(arguments)}' failed: {said}")
        return done.stdout


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[Plane]:
    """`shoal serve` on loopback with a relay on the bridge. Raises `NotStartedError`."""
    port = free_port()
    service = Service(
        [
            *(str(_BIN / "shoal"), "serve", "--log-level", "warning"),
            *("--broker", f"{ADDRESS}:{MQTT_PORT}", "--data-dir", str(folder / "server")),
            *("--port", str(port), "--grpc-port", str(free_port())),
        ],
        folder / "serve.log",
    )
    try:
        service.wait_until(lambda: _listens("127.0.0.1", port), _START_S)
        relay = Relay(port)
        try:
            yield Plane(port, service)
        finally:
            relay.close()
    finally:
        service.stop()


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder for logs and state, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        yield Path(folder)


def stop_all(services: list[Service]) -> None:
    """End agents at once: what they hold is thrown away."""
    for service in services:
        if service.process.poll() is None:
            service.process.kill()
    for service in services:
        service.process.wait()
        service.stop()


def _listens(host: str, port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex((host, port)) == 0


def wait_for(ready: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Ask `ready` until it is true. Raises `NotStartedError`."""
    until = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > until:
            raise NotStartedError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.05)
