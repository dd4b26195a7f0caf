"""Tensors in `.npz` files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from shoal_controlplane.cli.errors import CliError
from shoal_shared.tensors import Array, TensorError, datatype_of

MAX_BYTES = 4 * 1024**3
"""Unpacked; a small file can say that it holds anything."""


def load_npz(path: Path, limit: int = MAX_BYTES) -> dict[str, Array]:
    """The arrays of a file by name, texts as objects of type `bytes`. Raises `CliError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total > limit:
            raise CliError(f"{path} holds {total} bytes of arrays, more than {limit}")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _plain(file[name]) for name in file.files}
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
        raise CliError(f"{path} is not a .npz file that can be read ({error})") from None
    if not arrays:
        raise CliError(f"{path} holds no arrays")
    for name, array in arrays.items():
        try:
            datatype_of(array)
        except TensorError as error:
            raise CliError(f"'{name[:80]}' in {path} cannot be used: {error}") from None
    return arrays


def _plain(array: Array) -> Array:
    if array.dtype.kind not in "SU":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    out = np.empty(array.size, dtype=object)
    out[:] = [e.encode() if isinstance(e, str) else bytes(e) for e in array.reshape(-1)]
    return out.reshape(array.shape)
