"""A request of the Open Inference Protocol from the command line, and its reply for people."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.errors import CliError

if TYPE_CHECKING:
    from shoal_controlplane.cli.views import ModelVersion
    from shoal_shared.oip import InferReply, Tensor

DEFAULT_TIMEOUT_MS = 30_000
GRACE_S = 5.0
"""Longer than the control plane takes to say that the time is over."""


def input_files(texts: Iterable[str]) -> dict[str, Path]:
    """`NAME=@FILE.npy` texts as files by input."""
    files: dict[str, Path] = {}
    for text in texts:
        name, sign, file = text.partition("=@")
        if not (name and sign and file):
            raise typer.BadParameter(f"{text[:80]!r} is not of the form NAME=@FILE.npy.")
        files[name] = Path(file)
    return files


def load_tensors(version: ModelVersion, files: Mapping[str, Path]) -> list[Tensor]:
    """The arrays in the files as inputs of a model. Raises `CliError`."""
    from shoal_controlplane.cli.tensorfiles import load_tensor

    datatypes = {spec.name: spec.datatype for spec in version.signature.inputs}
    return [load_tensor(name, path, datatypes.get(name)) for name, path in files.items()]


def ask(
    client: Client,
    path: str,
    inputs: list[Tensor],
    timeout_ms: int,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[InferReply, float]:
    """The reply to a request that is sent to `path`, and the seconds it took from here."""
    from shoal_shared import oip

    request = oip.InferRequest(
        inputs, parameters={"binary_data_output": True, **(parameters or {})}
    )
    buffers, length = oip.encode_request(request)
    headers = {
        "Content-Type": "application/octet-stream",
        oip.HEADER_LENGTH: str(length),
        "Shoal-Timeout-Ms": str(timeout_ms),
    }
    started = time.perf_counter()
    body, reply_headers = client.post_bytes(
        path, b"".join(buffers), headers, timeout_ms / 1000 + GRACE_S
    )
    took_s = time.perf_counter() - started
    size = reply_headers.get(oip.HEADER_LENGTH.lower())
    try:
        reply = oip.decode_reply(body, int(size) if size is not None else None)
    except ValueError as error:
        raise CliError(f"the gateway's reply cannot be read ({error})") from None
    return reply, took_s


def outputs(
    tensors: Sequence[Tensor],
    folder: Path | None,
    document: dict[str, Any],
    answer: Sequence[str] | None = None,
) -> list[str]:
    """Lines about a reply, and what goes into `document`: those of its `answer` where a card could
    read one, else its tensors; with a folder they are saved there as well."""
    from shoal_controlplane.cli.tensorfiles import as_document, brief, save_tensors

    saved = save_tensors(tensors, folder) if folder is not None else []
    lines = list(answer) if answer is not None else [brief(tensor) for tensor in tensors]
    if saved:
        document["saved"] = [str(path) for path in saved]
    elif answer is None:
        document["outputs"] = [as_document(tensor) for tensor in tensors]
    return [*lines, *(f"saved {path}" for path in saved)]
