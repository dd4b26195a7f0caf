"""Folders as one file and back: the same files give the same bytes, and nothing else unpacks.

The format is tar (GNU, uncompressed) without folders, owners and times, names in order. What
another program packed, or what was changed on the way, is refused at its first header.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from shoal_agent.updates.files import sync_folder
from shoal_agent.updates.store import CHUNK_BYTES

MAX_FILES = 1000
MAX_BYTES = 2 * 1024**3 - 16 * 1024**2
"""Of all files together; with the headers a bundle stays below 2 GiB."""

TEMPORARY = ".unpack-"
"""Prefix of folders that are not yet complete."""

_MAX_NAME = 1000
_MAX_PART = 255
_MAX_DEPTH = 8
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


class BundleError(Exception):
    """A folder cannot be packed or a bundle not unpacked; the text is one plain sentence."""


class BundledFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a folder: its name with slashes, its bytes and their `sha256:<hex>`."""

    name: str
    size: int
    digest: str


def list_files(folder: Path) -> dict[str, int]:
    """Sizes of all files in a folder by name, in the order of a bundle.

    Raises `BundleError` for links, devices, too much or names that no bundle can hold, `OSError`.
    """
    sizes: dict[str, int] = {}
    total = 0
    for name, entry in _walk(folder, ""):
        if not entry.is_file(follow_symlinks=False):
            raise BundleError(f"{name[:200]!r} is neither a file nor a folder")
        _check_name(name)
        sizes[name] = entry.stat(follow_symlinks=False).st_size
        total += sizes[name]
        _check_total(len(sizes), total, MAX_FILES, MAX_BYTES)
    return dict(sorted(sizes.items()))


def pack(folder: Path, path: Path) -> tuple[str, int]:
    """Write the files of a folder to `path`; returns digest and size of what was written.

    Raises as `list_files` does, and `BundleError` for files that change meanwhile.
    """
    sha = hashlib.sha256()
    written = 0
    with path.open("wb") as file:

        def write(data: bytes) -> None:
            nonlocal written
            file.write(data)
            sha.update(data)
            written += len(data)

        for name, size in list_files(folder).items():
            write(_header(name, size))
            left = size
            with (folder / name).open("rb") as source:
                while chunk := source.read(min(left, CHUNK_BYTES)):
                    write(chunk)
                    left -= len(chunk)
                if left or source.read(1):
                    raise BundleError(f"{name[:200]!r} was changed while it was packed")
            write(bytes(-size % _BLOCK))
        write(_END)
    return f"sha256:{sha.hexdigest()}", written


def unpack(
    path: Path, folder: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES
) -> tuple[BundledFile, ...]:
    """Make `folder`, which is missing or empty, of a bundle; returns its files.

    The folder appears complete and durable, or not at all. Raises `BundleError` for what `pack`
    did not write, and `OSError`.
    """
    made = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    try:
        with path.open("rb") as file:
            files = tuple(_unpack(file, made, max_bytes, max_files))
        for below in (made, *(p for p in made.rglob("*") if p.is_dir())):
            sync_folder(below)
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return files


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All that is below a folder but the folders; links are not followed."""
    if prefix.count("/") > _MAX_DEPTH:
        raise BundleError(f"folders are nested more than {_MAX_DEPTH} deep")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), name + "/")
            else:
                yield name, entry


def _unpack(file: BinaryIO, made: Path, max_bytes: int, max_files: int) -> Iterator[BundledFile]:
    names: set[str] = set()
    last = ""
    total = 0
    while (first := file.read(_BLOCK)) != bytes(_BLOCK):
        name, size = _read_header(file, first)
        # In order, so no name comes twice; a file cannot be a folder of another, either.
        if name <= last:
            raise BundleError("the files are not in order")
        if any(parent in names for parent in _parents(name)):
            raise BundleError(f"{name[:200]!r} lies in something that is no folder")
        names.add(name)
        last = name
        total += size
        _check_total(len(names), total, max_files, max_bytes)
        target = made / name
        target.parent.mkdir(parents=True, exist_ok=True)
        yield BundledFile(name=name, size=size, digest=_copy(file, target, size))
    if first + file.read(_BLOCK + 1) != _END:
        raise BundleError("it does not end where it should")


def _read_header(file: BinaryIO, block: bytes) -> tuple[str, int]:
    """Name and size of the next file. Only the very header that `pack` writes is taken."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        header, name = block, info.name
        if info.type == tarfile.GNUTYPE_LONGNAME and info.size <= _MAX_NAME + 1:
            text = file.read(info.size + -info.size % _BLOCK)
            block = file.read(_BLOCK)
            header += text + block
            name = text[: info.size - 1].decode()
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        raise BundleError("it is damaged, or of another format") from None
    _check_name(name)
    if info.size < 0 or header != _header(name, info.size):
        raise BundleError(f"{name[:200]!r} is no plain file")
    return name, info.size


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _copy(file: BinaryIO, target: Path, size: int) -> str:
    sha = hashlib.sha256()
    left = size
    with target.open("xb") as out:
        while left:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise BundleError("it ends in the middle of a file")
            out.write(chunk)
            sha.update(chunk)
            left -= len(chunk)
        out.flush()
        os.fsync(out.fileno())
    padding = -size % _BLOCK
    if file.read(padding) != bytes(padding):
        raise BundleError("it is damaged, or of another format")
    return f"sha256:{sha.hexdigest()}"


def _check_name(name: str) -> None:
    """Raises `BundleError` for what is no relative name below the folder."""
    parts = name.split("/")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise BundleError("the name of a file is not Unicode") from None
    if (
        len(encoded) > _MAX_NAME
        or len(parts) > _MAX_DEPTH + 1
        or any(part in ("", ".", "..") or "\0" in part for part in parts)
        or any(len(part.encode()) > _MAX_PART for part in parts)
    ):
        raise BundleError(f"{name[:200]!r} cannot be the name of a file below the folder")


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _check_total(count: int, total: int, max_files: int, max_bytes: int) -> None:
    if count > max_files:
        raise BundleError(f"there are more than {max_files} files")
    if total > max_bytes:
        raise BundleError(f"the files have more than {max_bytes} bytes")
