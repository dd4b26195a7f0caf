from __future__ import annotations

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_simulators.demo.checkpoint import CheckpointError, read_checkpoint

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Global:
    """Pickles as a bare reference to module.name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Rebuild:
    """Pickles as torch pickles a tensor: a call of _rebuild_tensor_v2."""

    def __init__(self, key: str, count: int, offset: int, shape: Any, strides: Any) -> None:
        self.storage = ("storage", Global("torch", "FloatStorage"), key, "cpu", count, None)
        self.rest = (offset, shape, strides, False, OrderedDict())


class Persistent:
    def __init__(self, pid: Any) -> None:
        self.pid = pid


class Writer(pickle._Pickler):  # the Python implementation can write references as bytes
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Persistent) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Rebuild):
            self.save(Global("torch._utils", "_rebuild_tensor_v2"))
            self.save((Persistent(obj.storage), *obj.rest))
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def dump(*objects: Any) -> bytes:
    file = io.BytesIO()
    for item in objects:
        Writer(file, 2).dump(item)
    return file.getvalue()


def checkpoint(state: Any, storages: dict[str, np.ndarray[Any, Any]], magic: int = MAGIC) -> bytes:
    data = dump(magic, PROTOCOL, {"little_endian": True}, state, list(storages))
    for values in storages.values():
        data += struct.pack("<q", values.size) + values.astype("<f4").tobytes()
    return data


def read(tmp_path: Path, data: bytes) -> dict[str, Any]:
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    return read_checkpoint(path)


TEN = np.arange(10, dtype=np.float32)


def test_reads_windows_and_strides_of_a_shared_storage(tmp_path: Path) -> None:
    state = OrderedDict(
        a=Rebuild("0", 10, 0, (2, 3), (3, 1)),
        transposed=Rebuild("0", 10, 4, (3, 2), (1, 3)),
        scalar=Rebuild("0", 10, 9, (), ()),
    )
    tensors = read(tmp_path, checkpoint(state, {"0": TEN}))
    np.testing.assert_array_equal(tensors["a"], TEN[:6].reshape(2, 3))
    np.testing.assert_array_equal(tensors["transposed"], TEN[4:10].reshape(2, 3).T)
    assert tensors["scalar"] == 9
    assert tensors["a"].flags.writeable


@pytest.mark.parametrize(
    "view",
    [
        Rebuild("0", 10, 5, (2, 3), (3, 1)),
        Rebuild("0", 10, 0, (2, 3), (300, 1)),
        Rebuild("0", 10, -1, (2,), (1,)),
        Rebuild("0", 10, 0, (2,), (-1,)),
        Rebuild("0", 10, 0, (10**12,), (1,)),
        Rebuild("0", 10, 0, ("x",), (1,)),
        Rebuild("0", 11, 0, (2,), (1,)),
        Rebuild("missing", 10, 0, (2,), (1,)),
    ],
)
def test_refuses_windows_outside_their_storage(tmp_path: Path, view: Rebuild) -> None:
    with pytest.raises(CheckpointError):
        read(tmp_path, checkpoint({"a": view}, {"0": TEN}))


@pytest.mark.parametrize("callee", [os.system, eval, np.dtype, getattr])
def test_never_imports_anything_else(tmp_path: Path, callee: Any) -> None:
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self) -> Any:
            return callee, (f"touch {marker}",)

    with pytest.raises(CheckpointError, match="not allowed"):
        read(tmp_path, checkpoint({"a": Attack()}, {"0": TEN}))
    assert not marker.exists()


@pytest.mark.parametrize("state", [{"a": 1}, {1: Rebuild("0", 10, 0, (1,), (1,))}, [1, 2]])
def test_refuses_what_is_not_a_table_of_tensors(tmp_path: Path, state: Any) -> None:
    with pytest.raises(CheckpointError, match="table of tensors"):
        read(tmp_path, checkpoint(state, {"0": TEN}))


def test_refuses_another_format(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="legacy PyTorch"):
        read(tmp_path, checkpoint({}, {}, magic=7))


WHOLE = checkpoint({"a": Rebuild("0", 10, 0, (10,), (1,))}, {"0": TEN})


@pytest.mark.parametrize("length", range(0, len(WHOLE), 7))
def test_refuses_every_truncation(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError):
        read(tmp_path, WHOLE[:length])


@given(position=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_flipped_byte_gives_tensors_or_a_clean_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    data = bytearray(WHOLE)
    data[position] = byte
    path = tmp_path_factory.mktemp("flip") / "weights.pth"
    path.write_bytes(data)
    try:
        tensors = read_checkpoint(path)
    except CheckpointError:
        return
    assert all(isinstance(tensor, np.ndarray) for tensor in tensors.values())
