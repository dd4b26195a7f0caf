"""`shoal model`: what the fleet can serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_controlplane.cli import modelvariant, quantize, units
from shoal_controlplane.cli.client import CHECK_S, Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.modelfiles import upload_bytes, upload_file
from shoal_controlplane.cli.modelpath import Found, find_models, variant_file
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    checked_name,
    model_reference,
)
from shoal_controlplane.cli.output import NONE, Block, Table, emit, facts
from shoal_controlplane.cli.progress import note
from shoal_controlplane.cli.root import noun
from shoal_controlplane.cli.views import Golden, Model, ModelVersion, Variant, read, read_all
from shoal_shared.messages import REFERENCE
from shoal_shared.signature import TensorSpec

MODELS = "/api/v1/models"
MAX_LABELS_SHOWN = 5

app = noun("model", "Push, list, show, quantise and delete models.")


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app)


app.add_typer(modelvariant.app)
app.command("quantize")(quantize.quantize_version)


@app.command("push")
def push_model(
    path: Annotated[Path, typer.Argument(help="An .onnx or .tflite file, or a model's folder.")],
    name: Annotated[str, typer.Option("--name", callback=checked_name, help="Its name here.")],
    version: Annotated[
        str | None, typer.Option("--version", help="By default the next number.")
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="VNAME=FILE[@TARGET]",
            help="One more file that computes the same, maybe compiled for a chip; repeatable.",
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            "--golden",
            metavar="FILE.npz",
            help="Golden inputs and outputs: arrays input:NAME and output:NAME, or inputs by "
            "their names alone, whose outputs are computed here. By default made up.",
        ),
    ] = None,
    no_golden: Annotated[
        bool, typer.Option("--no-golden", help="Record no golden inputs and outputs.")
    ] = False,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Push a model: a file, a folder with its card (shoal.toml), or a folder as Triton's model
    repository holds it (config.pbtxt, numbered versions), all of them or --version.

    Files in the folder "variants" are pushed with it: "int8.onnx" as the variant int8,
    "npu@qualcomm-soc57.onnx" as the variant npu for that chip. Devices serve a variant only if
    its outputs agree with the model's own on golden inputs, which are run here, on the CPU."""
    if version is not None:
        checked_name(version)
    if golden is not None and no_golden:
        raise typer.BadParameter("give either --golden or --no-golden.")
    found = find_models(path, version)
    more = tuple(variant_file(text) for text in variants or [])
    if (more or golden is not None) and len(found) > 1:
        raise typer.BadParameter("name one --version for --variant and --golden.")
    with Client(server) as client:
        documents = []
        for one in found:
            whole = replace(one, variants=one.variants + more, golden=golden or one.golden)
            cases = None if no_golden else _golden(client, name, whole, golden is not None)
            documents.append(_push(client, name, whole, cases))
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
    """Show a model: format, inputs, outputs, card, variants, golden outputs."""
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


def _golden(client: Client, name: str, found: Found, asked: bool) -> bytes | None:
    """The golden cases of a model, None with a note where there are none.

    What was `asked` for by an option must work. A version that is there already keeps its own.
    """
    from shoal_controlplane.cli import golden
    from shoal_controlplane.cli.reference import RuntimeMissingError

    if not asked and found.version is not None and _has_version(client, name, found.version):
        return None
    try:
        if found.golden is not None:
            return golden.given(found.golden, found.file)
        note(f"recording golden outputs of {found.file.name} on the CPU")
        return golden.recorded(found.file, found.card)
    except (RuntimeMissingError, golden.NoGoldenError) as error:
        if asked:
            raise
        note(
            f"no golden outputs were recorded, so devices cannot check variants of it: {error}; "
            "or give inputs that the model takes with --golden"
        )
        return None


def _has_version(client: Client, name: str, version: str) -> bool:
    models = read_all(Model, client.items(MODELS))
    return any(model.name == name and version in model.versions for model in models)


def _push(client: Client, name: str, found: Found, golden: bytes | None) -> Any:
    """Upload a model's files, unless they are there already, and make it a version."""
    body = {
        "name": name,
        "version": found.version,
        "digest": upload_file(client, found.file),
        "filename": found.file.name,
        "card": found.card,
        "config": found.config,
        "labels": found.labels or None,
        "variants": [modelvariant.variant_document(client, v) for v in found.variants] or None,
        "golden": {"digest": upload_bytes(client, golden)} if golden is not None else None,
    }
    given = {key: value for key, value in body.items() if value is not None}
    return client.send("POST", MODELS, given, CHECK_S)


def _latest(summary: Any) -> str:
    latest = summary.get("latest") if isinstance(summary, dict) else None
    if not isinstance(latest, str):
        raise CliError("the control plane's answer names no version: give one, as in NAME:1")
    return checked_name(latest)


def _pushed(version: ModelVersion) -> str:
    card = ", with its card" if version.card else ""
    named = ", ".join(variant.name for variant in version.variants)
    variants = f", variants: {named}" if named else ""
    return (
        f"{version.name}:{version.version} is stored "
        f"({version.format}, {units.size(version.size_bytes)}{card}{variants})"
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
    blocks: list[Block] = [
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
                ("golden", _tolerance(version.golden)),
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
    if version.variants:
        own = (REFERENCE, version.format, NONE, units.size(version.size_bytes), "")
        rows = [own, *(_variant(variant) for variant in version.variants)]
        blocks.append(Table(("VARIANT", "FORMAT", "TARGET", "SIZE", "NOTE"), rows))
    return blocks


def _variant(variant: Variant) -> tuple[str, ...]:
    size = units.size(variant.size_bytes)
    return (variant.name, variant.format, variant.target or NONE, size, variant.note)


def _tolerance(golden: Golden | None) -> str:
    """As in "2 cases, outputs within 0.001 + 2 % of the largest"."""
    if golden is None:
        return NONE
    cases = f"{golden.cases} case{'s' if golden.cases != 1 else ''}"
    return (
        f"{cases}, outputs within {golden.absolute:g} + {golden.relative * 100:g} % of the largest"
    )


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
