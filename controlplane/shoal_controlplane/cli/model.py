"""`shoal model`: what the fleet can serve."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_controlplane.cli import units
from shoal_controlplane.cli.client import CHECK_S, Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.modelpath import Found, find_models
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    checked_name,
    model_reference,
)
from shoal_controlplane.cli.output import NONE, Block, Table, emit, facts
from shoal_controlplane.cli.progress import note, transfer
from shoal_controlplane.cli.root import noun
from shoal_controlplane.cli.views import Model, ModelVersion, read, read_all
from shoal_shared.signature import TensorSpec

MODELS = "/api/v1/models"
CHUNK = 1 << 20
MAX_LABELS_SHOWN = 5

app = noun("model", "Push, list, show and delete models.")


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app)


@app.command("push")
def push_model(
    path: Annotated[Path, typer.Argument(help="An .onnx or .tflite file, or a model's folder.")],
    name: Annotated[str, typer.Option("--name", callback=checked_name, help="Its name here.")],
    version: Annotated[
        str | None, typer.Option("--version", help="By default the next number.")
    ] = None,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Push a model: a file, a folder with its card (shoal.toml), or a folder as Triton's model
    repository holds it (config.pbtxt, numbered versions), all of them or --version."""
    if version is not None:
        checked_name(version)
    with Client(server) as client:
        documents = [_push(client, name, found) for found in find_models(path, version)]
    versions = read_all(ModelVersion, documents)
    emit(output, documents, lambda: [_pushed(version) for version in versions])


@app.command("list")
def list_models(output: FormatOption = Format.TABLE, server: ServerOption = DEFAULT_SERVER) -> None:
    """List models and their versions."""
    with Client(server) as client:
        documents = client.items(MODELS)
    emit(output, documents, lambda: _overview(read_all(Model, documents)))


@app.command("show")
def show_model(
    model: Annotated[str, typer.Argument(metavar="NAME[:V]", help="By default the newest.")],
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Show a model: format, inputs, outputs, card."""
    name, wanted = model_reference(model)
    with Client(server) as client:
        others: tuple[str, ...] = ()
        if wanted is None:
            summary = client.get(f"{MODELS}/{name}")
            wanted = _latest(summary)
            others = tuple(str(v.get("version")) for v in summary.get("versions", ()))
        document = client.get(f"{MODELS}/{name}/versions/{wanted}")
    emit(output, document, lambda: _details(read(ModelVersion, document), others))


@app.command("delete")
def delete_model(
    model: Annotated[str, typer.Argument(metavar="NAME:V")],
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Delete a version that no deployment uses."""
    name, version = model_reference(model)
    if version is None:
        raise typer.BadParameter(f"name the version to delete, as in {name}:1.")
    with Client(server) as client:
        client.send("DELETE", f"{MODELS}/{name}/versions/{version}")
    emit(output, {"deleted": f"{name}:{version}"}, lambda: [f"{name}:{version} was deleted"])


def _push(client: Client, name: str, found: Found) -> Any:
    """Upload a model's file, unless it is there already, and make it a version."""
    digest, length = _digest(found.file)
    artifact = f"/artifacts/sha256/{digest}"
    if client.has(artifact):
        note(f"{found.file.name} is on the server already ({units.size(length)})")
    else:
        with transfer(f"uploading {found.file.name}", length) as advance:
            client.upload(artifact, _chunks(found.file, advance), length)
    body = {
        "name": name,
        "version": found.version,
        "digest": f"sha256:{digest}",
        "filename": found.file.name,
        "card": found.card,
        "config": found.config,
        "labels": found.labels or None,
    }
    given = {key: value for key, value in body.items() if value is not None}
    return client.send("POST", MODELS, given, CHECK_S)


def _digest(file: Path) -> tuple[str, int]:
    sha, length = hashlib.sha256(), 0
    for chunk in _chunks(file, lambda _: None):
        sha.update(chunk)
        length += len(chunk)
    return sha.hexdigest(), length


def _chunks(file: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
                advance(len(chunk))
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}") from None


def _latest(summary: Any) -> str:
    latest = summary.get("latest") if isinstance(summary, dict) else None
    if not isinstance(latest, str):
        raise CliError("the control plane's answer names no version: give one, as in NAME:1")
    return checked_name(latest)


def _pushed(version: ModelVersion) -> str:
    card = ", with its card" if version.card else ""
    return (
        f"{version.name}:{version.version} is stored "
        f"({version.format}, {units.size(version.size_bytes)}{card})"
    )


def _overview(models: list[Model]) -> list[Block]:
    if not models:
        return ["no models: push one with `shoal model push`"]
    rows = [(model.name, model.latest, ", ".join(model.versions)) for model in models]
    return [Table(("MODEL", "LATEST", "VERSIONS"), rows)]


def _details(version: ModelVersion, others: tuple[str, ...]) -> list[Block]:
    about = version.card.get("model", {}) if version.card else {}
    batch = f"up to {version.max_batch}" if version.max_batch else "not batched"
    opset = f", opset {version.opset}" if version.opset else ""
    signature = version.signature
    return [
        facts(
            [
                ("model", f"{version.name}:{version.version}"),
                ("about", str(about.get("description", ""))),
                ("licence", str(about.get("licence", ""))),
                ("format", f"{version.format}{opset}"),
                ("size", units.size(version.size_bytes)),
                ("parameters", f"{version.parameters:,}" if version.parameters else ""),
                ("batch", batch),
                ("card", _card(version.card)),
                ("digest", version.digest),
                ("created", units.local(version.created_at)),
                ("versions", ", ".join(others)),
            ]
        ),
        Table(
            ("TENSOR", "NAME", "TYPE", "SHAPE"),
            [
                *(_tensor("input", spec) for spec in signature.inputs),
                *(_tensor("output", spec) for spec in signature.outputs),
            ],
        ),
    ]


def _tensor(what: str, spec: TensorSpec) -> tuple[str, ...]:
    shape = ", ".join("any" if size == -1 else str(size) for size in spec.shape)
    return (what, spec.name, spec.datatype, f"[{shape}]")


def _card(card: dict[str, Any] | None) -> str:
    """What goes in and comes out, as in "image in, labels out (1000 labels: …)"."""
    if card is None:
        return NONE
    taken, given = card.get("input", {}), card.get("output", {})
    labels = [str(label) for label in given.get("labels", [])]
    shown = ", ".join(labels[:MAX_LABELS_SHOWN]) + (", …" if len(labels) > MAX_LABELS_SHOWN else "")
    listed = f" ({len(labels)} labels: {shown})" if labels else ""
    return f"{taken.get('kind', NONE)} in, {given.get('kind', NONE)} out{listed}"
