"""Tensors in `.npy` files, and tensors in a line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shoal_controlplane.cli.errors import CliError
from shoal_shared.oip import Tensor
from shoal_shared.tensors import Array, TensorError, datatype_of, to_list

MAX_SHOWN = 8


def load_tensor(name: str, path: Path, datatype: str | None) -> Tensor:
    """The array in a `.npy` file as input `name`, whose datatype in the model is `datatype`.

    Types are not converted, only named: 16 bits without a sign are BF16 where the model says so.
    """
    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError) as error:
        raise CliError(f"{path} is not a .npy file that can be read ({error})") from None
    try:
        found = datatype_of(array)
    except TensorError as error:
        raise CliError(f"{path} cannot be sent: {error}") from None
    if found == "UINT16" and datatype == "BF16":
        found = "BF16"
    return Tensor(name, found, array)


def save_tensors(tensors: Sequence[Tensor], folder: Path) -> list[Path]:
    """Write each tensor to `NAME.npy` in `folder`, which is made if need be.

    BF16 is written as its 16 bits. Characters that do not belong into a file name become `_`.
    """
    paths: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for tensor in tensors:
            stem = re.sub(r"[^A-Za-z0-9._-]", "_", tensor.name)[:100].lstrip(".") or "output"
            path = folder / f"{stem}.npy"
            while path in paths:
                stem += "_"
                path = folder / f"{stem}.npy"
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, _storable(tensor), allow_pickle=False)
            part.replace(path)
            paths.append(path)
    except OSError as error:
        raise CliError(f"the outputs cannot be saved in {folder}: {error.strerror}") from None
    return paths


def brief(tensor: Tensor) -> str:
    """A tensor in a line: `scores  FP32 [1, 4]  0.1, 0.2, 0.3, 0.4`."""
    flat = tensor.data.reshape(-1)
    shown = [_element(value) for value in _values(tensor, flat[:MAX_SHOWN])]
    more = ", …" if flat.size > MAX_SHOWN else ""
    shape = ", ".join(str(size) for size in tensor.data.shape)
    return f"{tensor.name}  {tensor.datatype} [{shape}]  {', '.join(shown)}{more}".rstrip()


def as_document(tensor: Tensor) -> dict[str, object]:
    """A tensor as the protocol's JSON form; what JSON has no number for is null."""
    values = [
        None if isinstance(value, float) and not np.isfinite(value) else value
        for value in _values(tensor, tensor.data.reshape(-1))
    ]
    shape = list(tensor.data.shape)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": values}


def by_name(tensors: Sequence[Tensor]) -> Mapping[str, Array]:
    """Arrays by their names."""
    return {tensor.name: tensor.data for tensor in tensors}


def _values(tensor: Tensor, flat: Array) -> list[object]:
    if tensor.datatype == "BYTES":
        return [bytes(element).decode(errors="backslashreplace") for element in flat]
    return to_list(tensor.name, tensor.datatype, flat)


def _element(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:80]


def _storable(tensor: Tensor) -> Array:
    if tensor.datatype != "BYTES":
        return tensor.data
    flat = [bytes(element) for element in tensor.data.reshape(-1)]
    return np.array(flat, dtype="S").reshape(tensor.data.shape)
