"""`shoal target`: places in clouds that take what the devices cannot."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_controlplane.cli import targetmodels, units
from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    key_values,
)
from shoal_controlplane.cli.output import NONE, Block, State, Table, emit, facts
from shoal_controlplane.cli.root import noun
from shoal_controlplane.cli.targetmodels import TARGETS, Name
from shoal_controlplane.cli.targetviews import Target, TargetCheck
from shoal_controlplane.cli.views import read, read_all

TEST_S = 30.0
"""The control plane gives a target 10 s; an SDK may have to be imported before."""

app = noun("target", "Places in clouds that take what devices cannot.")


def register(root: typer.Typer) -> None:
    """Add the commands."""
    targetmodels.register(app)
    root.add_typer(app)


@app.command("add")
def add_target(
    name: Name,
    kind: Annotated[
        str, typer.Option("--kind", metavar="kserve|azureml|tpu|ray", help="What it is.")
    ],
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            "--kubeconfig",
            metavar="FILE",
            help="The cluster, a file on the control plane's machine with mode 0600.",
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Option of the kind, a text or JSON, repeatable; KEY.SUB=VALUE within one.",
        ),
    ] = None,
    credential: Annotated[
        str,
        typer.Option(
            "--credential",
            metavar="env:NAME|file:/PATH|identity",
            help="Where the control plane finds the secret; never the secret itself.",
        ),
    ] = "",
    per_hour: Annotated[
        float, typer.Option("--price-per-hour", min=0, help="Of one replica that runs.")
    ] = 0.0,
    per_1k: Annotated[
        float, typer.Option("--price-per-1k", min=0, help="Of a thousand requests.")
    ] = 0.0,
    cap: Annotated[
        float | None,
        typer.Option("--max-per-hour", min=0, help="Spend no more; without it, no limit."),
    ] = None,
    max_replicas: Annotated[
        int, typer.Option("--max-replicas", min=1, max=1000, help="Of each model.")
    ] = 1,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Add a target. Nothing is reached yet: see `shoal target test`."""
    settings = nested(options or [])
    if kubeconfig is not None:
        if "kubeconfig" in settings:
            raise typer.BadParameter("give the kubeconfig once.")
        # The control plane has a working directory of its own.
        settings["kubeconfig"] = str(kubeconfig.expanduser().absolute())
    body = {
        "name": name,
        "kind": kind,
        "options": settings,
        "credential": _checked_credential(credential),
        "price_per_replica_hour": per_hour,
        "price_per_request": per_1k / 1000,
        "cap_per_hour": cap,
        "max_replicas": max_replicas,
    }
    with Client(server) as client:
        document = client.send("POST", TARGETS, body)
    emit(
        output,
        document,
        lambda: [f"{name} was added: see whether it works with `shoal target test {name}`"],
    )


@app.command("list")
def list_targets(
    output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """List targets."""
    with Client(server) as client:
        documents = client.items(TARGETS)
    emit(output, documents, lambda: _overview(read_all(Target, documents)))


@app.command("show")
def show_target(
    name: Name, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Show a target, what it costs, and the models on it."""
    with Client(server) as client:
        document = client.get(f"{TARGETS}/{name}")
    emit(output, document, lambda: _details(read(Target, document)))


@app.command("test")
def check_target(
    name: Name, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Reach a target with its credentials, and say what it is or what is wrong."""
    with Client(server) as client:
        document = client.send("POST", f"{TARGETS}/{name}/test", answer_s=TEST_S)
    check = read(TargetCheck, document)
    if check.ok or output is not Format.TABLE:
        emit(
            output,
            document,
            lambda: [f"{name} works: {check.message}", *targetmodels.table(check.models)],
        )
    if not check.ok:
        raise CliError(f"target {name} does not work: {check.message}")


@app.command("remove")
def remove_target(
    name: Name, output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Remove a target: what Shoal put there is taken away."""
    with Client(server) as client:
        client.send("DELETE", f"{TARGETS}/{name}")
    emit(output, {"removed": name}, lambda: [f"{name} was removed"])


def nested(texts: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as options: `a.b=c` sets `b` within `a`; what begins like a JSON object or
    list is one. All else is a text, of which the kind makes what it needs."""
    found: dict[str, Any] = {}
    for text, value in key_values(texts).items():
        key, dot, inner = text.partition(".")
        if not dot:
            found[key] = _value(value)
            continue
        group = found.setdefault(key, {})
        if not inner or not isinstance(group, dict):
            raise typer.BadParameter(f"{text[:80]!r} cannot be set: {key} is no group of options.")
        group[inner] = _value(value)
    return found


def _value(text: str) -> Any:
    if not text.startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise typer.BadParameter(f"{text[:80]!r} is no JSON.") from None


def _checked_credential(reference: str) -> str:
    """A reference to a secret. What is none may be a secret: it is not repeated, and not sent."""
    from shoal_controlplane.errors import InvalidError
    from shoal_controlplane.offload.credentials import check_reference

    try:
        return check_reference(reference)
    except InvalidError as error:
        raise typer.BadParameter(f"{error}.") from None


def _overview(targets: list[Target]) -> list[Block]:
    if not targets:
        return ["no targets: add one with `shoal target add NAME --kind KIND`"]
    header = ("TARGET", "KIND", "STATE", "READY", "LATENCY", "LAST HOUR", "CAP", "REASON")
    rows = [
        (
            target.name,
            target.kind,
            State(target.state),
            str(target.ready),
            _latencies(target),
            units.money(target.spent_last_hour),
            NONE if target.cap_per_hour is None else units.money(target.cap_per_hour),
            target.reason or NONE,
        )
        for target in targets
    ]
    return [Table(header, rows)]


def _latencies(target: Target) -> str:
    """The least and the most of its models' 95th percentiles."""
    known = sorted(m.p95_ms for m in target.models if m.p95_ms is not None)
    if not known:
        return NONE
    least, most = units.milliseconds(known[0]), units.milliseconds(known[-1])
    return least if least == most else f"{least} to {most}"


def _details(target: Target) -> list[Block]:
    return [
        facts(
            [
                ("target", target.name),
                ("kind", target.kind),
                ("state", State(target.state)),
                ("reason", target.reason),
                ("where", target.where),
                ("facts", _pairs(target.facts)),
                ("options", _pairs(target.options)),
                ("credential", target.credential),
                ("price", _price(target)),
                ("budget", _budget(target)),
                ("replicas", f"{target.ready} ready, up to {target.max_replicas} of a model"),
                ("deployments", ", ".join(target.deployments)),
                ("added", units.local(target.created_at)),
            ]
        ),
        *targetmodels.table(target.models),
    ]


def _price(target: Target) -> str:
    hour, thousand = target.price_per_replica_hour, target.price_per_request * 1000
    parts = [
        f"{units.money(hour)} per replica and hour" if hour else "",
        f"{units.money(thousand)} per 1,000 requests" if thousand else "",
    ]
    return ", ".join(part for part in parts if part) or "free"


def _budget(target: Target) -> str:
    text = f"{units.money(target.spent_last_hour)} spent in the last hour"
    if target.cap_per_hour is None:
        return f"{text}, no cap"
    text += f" of {units.money(target.cap_per_hour)}"
    return text if target.left is None else f"{text}, {units.money(target.left)} left now"


def _pairs(values: dict[str, Any]) -> str:
    """Values that say something, as `key=value`."""
    return ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in sorted(values.items())
        if value not in ("", None, [], {})
    )
