"""`shoal deployment`: which models run on which devices."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from shoal_controlplane.cli import details, shards, units
from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    checked_name,
    key_values,
    model_reference,
)
from shoal_controlplane.cli.output import NONE, Block, State, Table, emit, facts
from shoal_controlplane.cli.progress import waiting
from shoal_controlplane.cli.root import noun
from shoal_controlplane.cli.views import ActivePlan, Deployment, Measured, read, read_all

DEPLOYMENTS = "/api/v1/deployments"
MODELS = "/api/v1/models"
PLANS = "/api/v1/plans"
POLL_S = 0.25
SETTLED = frozenset({"ready", "failed"})
"""States in which a replica stays unless something else changes."""

app = noun("deployment", "Place models on devices.")
Name = Annotated[str, typer.Argument(metavar="NAME", callback=checked_name)]


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app)


@app.command("create")
def create_deployment(
    model: Annotated[str, typer.Argument(metavar="MODEL[:V]", help="By default the newest.")],
    name: Annotated[
        str | None, typer.Option("--name", help="By default that of the model.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, help="On so many devices, by default 1.")
    ] = None,
    everywhere: Annotated[bool, typer.Option("--all", help="On every device that fits.")] = False,
    stages: Annotated[
        str | None,
        typer.Option(
            "--shards",
            metavar="auto|N",
            help="Cut the model into so many stages over several devices, or the best number.",
        ),
    ] = None,
    objective: shards.ObjectiveOption = None,
    shape: shards.ShapeOption = None,
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="K=V", help="Only devices with this label, repeatable."),
    ] = None,
    slo_ms: Annotated[
        float | None, typer.Option("--slo-ms", help="Answer within so many milliseconds.")
    ] = None,
    offload: Annotated[
        list[str] | None,
        typer.Option(
            "--offload",
            metavar="TARGET",
            help="A target that takes what devices cannot answer in time, repeatable.",
        ),
    ] = None,
    require_accelerator: Annotated[
        bool,
        typer.Option("--require-accelerator", help="Fail rather than run on the CPU."),
    ] = False,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="Option of the runtime, JSON or a text, repeatable.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready or cannot be.")] = True,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait.")] = 300.0,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Deploy a model: devices that fit fetch, load and measure it, then serve it.

    With --shards it is cut into stages, each on a device of its own (see `shoal plan`).
    """
    if everywhere and replicas is not None:
        raise typer.BadParameter("give either --replicas or --all, not both.")
    if stages is not None and (everywhere or replicas is not None):
        raise typer.BadParameter("give --shards without --replicas and --all.")
    if stages is None and (objective is not None or shape):
        raise typer.BadParameter("--objective and --shape go with --shards.")
    model_name, version = model_reference(model)
    body = {
        "model": model_name,
        "version": version,
        "name": None if name is None else checked_name(name),
        "replicas": replicas,
        "all": everywhere or None,
        "select": key_values(select or []) or None,
        "slo_ms": slo_ms,
        "options": {k: _value(v) for k, v in key_values(options or []).items()} or None,
        "require_accelerator": require_accelerator or None,
        "shards": shards.stage_count(stages),
        "objective": objective.value if objective else None,
        "shapes": shards.shapes(shape or []) or None,
        "offload": [checked_name(target) for target in offload or []] or None,
    }
    given = {key: value for key, value in body.items() if value is not None}
    with Client(server) as client:
        document = client.send("POST", DEPLOYMENTS, given)
        if wait:
            path = f"{DEPLOYMENTS}/{checked_name(read(Deployment, document).name)}"
            with waiting() as tell:
                document = settle(lambda: client.get(path), tell, timeout)
        deployment = read(Deployment, document)
        plan = _plan(client, deployment) if output is Format.TABLE else None
    emit(output, document, lambda: [_sentence(deployment), *_pipeline(plan)])


