"""`shoal device`: what the fleet consists of."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from shoal_controlplane.cli import details, units
from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    checked_name,
    key_values,
)
from shoal_controlplane.cli.output import NONE, Block, State, Table, as_text, emit, facts
from shoal_controlplane.cli.root import noun
from shoal_controlplane.cli.views import Device, Event, Replica, Telemetry, read, read_all
from shoal_shared.messages import Accelerator

DEVICES = "/api/v1/devices"
EVENTS = "/api/v1/events"

app = noun("device", "List, show, label and cordon devices.")
DeviceId = Annotated[str, typer.Argument(metavar="ID", callback=checked_name)]


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app)


@app.command("list")
def list_devices(
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="Only with this label.")
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="online|offline|cordoned", help="Only these.")
    ] = None,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """List devices."""
    labels = [f"{key}={value}" for key, value in key_values(label or []).items()]
    query: dict[str, str | int | list[str]] = {"label": labels} if labels else {}
    if state is not None:
        query["state"] = state
    with Client(server) as client:
        documents = client.items(DEVICES, query)
    emit(output, documents, lambda: _overview(read_all(Device, documents), client.now))


@app.command("show")
def show_device(
    device: DeviceId, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Show one device: board, load, models and their speed."""
    with Client(server) as client:
        document = client.get(f"{DEVICES}/{device}")
    emit(output, document, lambda: _details(read(Device, document), client.now))


