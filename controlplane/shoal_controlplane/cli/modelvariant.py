"""`shoal model variant`: more files of a version, of which devices serve the best for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_controlplane.cli.client import CHECK_S, Client
from shoal_controlplane.cli.modelfiles import upload_file
from shoal_controlplane.cli.modelpath import VariantFile, checked_file
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    checked_name,
    model_reference,
)
from shoal_controlplane.cli.output import emit
from shoal_controlplane.cli.root import noun

app = noun("variant", "Add files to a version, or remove them: quantised, or compiled for a chip.")


@app.command("add")
def add_variant(
    model: Annotated[str, typer.Argument(metavar="NAME:V")],
    file: Annotated[Path, typer.Argument(help="An .onnx or .tflite file.")],
    name: Annotated[
        str, typer.Option("--as", metavar="VNAME", callback=checked_name, help="Its name.")
    ],
    target: Annotated[
        str, typer.Option("--target", help="Chip that it was compiled for, as qualcomm-soc57.")
    ] = "",
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Add a file that computes the same as the version's own: same inputs, same outputs."""
    path = _path(model)
    checked_file(file)
    with Client(server) as client:
        document = send_variant(client, path, VariantFile(name, file, target))
    emit(output, document, lambda: [f"{model} has the variant {name}"])


@app.command("remove")
def remove_variant(
    model: Annotated[str, typer.Argument(metavar="NAME:V")],
    name: Annotated[str, typer.Argument(metavar="VNAME", callback=checked_name)],
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Remove a variant; devices that serve it change to another file of the version."""
    path = _path(model)
    with Client(server) as client:
        client.send("DELETE", f"{path}/variants/{name}")
    removed = {"removed": name, "model": model}
    emit(output, removed, lambda: [f"the variant {name} of {model} was removed"])


def send_variant(client: Client, path: str, variant: VariantFile, note: str = "") -> Any:
    """Upload a file and make it a variant of the version at `path`; the version after that."""
    body = {**variant_document(client, variant), "note": note}
    return client.send("POST", f"{path}/variants", body, CHECK_S)


def variant_document(client: Client, variant: VariantFile) -> dict[str, str]:
    """A variant as the API takes it, its file uploaded."""
    digest = upload_file(client, variant.file)
    return {
        "name": variant.name,
        "digest": digest,
        "filename": variant.file.name,
        "target": variant.target,
    }


def _path(model: str) -> str:
    name, version = model_reference(model)
    if version is None:
        raise typer.BadParameter(f"name the version, as in {name}:1.")
    return f"/api/v1/models/{name}/versions/{version}"
