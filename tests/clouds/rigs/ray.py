"""A Ray cluster of one node on the loopback interface, with token authentication.

Only the ports between Serve's replicas are on all interfaces, which Ray does not let one choose;
they demand the token, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from clouds.rig import Rig

from shoal_controlplane.offload.ray import kind
from shoal_controlplane.offload.target import CloudTarget, Price, TargetSettings

CPUS = 4
START_S = 180.0


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs: its dashboard, where Serve shall listen, and its token."""

    address: str
    serve_url: str
    token: str
    process: subprocess.Popen[bytes]

    def pids(self, name: str) -> list[int]:
        """Processes of the cluster whose title has `name`."""
        return [p.pid for p in family(self.process.pid) if name in title(p)]


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    """How a process calls itself."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def cluster(folder: Path, cpus: int = CPUS) -> Iterator[Cluster]:
    """Start a cluster and end it, with all of its processes."""
    token = secrets.token_hex(32)
    held = folder / "ray-token"
    held.write_text(token)
    held.chmod(0o600)
    dashboard, agent, client, serve, gcs = (free_port() for _ in range(5))
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as home:
        # Not in `folder`: Ray's sockets lie below it, and their paths must be short.
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_"))},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(held),
            # On other systems than Linux this is how Ray keeps to the loopback interface.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_SERVE_SLOW_STARTUP_WARNING_S": "3",
            "HOME": home,
        }
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            f"--num-cpus={cpus}",
            "--object-store-memory=100000000",
            f"--temp-dir={home}/ray",
            "--disable-usage-stats",
        ]
        with (folder / "ray.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        running = Cluster(
            f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{serve}", token, process
        )
        try:
            wait(running, folder / "ray.log")
            start_serve(running, serve)
            yield running
        finally:
            stop(process)


def wait(running: Cluster, log: Path) -> None:
    """Until the cluster answers."""
    end = time.monotonic() + START_S
    headers = {"authorization": f"Bearer {running.token}"}
    while True:
        try:
            url = f"{running.address}/api/serve/applications/"
            if httpx.get(url, headers=headers, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        ended = running.process.poll() is not None
        assert not ended and time.monotonic() < end, f"Ray did not start: {log.read_text()[-2000:]}"
        time.sleep(0.05)


def start_serve(running: Cluster, port: int) -> None:
    """Start Serve as an operator does who wants it elsewhere than on all interfaces."""
    answer = httpx.put(
        f"{running.address}/api/serve/applications/",
        headers={"authorization": f"Bearer {running.token}"},
        json={"applications": [], "http_options": {"host": "127.0.0.1", "port": port}},
        timeout=START_S,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a cluster."""
    processes = family(process.pid)
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.resume()
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=3)
    for one in left:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(left, timeout=10)
    process.wait(10)


def settings_of(
    running: Cluster, credential: Path, name: str = "ray", **more: object
) -> TargetSettings:
    """Settings of a target for a cluster."""
    return TargetSettings(
        name=name,
        kind="ray",
        options=kind.check_options(
            {"address": running.address, "serve_url": running.serve_url, **more}
        ),
        credential=f"file:{credential}",
        price=Price(0.05, 0.000001),
        max_replicas=2,
    )


@contextlib.asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """The cluster and its targets."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        running = await asyncio.to_thread(stack.enter_context, cluster(folder))
        right, wrong = folder / "token", folder / "wrong-token"
        bad = secrets.token_hex(32)
        for path, content in ((right, running.token), (wrong, bad)):
            path.write_text(content)
            path.chmod(0o600)
        settings = settings_of(running, right)
        target = kind.open_target(settings)
        refused = kind.open_target(settings_of(running, wrong))

        @contextlib.asynccontextmanager
        async def stalled() -> AsyncIterator[None]:
            pids = running.pids("ServeReplica:shoal")
            assert pids
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                yield
            finally:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

        @contextlib.asynccontextmanager
        async def revoked() -> AsyncIterator[None]:
            right.write_text(bad)
            try:
                yield
            finally:
                right.write_text(running.token)

        try:
            yield Rig(
                settings=settings,
                target=target,
                refused=refused,
                secrets=(running.token, bad),
                stalled=stalled,
                revoked=revoked,
            )
        finally:
            await close(target, refused)
            await asyncio.to_thread(stack.close)


async def close(*targets: CloudTarget) -> None:
    """Close targets."""
    for target in targets:
        await target.close()