@app.command("label")
def label_device(
    device: DeviceId,
    labels: Annotated[
        list[str], typer.Argument(metavar="K=V...", help="K=V sets a label, K- removes one.")
    ],
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Set or remove labels of a device."""
    change: dict[str, str | None] = {}
    for text in labels:
        if "=" not in text and text.endswith("-") and text != "-":
            change[text[:-1]] = None
        else:
            change.update(key_values([text]))
    with Client(server) as client:
        document = client.send("PATCH", f"{DEVICES}/{device}", {"labels": change})
    emit(output, document, lambda: [f"{device}: {_pairs(read(Device, document).labels) or NONE}"])


@app.command("cordon")
def cordon_device(
    device: DeviceId, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Keep new models and requests away from a device."""
    _cordon(device, True, output, server)


@app.command("uncordon")
def uncordon_device(
    device: DeviceId, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Let a device take models and requests again."""
    _cordon(device, False, output, server)


@app.command("remove")
def remove_device(
    device: DeviceId, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Forget a device that is offline."""
    with Client(server) as client:
        client.send("DELETE", f"{DEVICES}/{device}")
    emit(output, {"removed": device}, lambda: [f"{device} was removed"])


@app.command("logs")
def device_logs(
    device: DeviceId,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many events.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Show what happened to a device, newest last."""
    with Client(server) as client:
        documents = client.items(EVENTS, {"subject": device}, most=limit)[::-1]
        if not documents:
            client.get(f"{DEVICES}/{device}")  # To tell silence from a device that is not there.
        events = read_all(Event, documents)
        if not follow:
            emit(output, documents, lambda: [_event_line(event) for event in events])
            return
        for event, document in zip(events, documents, strict=True):
            _tell(event, document, output)
        after = events[-1].id if events else None
        for document in client.events(EVENTS, {"subject": device}, after):
            _tell(read(Event, document), document, output)
    raise CliError("the stream of events ended, as when the control plane stops: start it again")


def _cordon(device: str, cordoned: bool, output: Format, server: str) -> None:
    with Client(server) as client:
        document = client.send("PATCH", f"{DEVICES}/{device}", {"cordoned": cordoned})
    condition = read(Device, document).condition
    verb = "cordoned" if cordoned else "uncordoned"
    emit(output, document, lambda: [f"{device} is {verb} and {condition}"])


def _tell(event: Event, document: object, output: Format) -> None:
    """One event of a stream: a line for people, a line of JSON or a document of YAML."""
    if output is Format.TABLE:
        emit(output, document, lambda: [_event_line(event)])
        return
    text = as_text(output, document, indent=None)
    typer.echo(f"---\n{text}" if output is Format.YAML else text, nl=False)


def _event_line(event: Event) -> str:
    return f"{units.local(event.time)}  {event.kind:<16}  {event.message}"


def _overview(devices: list[Device], now: datetime) -> list[Block]:
    if not devices:
        return ["no devices"]
    header = ("DEVICE", "CONDITION", "BOARD", "MODELS", "LOAD", "TEMP", "QUEUE", "SEEN")
    return [Table(header, [_row(device, now) for device in devices])]


def _row(device: Device, now: datetime) -> tuple[str, ...]:
    telemetry = device.telemetry if device.present else None
    return (
        device.id,
        State(device.condition),
        _board(device),
        State(", ".join(_model(device, replica) for replica in device.replicas) or NONE),
        units.percent(telemetry.cpu_load) if telemetry else NONE,
        _temperature(device) or NONE,
        str(sum(depth for _, _, depth in telemetry.models.values())) if telemetry else NONE,
        units.age(device.last_seen, now),
    )


def _model(device: Device, replica: Replica) -> str:
    """A ready model by its name alone, unless it runs on the CPU of a device that has an
    accelerator; what a device that is away had is put in brackets."""
    if not device.present:
        return f"({replica.key})"
    if replica.state != "ready":
        return f"{replica.key} {replica.state}"
    return f"{replica.key} on the CPU" if replica.fallback else replica.key


def _board(device: Device) -> str:
    if device.board is None:
        return NONE
    return f"{device.board.model}{' (simulated)' if device.board.simulated else ''}"


def _temperature(device: Device) -> str:
    telemetry = device.telemetry
    if telemetry is None or not device.present:
        return ""
    degrees = f"{telemetry.temperature_c:.0f} °C" if telemetry.temperature_c is not None else ""
    return ", ".join(filter(None, (degrees, "throttled" if telemetry.throttled else "")))


def _details(device: Device, now: datetime) -> list[Block]:
    blocks: list[Block] = [facts(_facts(device, now))]
    if not device.replicas:
        return [*blocks, "no models"]
    if not device.present:
        blocks.append("The device is offline: this is what it reported last.")
    header = ("MODEL", "STATE", "VARIANT", "RUNS ON", "MEMORY", "ONE ITEM", "BATCH", "ANSWERED",
              "FAILED", "QUEUE", "REASON")  # fmt: skip
    rows = [_replica_row(device, replica) for replica in device.replicas]
    told = [(replica.key, replica) for replica in device.replicas]
    return [*blocks, Table(header, rows), *details.blocks(told)]


def _facts(device: Device, now: datetime) -> list[tuple[str, str]]:
    board, telemetry = device.board, device.telemetry if device.present else None
    about = ""
    if board is not None:
        inner = ", ".join(filter(None, (board.family, board.soc)))
        about = f"{board.model} ({inner}){', simulated' if board.simulated else ''}"
    memory = units.size(device.memory_bytes) if device.memory_bytes else ""
    if telemetry is not None and memory:
        memory = f"{units.size(telemetry.memory_used_bytes)} of {memory} in use"
    goal = ""
    if device.goal is not None:
        seen = NONE if device.goal_seen is None else str(device.goal_seen)
        goal = f"{device.goal}, the device acts on {seen}"
    return [
        ("device", device.id),
        ("condition", State(f"{device.condition}, seen {units.age(device.last_seen, now)}")),
        ("board", about),
        *(("accelerator", _accelerator(a)) for a in device.accelerators),
        ("runtimes", "; ".join(_runtime(r.name, r.version, r.providers) for r in device.runtimes)),
        ("toolkits", ", ".join(f"{k} {v}" for k, v in sorted(device.toolkits.items()))),
        ("power mode", device.power_mode),
        ("cores", str(device.cores or "")),
        ("load", units.percent(telemetry.cpu_load) if telemetry else ""),
        ("memory", memory),
        *_accelerator_load(telemetry),
        ("disk", f"{units.size(device.disk_free_bytes)} free" if device.disk_free_bytes else ""),
        ("temperature", _temperature(device)),
        ("power", f"{telemetry.power_w:.1f} W" if telemetry and telemetry.power_w else ""),
        ("labels", _pairs(device.labels)),
        ("agent", device.agent_version or ""),
        ("goal", goal),
        ("first seen", units.local(device.first_seen)),
        *(("note", note) for note in device.notes),
    ]


def _accelerator(accelerator: Accelerator) -> str:
    """As in "Orin (gpu): 16 GiB, fp16, int8, compute capability 8.7, 12.3 GiB/s from the host"."""
    memory, speed = accelerator.memory_bytes, accelerator.transfer_bytes_per_s
    capability = accelerator.compute_capability
    known = (
        units.size(memory) if memory else "",
        *accelerator.precisions,
        f"compute capability {capability}" if capability else "",
        f"{units.size(speed)}/s from the host" if speed else "",
    )
    more = ", ".join(filter(None, known))
    return f"{accelerator.name} ({accelerator.kind}){f': {more}' if more else ''}"


def _accelerator_load(telemetry: Telemetry | None) -> list[tuple[str, str]]:
    if telemetry is None:
        return []
    load, used = telemetry.accelerator_load, telemetry.accelerator_memory_used_bytes
    figures = (
        units.percent(load) if load is not None else "",
        f"{units.size(used)} of its memory in use" if used is not None else "",
    )
    return [("accelerator load", ", ".join(filter(None, figures)))]


def _runtime(name: str, version: str, providers: tuple[str, ...]) -> str:
    listed = f" ({units.providers(providers)})" if providers else ""
    return f"{name} {version}{listed}"


def _replica_row(device: Device, replica: Replica) -> tuple[str, ...]:
    counts = None
    if device.telemetry is not None and device.present:
        counts = device.telemetry.models.get(replica.key)
    answered, failed, depth = (str(count) for count in counts) if counts else (NONE, NONE, NONE)
    profile = replica.profile
    return (
        replica.key,
        State(replica.state),
        replica.variant or NONE,
        units.runs_on(replica.placement, replica.providers) or NONE,
        units.size(replica.memory_bytes) if replica.memory_bytes else NONE,
        units.milliseconds(profile.milliseconds(1)) if profile else NONE,
        f"up to {profile.knee}" if profile else NONE,
        answered,
        failed,
        depth,
        replica.reason or NONE,
    )


def _pairs(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
