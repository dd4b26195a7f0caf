"""Compiled code on disk: a folder per key, and beside it a manifest of what must be in it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from shoal_agent.service.logs import fields
from shoal_agent.updates.bundle import BundledFile, BundleError, list_files, unpack
from shoal_agent.updates.files import sync_folder, write_atomically
from shoal_agent.updates.store import hash_file
from shoal_shared.compiled import CompileKey

log = logging.getLogger("compiled")

HERE = "here"
SHARED = "shared"

_MAX_MANIFEST = 4 * 1024 * 1024


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the folder of `key` holds. `origin` is "here", "shared", or "" for nothing.

    `bundle` is the digest under which it is shared, empty before it is known; `offered` tells
    that the server has code for the key. `rejected` is the digest of a bundle that was bad here.
    """

    key: CompileKey
    origin: str = ""
    files: tuple[BundledFile, ...] = ()
    bundle: str = ""
    offered: bool = False
    rejected: str = ""


_decoder = msgspec.json.Decoder(Manifest)


class CodeFolders:
    """Folders of compiled code below `root`, by their keys. All methods may block on the disk
    and raise `OSError`; used by one agent process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: CompileKey) -> Path:
        return self.root / key.hex

    def bundle_path(self, key: CompileKey) -> Path:
        """Where a bundle is made, to be uploaded."""
        return self.root / f"{key.hex}.bundle"

    def read(self, key: CompileKey) -> Manifest:
        """The manifest, unverified; an empty one if there is none that can be used."""
        manifest = _load(self._manifest_path(key))
        return manifest if manifest is not None and manifest.key == key else Manifest(key=key)

    def verified(self, key: CompileKey) -> Manifest:
        """The manifest of a folder that holds just what it says; anything else is emptied."""
        manifest = self.read(key)
        path = self.path(key)
        if manifest.origin and not _holds(path, manifest.files):
            log.error(
                f"compiled code for {key.provider_set} on {key.target or 'this device'} was "
                "changed on disk: it is made anew",
                extra=fields(digest=key.digest, folder=path),
            )
            manifest = self.empty(manifest)
        elif not manifest.origin:
            _clear(path)
        return manifest

    def keep(self, manifest: Manifest) -> None:
        """Write a manifest, durably."""
        write_atomically(self._manifest_path(manifest.key), msgspec.json.encode(manifest))

    def take(self, key: CompileKey) -> Manifest:
        """Vouch for what was compiled into the folder. Raises `BundleError` if there is nothing,
        or what cannot be packed."""
        path = self.path(key)
        files: list[BundledFile] = []
        for name, size in list_files(path).items():
            file = path / name
            files.append(BundledFile(name=name, size=size, digest=hash_file(file)))
            _sync(file)
        if not files:
            raise BundleError("nothing was compiled")
        rejected = self.read(key).rejected
        manifest = Manifest(key=key, origin=HERE, files=tuple(files), rejected=rejected)
        self.keep(manifest)
        return manifest

    def fill(self, manifest: Manifest, bundle: Path, digest: str) -> Manifest:
        """Unpack a shared bundle into the folder of `manifest`, which is empty. Raises
        `BundleError`; after any error it is empty again."""
        path = self.path(manifest.key)
        try:
            files = unpack(bundle, path)
            if not files:
                raise BundleError("it is empty")
            filled = msgspec.structs.replace(
                manifest, origin=SHARED, files=files, bundle=digest, offered=True
            )
            self.keep(filled)
        except BaseException:
            _clear(path)
            raise
        return filled

    def empty(self, manifest: Manifest, rejected: str = "") -> Manifest:
        """Empty the folder, remembering which bundle was bad; returns the new manifest."""
        empty = Manifest(key=manifest.key, rejected=rejected or manifest.rejected)
        # First of all nobody vouches for it any more, then it goes.
        self.keep(empty)
        _clear(self.path(manifest.key))
        return empty

    def collect(
        self, keep: Collection[str], used: Collection[CompileKey], busy: Collection[str]
    ) -> list[str]:
        """Remove all but what model files with digests in `keep` need; returns removed names.

        Code for other runtimes and drivers than those of the same key in `used` goes as well.
        Names that begin with one of `busy`, hexadecimal keys, are left alone.
        """
        removed: list[str] = []
        if not self.root.exists():
            return removed
        wanted = {*busy}
        for path in self.root.glob("*.json"):
            manifest = _load(path)
            if manifest is None or manifest.key.digest not in keep:
                continue
            if not any(_supersedes(key, manifest.key) for key in used):
                wanted.add(manifest.key.hex)
        for path in sorted(self.root.iterdir()):
            name = path.name.partition(".")[0]
            bundle = path.suffix == ".bundle" and name not in busy
            if bundle or name not in wanted:
                _remove(path)
                removed.append(path.name)
        return removed

    def _manifest_path(self, key: CompileKey) -> Path:
        return self.root / f"{key.hex}.json"


def _load(path: Path) -> Manifest | None:
    try:
        with path.open("rb") as file:
            return _decoder.decode(file.read(_MAX_MANIFEST))
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("manifest of compiled code is unusable", extra=fields(error=error))
        return None


def _holds(path: Path, files: Collection[BundledFile]) -> bool:
    """Whether a folder holds these files and nothing else; sizes tell faster than digests."""
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        sizes = list_files(path)
    except BundleError:
        return False
    if sizes != {file.name: file.size for file in files}:
        return False
    return all(hash_file(path / file.name) == file.digest for file in files)


def _supersedes(newer: CompileKey, older: CompileKey) -> bool:
    """Whether the two differ in versions alone, of the runtime or the driver."""
    same = msgspec.structs.replace(older, runtime=newer.runtime, driver=newer.driver)
    return newer == same and newer != older


def _clear(path: Path) -> None:
    """Make `path` an empty folder, whatever it was."""
    if path.is_symlink() or path.exists():
        _remove(path)
    path.mkdir(parents=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(path.parent)
