"""Open Inference Protocol datatypes and their raw bytes.

Source: Open Inference Protocol v2, "Tensor Data Types", and its binary tensor data extension.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
"""Array type per datatype. BF16 is held as its 16 bits (numpy has no such type); BYTES as
objects of type `bytes`."""

MAX_DIMENSIONS = 32
"""As many as every version of numpy can hold."""

_MAX_ELEMENTS = 2**48
_DATATYPE = {dtype: name for name, dtype in NUMPY.items() if name != "BF16"}
_LENGTH = struct.Struct("<I")


class TensorError(ValueError):
    """A tensor that contradicts itself; the text is one plain sentence."""


def datatype_of(array: Array) -> str:
    """Open Inference Protocol datatype of an array; uint16 is UINT16, never BF16."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _DATATYPE[array.dtype.newbyteorder("<")]
    except KeyError:
        raise TensorError(f"arrays of type {array.dtype} have no datatype") from None


def element_count(shape: Sequence[int], name: str) -> int:
    """Number of elements of `shape`; 0 is legal, a negative dimension is not."""
    if len(shape) > MAX_DIMENSIONS:
        raise TensorError(
            f"tensor '{name}' has {len(shape)} dimensions, more than the limit of {MAX_DIMENSIONS}"
        )
    if any(d < 0 for d in shape):
        shown = str(list(shape))[:80]
        raise TensorError(f"tensor '{name}' has a negative dimension in its shape {shown}")
    count = math.prod(shape)
    # An empty tensor needs no data, so only this check stands between it and numpy's limits.
    if (count or math.prod(d for d in shape if d)) > _MAX_ELEMENTS:
        raise TensorError(f"tensor '{name}' has too large a shape: {str(list(shape))[:80]}")
    return count


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: Buffer) -> Array:
    """Array over `raw` without a copy (BYTES excepted), read-only where `raw` is.

    Raises `TensorError` if the size of `raw` does not fit shape and datatype.
    """
    dtype = _dtype(name, datatype)
    count = element_count(shape, name)
    if datatype == "BYTES":
        return _bytes_elements(name, count, raw).reshape(shape)
    if len(raw) != count * dtype.itemsize:
        raise TensorError(
            f"tensor '{name}' has {len(raw)} bytes, but its shape {list(shape)} and datatype "
            f"{datatype} need {count * dtype.itemsize}"
        )
    if datatype == "BOOL" and count and np.frombuffer(raw, np.uint8).max() > 1:
        raise TensorError(f"tensor '{name}' has BOOL bytes other than 0 and 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def to_bytes(datatype: str, array: Array) -> memoryview | bytes:
    """Raw bytes of an array in row-major order, without a copy where it is contiguous."""
    if datatype == "BYTES":
        parts: list[bytes] = []
        for element in array.ravel():
            data = element.encode() if isinstance(element, str) else bytes(element)
            parts += (_LENGTH.pack(len(data)), data)
        return b"".join(parts)
    dtype = NUMPY[datatype]
    flat = np.ascontiguousarray(array, dtype).reshape(-1)
    return memoryview(flat.data).cast("B") if flat.size else b""


def from_list(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> Array:
    """Array from JSON data: flat or nested lists in row-major order.

    Numbers must be of the datatype's kind and within its range: 1.5 is no INT32, 300 no UINT8,
    1 no BOOL. A null is NaN. Raises `TensorError`.
    """
    dtype = _dtype(name, datatype)
    count = element_count(shape, name)
    array = _strings(name, data) if datatype == "BYTES" else _numbers(name, datatype, dtype, data)
    if array.size != count:
        raise TensorError(
            f"tensor '{name}' has {array.size} elements, but its shape {list(shape)} needs {count}"
        )
    return array.reshape(shape)


def to_list(name: str, datatype: str, array: Array) -> list[Any]:
    """Flat JSON data of an array, row-major. NaN and infinities become null on the wire.

    Raises `TensorError` for BYTES elements that are not UTF-8: JSON cannot carry them.
    """
    flat = array.reshape(-1)
    if datatype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    if datatype != "BYTES":
        return flat.tolist()
    try:
        return [e if isinstance(e, str) else bytes(e).decode() for e in flat]
    except UnicodeDecodeError:
        raise TensorError(
            f"output '{name}' holds bytes that are not UTF-8: ask for binary data"
        ) from None


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    try:
        return NUMPY[datatype]
    except KeyError:
        raise TensorError(f"tensor '{name}' has the unknown datatype {datatype[:20]!r}") from None


def _bytes_elements(name: str, count: int, raw: Buffer) -> Array:
    if count * _LENGTH.size > len(raw):
        raise TensorError(f"tensor '{name}' has too few bytes for {count} BYTES elements")
    array = np.empty(count, dtype=object)
    view, at = memoryview(raw), 0
    for i in range(count):
        if at + _LENGTH.size > len(view):
            raise TensorError(f"tensor '{name}' ends within the length of element {i}")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if at + length > len(view):
            raise TensorError(f"tensor '{name}' ends within element {i}")
        array[i] = bytes(view[at : at + length])
        at += length
    if at != len(view):
        raise TensorError(f"tensor '{name}' has {len(view) - at} bytes after its last element")
    return array


def _flatten(name: str, data: list[Any]) -> list[Any]:
    out: list[Any] = []

    def visit(items: list[Any], depth: int) -> None:
        if depth > MAX_DIMENSIONS:
            raise TensorError(f"tensor '{name}' has data nested deeper than {MAX_DIMENSIONS} lists")
        for item in items:
            if isinstance(item, list):
                visit(item, depth + 1)
            else:
                out.append(item)

    visit(data, 1)
    return out


def _strings(name: str, data: list[Any]) -> Array:
    flat = _flatten(name, data)
    if not all(isinstance(item, str) for item in flat):
        raise TensorError(f"tensor '{name}' is BYTES, so its data must be strings")
    array = np.empty(len(flat), dtype=object)
    array[:] = [item.encode() for item in flat]
    return array


def _numbers(name: str, datatype: str, dtype: np.dtype[Any], data: list[Any]) -> Array:
    wrong = TensorError(f"tensor '{name}' has data that is not {datatype}")
    try:
        # numpy finds the common type in C, and lies show in the kind that it finds (except that
        # it takes a bool among numbers for 0 or 1).
        array = np.array(data)
    except (ValueError, OverflowError, TypeError):
        raise wrong from None
    if array.size == 0:
        return np.empty(0, dtype)
    if array.dtype.kind == "O":
        array = np.array([math.nan if x is None else x for x in _flatten(name, data)])
    elif array.dtype.kind == "f" and datatype == "UINT64":
        array = _large_integers(name, data, array)
    kind = array.dtype.kind
    if datatype == "BOOL":
        if kind != "b":
            raise wrong
    elif datatype in ("FP16", "BF16", "FP32", "FP64"):
        if kind not in "iuf":
            raise wrong
        with np.errstate(over="ignore"):
            if datatype == "BF16":
                return _to_bf16(array.astype(np.float32))
            return array.astype(dtype)
    else:
        if kind not in "iu":
            raise wrong
        info = np.iinfo(dtype)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise TensorError(f"tensor '{name}' has data outside the range of {datatype}")
    return array.astype(dtype, copy=False)


def _large_integers(name: str, data: list[Any], array: Array) -> Array:
    """UINT64 data as integers: next to smaller ones, numpy takes those from 2**63 on for floats."""
    flat = _flatten(name, data)
    if all(type(x) is int and 0 <= x < 2**64 for x in flat):
        return np.array(flat, dtype=np.uint64)
    return array


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
