"""Read the tensors of a legacy PyTorch checkpoint (`.pth`) without PyTorch.

The format (torch.serialization before the zip files of 1.6): five pickles one after another
(magic number, protocol, system facts, the state, the storage keys), then for each key an int64
count and the raw little-endian elements. Only what a table of tensors needs may be unpickled.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


class CheckpointError(ValueError):
    """The file is not a checkpoint of plain tensors; the message is one sentence."""


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _TensorView:
    """A tensor as the pickle describes it: a window, in elements, onto a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """Read a state dictionary: tensor name to array, each a copy of its own.

    Raises CheckpointError if the file is truncated, malformed, or asks for any class that a
    table of tensors does not need; OSError if it cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _read(file)
        except CheckpointError:
            raise
        # Unpickling broken bytes can end in any of these, so all of them mean the same here.
        except (
            pickle.UnpicklingError,
            struct.error,
            ArithmeticError,
            AttributeError,
            EOFError,
            LookupError,
            MemoryError,
            TypeError,
            ValueError,
        ) as error:
            raise CheckpointError(f"{path.name} is not a readable checkpoint: {error}.") from error


def _read(file: BinaryIO) -> dict[str, NDArray[Any]]:
    if _unpickle(file) != _MAGIC or _unpickle(file) != _PROTOCOL:
        raise CheckpointError("The file does not start like a legacy PyTorch checkpoint.")
    _unpickle(file)  # facts about the writing machine
    state = _unpickle(file)
    keys = _unpickle(file)
    if not isinstance(state, dict) or not isinstance(keys, list):
        raise CheckpointError("The checkpoint holds something other than a table of tensors.")
    views: dict[str, _TensorView] = {}
    for name, view in state.items():
        if not isinstance(name, str) or not isinstance(view, _TensorView):
            raise CheckpointError("The checkpoint holds something other than a table of tensors.")
        views[name] = view
    storages = {view.storage.key: view.storage for view in views.values()}
    contents = {key: _read_storage(file, storages[key]) for key in keys}
    return {name: _tensor(view, contents[view.storage.key]) for name, view in views.items()}


def _read_storage(file: BinaryIO, storage: _Storage) -> bytes:
    (count,) = struct.unpack("<q", file.read(8))
    if count != storage.count:
        raise CheckpointError(f"Storage {storage.key} has another length than announced.")
    size = count * storage.dtype.itemsize
    data = file.read(size)
    if len(data) != size:
        raise CheckpointError(f"Storage {storage.key} is cut short.")
    return data


def _tensor(view: _TensorView, data: bytes) -> NDArray[Any]:
    """Lay the view over its storage; numpy itself refuses windows that leave the buffer."""
    dtype = view.storage.dtype
    window = np.ndarray(
        view.shape,
        dtype,
        buffer=data,
        offset=view.offset * dtype.itemsize,
        strides=[stride * dtype.itemsize for stride in view.strides],
    )
    return window.copy()


class _TensorsOnly(pickle.Unpickler):
    """An unpickler that knows tensors, their storages and OrderedDict, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise CheckpointError(f"The checkpoint asks for {module}.{name}, which is not allowed.")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(count, int):
            raise CheckpointError("The checkpoint refers to something other than a storage.")
        return _Storage(str(key), dtype, count)


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: object
) -> _TensorView:
    if not isinstance(storage, _Storage):
        raise CheckpointError("A tensor of the checkpoint has no storage.")
    return _TensorView(storage, offset, tuple(shape), tuple(strides))


def _unpickle(file: BinaryIO) -> Any:
    return _TensorsOnly(file).load()