@app.command("list")
def list_deployments(
    output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """List deployments."""
    with Client(server) as client:
        documents = client.items(DEPLOYMENTS)
    emit(output, documents, lambda: _overview(read_all(Deployment, documents)))


@app.command("show")
def show_deployment(
    name: Name, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Show a deployment and its replicas."""
    with Client(server) as client:
        document = client.get(f"{DEPLOYMENTS}/{name}")
        measured: list[Measured] = []
        plan: ActivePlan | None = None
        if output is Format.TABLE:
            deployment = read(Deployment, document)
            measured, plan = _profiles(client, deployment), _plan(client, deployment)
    emit(
        output,
        document,
        lambda: [*_details(read(Deployment, document), plan), *_measured(measured)],
    )


@app.command("delete")
def delete_deployment(
    name: Name, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Delete a deployment: its devices unload the model."""
    with Client(server) as client:
        client.send("DELETE", f"{DEPLOYMENTS}/{name}")
    emit(output, {"deleted": name}, lambda: [f"{name} was deleted"])


def settle(
    get: Callable[[], Any],
    tell: Callable[[str], None],
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """The document of a deployment once it is ready.

    Raises `CliError` when it cannot become ready as things are, or has not within `timeout_s`.
    """
    deadline = clock() + timeout_s
    while True:
        document = get()
        deployment = read(Deployment, document)
        sentence = _sentence(deployment)
        if deployment.state == "ready":
            return document
        if deployment.state == "failed" or _stuck(deployment):
            raise CliError(f"{sentence}: see `shoal deployment show {deployment.name}`")
        if clock() >= deadline:
            raise CliError(
                f"{sentence} after {timeout_s:g} s: it goes on without this command, see `shoal "
                f"deployment show {deployment.name}`"
            )
        tell(sentence)
        sleep(POLL_S)


def _pipeline(plan: ActivePlan | None) -> list[Block]:
    """As in "2 stages, jetson-1 -> ascend-1: 83.1/s predicted"."""
    if plan is None or plan.predicted is None:
        return []
    way = shards.chain(stage.devices for stage in plan.stages)
    stages = f"{len(plan.stages)} stage{'' if len(plan.stages) == 1 else 's'}"
    return [f"{stages}, {way}: {shards.rate(plan.predicted.throughput_per_s)} predicted"]


def _stuck(deployment: Deployment) -> bool:
    """Whether no replica is under way any more and at least one has failed; a plan whose stage
    failed is made anew."""
    if deployment.sharded:
        return False
    states = {placement.state for placement in deployment.placements}
    return "failed" in states and states <= SETTLED


def _sentence(deployment: Deployment) -> str:
    """As in "resnet is progressing, 1 of 2 replicas ready: jetson-1: loading"."""
    reason = f": {deployment.reason}" if deployment.reason else ""
    text = f"{deployment.name} is {deployment.state}"
    if deployment.wanted or not deployment.sharded:
        noun = "stages" if deployment.sharded else "replicas"
        text += f", {deployment.ready} of {deployment.wanted} {noun} ready"
    return f"{text}{reason.rstrip('.')}"


def _overview(deployments: list[Deployment]) -> list[Block]:
    if not deployments:
        return ["no deployments: make one with `shoal deployment create MODEL`"]
    header = ("DEPLOYMENT", "MODEL", "STATE", "READY", "SHARDS", "SELECT", "OFFLOAD", "REASON")
    rows = [
        (
            deployment.name,
            f"{deployment.model}:{deployment.version}",
            State(deployment.state),
            f"{deployment.ready}/{deployment.wanted}{' (all)' if deployment.all else ''}",
            str(deployment.shards) if deployment.sharded else NONE,
            _pairs(deployment.select) or NONE,
            ", ".join(deployment.offload) or NONE,
            deployment.reason or _pressure(deployment) or _on_cpu(deployment) or NONE,
        )
        for deployment in deployments
    ]
    return [Table(header, rows)]


def _details(deployment: Deployment, plan: ActivePlan | None) -> list[Block]:
    blocks: list[Block] = [
        facts(
            [
                ("deployment", deployment.name),
                ("model", f"{deployment.model}:{deployment.version}"),
                ("state", State(deployment.state)),
                ("reason", deployment.reason),
                ("replicas", _replicas(deployment)),
                ("shards", _shards(deployment)),
                ("plan", f"epoch {plan.epoch}, {plan.state}" if plan and plan.epoch else ""),
                ("select", _pairs(deployment.select)),
                ("accelerator", "required" if deployment.require_accelerator else ""),
                ("options", _options(deployment.options)),
                ("answer in", units.milliseconds(deployment.slo_ms) if deployment.slo_ms else ""),
                ("offload", ", ".join(deployment.offload)),
                ("load", State(_load(deployment))),
                ("created", units.local(deployment.created_at)),
            ]
        )
    ]
    told = [(placement.device, placement) for placement in deployment.placements]
    if plan is not None:
        return [*blocks, *shards.running(plan), *details.blocks(told)]
    if not deployment.placements:
        return [*blocks, "no plan yet" if deployment.sharded else "no replicas"]
    rows = [
        (
            placement.device,
            State(placement.state),
            placement.variant or NONE,
            units.runs_on(placement.placement, placement.providers) or NONE,
            units.milliseconds(placement.profile.milliseconds(1)) if placement.profile else NONE,
            f"up to {placement.profile.knee}" if placement.profile else NONE,
            placement.reason or NONE,
        )
        for placement in deployment.placements
    ]
    header = ("DEVICE", "STATE", "VARIANT", "RUNS ON", "ONE ITEM", "BATCH", "REASON")
    return [*blocks, Table(header, rows), *details.blocks(told)]


def _replicas(deployment: Deployment) -> str:
    if deployment.sharded:
        return ""
    wanted = "on every device that fits" if deployment.all else f"{deployment.wanted} wanted"
    return f"{deployment.ready} of {deployment.wanted} ready, {wanted}"


def _shards(deployment: Deployment) -> str:
    if not deployment.sharded:
        return ""
    count = "as many as is best" if deployment.shards == "auto" else str(deployment.shards)
    return f"{count}, for {deployment.objective}"


def _plan(client: Client, deployment: Deployment) -> ActivePlan | None:
    """The plan of a sharded deployment, None where it has none yet."""
    if not deployment.sharded:
        return None
    plans = read_all(ActivePlan, client.items(PLANS))
    return next((plan for plan in plans if plan.name == deployment.name), None)


def _profiles(client: Client, deployment: Deployment) -> list[Measured]:
    """What was measured of a deployment's model, nothing where the model is gone."""
    model, version = checked_name(deployment.model), checked_name(deployment.version)
    try:
        return read_all(Measured, client.items(f"{MODELS}/{model}/versions/{version}/profiles"))
    except CliError:
        if deployment.state == "failed":
            return []  # The deployment's own reason says what is wrong.
        raise


def _measured(rows: list[Measured]) -> list[Block]:
    """What is known of the model by board, on devices that serve it and on others."""
    if not rows:
        return []
    header = ("BOARD", "VARIANT", "RUNTIME", "ACCELERATED", "ONE ITEM", "EACH MORE", "BATCH",
              "MEMORY")  # fmt: skip
    table = [
        (
            row.board,
            row.variant,
            row.runtime or NONE,
            units.percent(row.accelerated) if row.accelerated is not None else NONE,
            units.milliseconds(row.profile.milliseconds(1)),
            units.milliseconds(row.profile.slope_ms),
            f"up to {row.profile.knee}",
            units.size(row.memory_bytes) if row.memory_bytes else NONE,
        )
        for row in rows
    ]
    return ["Measured so far, by board:", Table(header, table)]


def _load(deployment: Deployment) -> str:
    return deployment.saturation.sentence if deployment.saturation else ""


def _pressure(deployment: Deployment) -> str:
    """How full the devices are, where that is worth a word."""
    saturation = deployment.saturation
    return saturation.sentence if saturation and saturation.level != "calm" else ""


def _on_cpu(deployment: Deployment) -> str:
    count = sum(placement.fallback for placement in deployment.placements)
    if not count:
        return ""
    verb = "runs" if count == 1 else "run"
    return f"{count} of {len(deployment.placements)} {verb} on the CPU instead of an accelerator"


def _value(text: str) -> Any:
    """JSON, or the text itself where it is none."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in sorted(options.items()))


def _pairs(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
