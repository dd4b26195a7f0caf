"""`shoal target deploy | undeploy | scale | infer`: models on targets, by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_controlplane.cli import units
from shoal_controlplane.cli.asking import (
    DEFAULT_TIMEOUT_MS,
    ask,
    input_files,
    load_tensors,
    outputs,
)
from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    checked_name,
    model_reference,
)
from shoal_controlplane.cli.output import NONE, Block, State, Table, emit
from shoal_controlplane.cli.progress import waiting
from shoal_controlplane.cli.targetviews import Target, TargetModel
from shoal_controlplane.cli.views import ModelVersion, read

TARGETS = "/api/v1/targets"
MODELS = "/api/v1/models"
POLL_S = 0.25
TRUST_S = 2.0
"""What a target says sooner after a change may be of before it."""
_TROUBLE = frozenset({"failed", "over_budget", "ejected"})

Name = Annotated[str, typer.Argument(metavar="NAME", callback=checked_name)]
Model = Annotated[
    str, typer.Argument(metavar="MODEL[:V]", help="By default the one there, else the newest.")
]
Wait = Annotated[bool, typer.Option(help="Wait until it is so or cannot be.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait.")]


def register(app: typer.Typer) -> None:
    """Add the commands to those of targets."""
    app.command("deploy")(deploy)
    app.command("undeploy")(undeploy)
    app.command("scale")(scale)
    app.command("infer")(infer)


def deploy(
    name: Name,
    model: Model,
    wait: Wait = True,
    timeout: Timeout = 600.0,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Put a model on a target, without replicas, whatever deployments say."""
    with Client(server) as client:
        path = _path(client, name, model)
        document = client.send("PUT", path)
        if wait:
            document = _settle(client, path, name, lambda m: m.state != "deploying", timeout)
    placed = read(TargetModel, document)
    emit(output, document, lambda: [_sentence(name, placed)])


