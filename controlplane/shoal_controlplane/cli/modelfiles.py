"""Files of models on their way to and from the control plane's artifact store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from shoal_controlplane.cli import units
from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.progress import note, transfer

CHUNK = 1 << 20


def upload_file(client: Client, file: Path) -> str:
    """Upload a file unless it is there already; its digest, `sha256:<hex>`."""
    sha, length = hashlib.sha256(), 0
    for chunk in _chunks(file, lambda _: None):
        sha.update(chunk)
        length += len(chunk)
    path = _path(sha.hexdigest())
    if client.has(path):
        note(f"{file.name} is on the server already ({units.size(length)})")
    else:
        with transfer(f"uploading {file.name}", length) as advance:
            client.upload(path, _chunks(file, advance), length)
    return f"sha256:{sha.hexdigest()}"


def upload_bytes(client: Client, data: bytes) -> str:
    """Upload bytes unless they are there already; their digest."""
    digest = hashlib.sha256(data).hexdigest()
    if not client.has(_path(digest)):
        pieces = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
        client.upload(_path(digest), pieces, len(data))
    return f"sha256:{digest}"


def download(client: Client, digest: str, length: int, file: Path, what: str) -> None:
    """Write the artifact with that digest to `file`. Raises `CliError` if it is another."""
    sha, got = hashlib.sha256(), 0
    try:
        with file.open("wb") as out, transfer(f"downloading {what}", length) as advance:
            for chunk in client.receive(_path(digest.removeprefix("sha256:")), CHUNK):
                got += len(chunk)
                if got > length:
                    break
                sha.update(chunk)
                out.write(chunk)
                advance(len(chunk))
    except OSError as error:
        raise CliError(f"{what} cannot be saved: {error.strerror or error}") from None
    if f"sha256:{sha.hexdigest()}" != digest:
        raise CliError(f"{what} did not come as it is stored ({digest}): try again")


def _path(digest: str) -> str:
    return f"/artifacts/sha256/{digest}"


def _chunks(file: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
                advance(len(chunk))
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}") from None
