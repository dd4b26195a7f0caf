"""What the running agent leaves for `shoal-agent status`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from shoal_agent.service.lock import is_locked
from shoal_agent.updates.files import write_atomically
from shoal_shared.messages import ReplicaReport

FILE_NAME = "status.json"


class StatusError(Exception):
    """There is no status to show; the text is one plain sentence."""


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The agent as it was at its last change. `started_at` and `changed_at` are Unix times."""

    pid: int
    agent_version: str
    device: str
    fleet: str
    boot_id: str
    board: str
    broker: str
    connected: bool
    started_at: float
    changed_at: float
    goal: int
    models: tuple[ReplicaReport, ...] = ()
    stages: tuple[str, ...] = ()


def write_status(folder: Path, status: AgentStatus) -> None:
    """Replace the status file. Raises `OSError`."""
    # Not synced: it is of no use after a power cut, and flash wears.
    write_atomically(folder / FILE_NAME, msgspec.json.encode(status), durable=False)


def read_status(folder: Path) -> AgentStatus:
    """The status of the agent that runs on the folder. Raises `StatusError`."""
    if not is_locked(folder):
        raise StatusError(
            f"no agent runs on the state folder {folder}: start it with 'shoal-agent run', or "
            "name its folder with --state-dir"
        )
    try:
        return msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=AgentStatus)
    except FileNotFoundError:
        raise StatusError("the agent has only just started: try again in a second") from None
    except OSError as error:
        raise StatusError(f"{folder / FILE_NAME} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StatusError(f"{folder / FILE_NAME} is damaged: {error}") from None


def format_status(status: AgentStatus, now: float) -> str:
    """The status as a table for people."""
    link = "connected" if status.connected else "not connected"
    rows = [
        ("device", status.device),
        ("fleet", status.fleet),
        ("board", status.board),
        ("agent", f"{status.agent_version}, process {status.pid}"),
        ("running for", f"{max(0, now - status.started_at):.0f} s"),
        ("broker", f"{status.broker}, {link}"),
        ("goal", str(status.goal) if status.goal else "none yet"),
    ]
    if status.stages:
        rows.append(("stages", "; ".join(status.stages)))
    lines = [f"{name:<12} {value}" for name, value in rows]
    table: list[tuple[str, ...]] = [
        ("MODEL", "STATE", "DEPLOYMENT", "PROVIDERS", "MEMORY", "1 ITEM", "REASON")
    ]
    table += [_model_row(model) for model in status.models]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines.append("")
    for row in table if status.models else [("no models",)]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _model_row(model: ReplicaReport) -> tuple[str, ...]:
    profile = model.profile
    return (
        f"{model.model}:{model.version}",
        model.state.value,
        model.deployment,
        ",".join(model.providers) or "-",
        f"{model.memory_bytes / 2**20:.0f} MiB" if model.memory_bytes else "-",
        f"{profile.milliseconds(1):.1f} ms" if profile else "-",
        model.reason,
    )