def undeploy(
    name: Name,
    model: Model,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Undo what was done by hand: the model goes, unless a deployment offloads it there."""
    with Client(server) as client:
        path = _path(client, name, model)
        client.send("DELETE", path)
    key = ":".join(path.split("/")[-2:])
    emit(output, {"removed": key}, lambda: [f"{key} was taken off {name}"])


def scale(
    name: Name,
    model: Model,
    replicas: Annotated[
        int | None, typer.Argument(metavar="[N]", min=0, max=1000, help="So many, fixed.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="As many as are needed again.")] = False,
    wait: Wait = True,
    timeout: Timeout = 600.0,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Fix how many replicas of a model a target has; it holds until --auto."""
    if (replicas is None) is not auto:
        raise typer.BadParameter("give either a number of replicas or --auto.")

    def done(there: TargetModel) -> bool:
        return there.wanted == replicas and there.ready == replicas and there.state != "deploying"

    with Client(server) as client:
        path = _path(client, name, model)
        document = client.send("PATCH", path, {"replicas": replicas})
        if wait and not auto:
            document = _settle(client, path, name, done, timeout)
    scaled = read(TargetModel, document)
    emit(output, document, lambda: [_sentence(name, scaled)])


def infer(
    name: Name,
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Option("--input", metavar="NAME=@FILE.npy", help="An input tensor, repeatable."),
    ],
    timeout_ms: Annotated[
        int, typer.Option("--timeout-ms", min=1, max=3_600_000, help="Answer within this time.")
    ] = DEFAULT_TIMEOUT_MS,
    save: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Save the outputs as .npy here.")
    ] = None,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Ask a model on a target, whatever the devices do."""
    files = input_files(inputs)
    with Client(server) as client:
        path = _path(client, name, model)
        wanted, version = path.split("/")[-2:]
        about = read(ModelVersion, client.get(f"{MODELS}/{wanted}/versions/{version}"))
        tensors = load_tensors(about, files)
        reply, took_s = ask(client, f"{path}/infer?timeout_ms={timeout_ms}", tensors, timeout_ms)
    latency = reply.parameters.get("latency_ms")
    document: dict[str, Any] = {
        "model": reply.model_name,
        "version": reply.model_version,
        "target": name,
        "milliseconds": round(took_s * 1000, 3),
        "target_milliseconds": latency,
    }
    lines = outputs(reply.outputs, save, document)
    lines.append(f"answered by target {name} in {units.milliseconds(took_s * 1000)}")
    if isinstance(latency, int | float):
        lines[-1] += f", {units.milliseconds(latency)} of them by the target"
    emit(output, document, lambda: lines)


def table(models: Iterable[TargetModel]) -> list[Block]:
    """What is on a target."""
    rows = [
        (
            model.key,
            State(model.state),
            f"{model.ready}/{model.wanted}{' (fixed)' if model.pinned is not None else ''}",
            _or_none(model.p95_ms, units.milliseconds),
            _or_none(model.items_per_s, lambda rate: f"{rate:.3g}/s"),
            _or_none(model.price_per_request, units.money),
            f"{model.requests}, {model.failures} failed" if model.failures else str(model.requests),
            ", ".join([*model.deployments, *(["by hand"] if model.placed else [])]) or NONE,
            model.reason or NONE,
        )
        for model in models
    ]
    if not rows:
        return ["no models on it"]
    header = ("MODEL", "STATE", "READY", "P95", "REPLICA DOES", "ONE COSTS", "REQUESTS", "FOR",
              "REASON")  # fmt: skip
    return [Table(header, rows)]


def _path(client: Client, target: str, reference: str) -> str:
    """The address of a model on a target: without a version the one that is there, else the
    newest."""
    model, version = model_reference(reference)
    there = read(Target, client.get(f"{TARGETS}/{target}"))
    if version is None:
        present = [m.version for m in there.models if m.model == model]
        if len(present) > 1:
            raise CliError(
                f"target {target} has several versions of {model}, {', '.join(present)}: name one, "
                f"as in {model}:{present[0]}"
            )
        version = present[0] if present else _newest(client, model)
    return f"{TARGETS}/{target}/models/{model}/{checked_name(version)}"


def _newest(client: Client, model: str) -> str:
    document = client.get(f"{MODELS}/{model}")
    latest = document.get("latest") if isinstance(document, dict) else None
    if not isinstance(latest, str):
        raise CliError(f"the control plane names no version of {model}: give one, as in {model}:1")
    return latest


def _settle(
    client: Client,
    path: str,
    target: str,
    done: Callable[[TargetModel], bool],
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """The document of a model on a target once `done`. Raises `CliError` where it cannot be, or
    is not in time."""
    began = clock()
    with waiting() as tell:
        while True:
            document = client.get(path)
            there = read(TargetModel, document)
            took_s = clock() - began
            sentence = _sentence(target, there)
            if there.state in _TROUBLE and took_s >= TRUST_S:
                raise CliError(f"{sentence}: see `shoal target show {target}`")
            if there.state not in _TROUBLE and done(there):
                return document
            if took_s >= timeout_s:
                raise CliError(
                    f"{sentence} after {timeout_s:g} s: it goes on without this command, see "
                    f"`shoal target show {target}`"
                )
            tell(sentence)
            sleep(POLL_S)


def _sentence(target: str, model: TargetModel) -> str:
    """As in "resnet:1 on aks is warming, 0 of 2 replicas ready (fixed): waits for 2"."""
    text = f"{model.key} on {target} is {model.state.replace('_', ' ')}"
    text += f", {model.ready} of {model.wanted} replicas ready"
    if model.pinned is not None:
        text += " (fixed)"
    return f"{text}: {model.reason.rstrip('.')}" if model.reason else text


def _or_none(value: float | None, shown: Callable[[float], str]) -> str:
    return NONE if value is None else shown(value)
