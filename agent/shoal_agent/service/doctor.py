"""`shoal-agent doctor`: what stands between this device and inference, and what mends it."""

from __future__ import annotations

import functools
import http.client
import os
import platform
import shlex
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from shoal_agent.boards.base import Board
from shoal_agent.config import AgentConfig
from shoal_agent.runtimes.onnx import installed_distributions
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.trial import try_in_child
from shoal_agent.service.accelerators import (
    Trial,
    check_accelerators,
    check_coverage,
    check_drivers,
    check_inference,
    check_notes,
    provider_sets,
)
from shoal_agent.service.finding import Finding, pip
from shoal_agent.updates.store import disk_free
from shoal_shared.messages import RuntimeInfo

_TIMEOUT_S = 3.0
_MIN_FREE_BYTES = 200 * 1024 * 1024
_LOW_FREE_BYTES = 2 * 1024 * 1024 * 1024
_MIN_PYTHON = (3, 10)


# TensorRT takes a minute on the smallest boards; a driver that hangs takes forever.
_trial = functools.partial(try_in_child, timeout_s=180.0)


async def examine(
    config: AgentConfig, board: Board, registry: RuntimeRegistry, trial: Trial = _trial
) -> tuple[Finding, ...]:
    """Check everything; takes a few seconds, and some more where the network is away."""
    facts, sets = board.facts, provider_sets(registry)
    python, distributions = sys.version_info[:2], tuple(installed_distributions())
    return (
        check_board(board),
        check_accelerators(facts),
        check_drivers(facts),
        *check_notes(facts),
        check_python(python),
        check_runtimes(registry.infos()),
        *(Finding(check="runtimes", ok=True, detail=note) for note in registry.peculiarities()),
        check_distributions(distributions),
        *check_coverage(facts, [s for _, s in sets], python, distributions),
        *await check_inference(facts, sets, trial),
        check_state_dir(config.state_dir),
        check_disk(config.state_dir),
        check_broker(*config.broker_address),
        check_server(config.server),
    )


def check_board(board: Board) -> Finding:
    facts = board.facts
    about = facts.description
    detail = (
        f"{about.model}{f' ({about.soc})' if about.soc else ''}, family {about.family}, "
        f"{facts.cores} cores, {facts.memory_bytes / 2**30:.1f} GiB of memory"
    )
    return Finding(check="board", ok=True, detail=detail)


def check_python(version: tuple[int, ...]) -> Finding:
    if version < _MIN_PYTHON:
        return Finding(
            check="python",
            ok=False,
            detail=f"Python {'.'.join(map(str, version))} is too old: 3.10 is needed",
            remedy="sudo apt install python3.10 python3.10-venv",
            blocks=True,
        )
    return Finding(check="python", ok=True, detail=f"Python {platform.python_version()}")


def check_runtimes(runtimes: Sequence[RuntimeInfo]) -> Finding:
    if not runtimes:
        return Finding(
            check="runtimes",
            ok=False,
            detail="no inference runtime is installed",
            remedy=pip("install 'shoal[cpu]'"),
            blocks=True,
        )
    detail = "; ".join(
        f"{r.name} {r.version} for {', '.join(r.formats)}"
        + (f" with {', '.join(r.providers)}" if r.providers else "")
        for r in runtimes
    )
    return Finding(check="runtimes", ok=True, detail=detail)


def check_distributions(found: Sequence[str]) -> Finding:
    """Several distributions of ONNX Runtime overwrite one another."""
    name = "one ONNX Runtime"
    if len(found) < 2:
        return Finding(check=name, ok=True, detail=found[0] if found else "none is installed")
    special = [d for d in found if d != "onnxruntime"]
    return Finding(
        check=name,
        ok=False,
        detail=f"{' and '.join(found)} overwrite one another: keep the one for this board",
        remedy=f"{pip('uninstall -y ' + ' '.join(found))} && {pip('install ' + special[0])}",
        blocks=True,
    )


def check_state_dir(folder: Path) -> Finding:
    try:
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if existing == folder:
            with tempfile.TemporaryFile(dir=folder):
                pass
        elif not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(0, f"it does not exist, and {existing} cannot be written")
    except OSError as error:
        return Finding(
            check="state folder",
            ok=False,
            detail=f"{folder} cannot be written: {error.strerror}",
            remedy=f"sudo install -d -o $(id -un) {shlex.quote(str(folder))}",
            blocks=True,
        )
    return Finding(check="state folder", ok=True, detail=f"{folder} can be written")


def check_disk(folder: Path) -> Finding:
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = disk_free(existing)
    detail = f"{free / 2**20:.0f} MiB free on the disk of {folder}"
    if free >= _LOW_FREE_BYTES:
        return Finding(check="disk", ok=True, detail=detail)
    return Finding(
        check="disk",
        ok=False,
        detail=f"{detail}: that is little for models",
        remedy="sudo apt clean && sudo journalctl --vacuum-size=50M",
        blocks=free < _MIN_FREE_BYTES,
    )


def check_broker(host: str, port: int) -> Finding:
    try:
        with socket.create_connection((host, port), _TIMEOUT_S):
            pass
    except (OSError, UnicodeError) as error:
        return Finding(
            check="broker",
            ok=False,
            detail=f"{host}:{port} cannot be reached: {error}",
            remedy="shoal-agent run --broker HOST:PORT, or start the broker: "
            "sudo systemctl start mosquitto",
            blocks=True,
        )
    return Finding(check="broker", ok=True, detail=f"{host}:{port} accepts connections")


def check_server(url: str) -> Finding:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/livez")
        status = connection.getresponse().status
        problem = "" if status == 200 else f"it answers with status {status}"
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        problem = str(error) or type(error).__name__
    finally:
        connection.close()
    if problem:
        # What is on the device already runs without it.
        return Finding(
            check="server",
            ok=False,
            detail=f"{url} cannot be used: {problem}; new models cannot be fetched",
            remedy="shoal-agent run --server URL, or start the control plane: shoal serve",
        )
    return Finding(check="server", ok=True, detail=f"{url} answers")


def format_findings(findings: Sequence[Finding]) -> str:
    """The findings as lines for people."""
    lines: list[str] = []
    for finding in findings:
        mark = "ok" if finding.ok else "PROBLEM" if finding.blocks else "warning"
        lines.append(f"{mark:<8} {finding.check}: {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':<8} mend it with: {finding.remedy}")
    return "\n".join(lines)
