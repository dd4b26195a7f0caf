"""Reader of a TFLite file's signature: a FlatBuffer, read without any runtime.

Every offset is checked against the file before it is followed, so that a truncated or hostile
file ends in a sentence. Source: FlatBuffers' "Internals" and TFLite's `schema.fbs`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.findings import Findings, checked_findings
from shoal_shared.signature import TensorSpec
from shoal_shared.tensors import Buffer

_IDENTIFIER = b"TFL3"
_VERSION = 3
_MAX_ITEMS = 1_000_000
# `TensorType` of schema.fbs.
_DATATYPES = {
    0: "FP32",
    1: "FP16",
    2: "INT32",
    3: "UINT8",
    4: "INT64",
    5: "BYTES",
    6: "BOOL",
    7: "INT16",
    9: "INT8",
    10: "FP64",
    12: "UINT64",
    15: "UINT32",
    16: "UINT16",
    18: "BF16",
}
# Slots of the fields that are read, in their order in schema.fbs.
_MODEL_VERSION, _MODEL_OPERATOR_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 0, 1, 2, 4
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _GRAPH_OPERATORS = 0, 1, 2, 3
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_SHAPE_SIGNATURE = 0, 1, 2, 3, 7
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_OPERATOR_INPUTS, _OPERATOR_OUTPUTS = 1, 2


def read_tflite(data: Buffer) -> Findings:
    """Signature of the first subgraph, names as the runtime shows them, and parameters.

    Raises `InvalidError` with one sentence for anything that is not a whole TFLite model.
    """
    if len(data) < 8 or bytes(data[4:8]) != _IDENTIFIER:
        raise InvalidError("The file is not a TFLite model: the identifier TFL3 is missing.")
    try:
        return _read(data)
    except (struct.error, UnicodeDecodeError, _BrokenError):
        raise InvalidError("The TFLite model is truncated or damaged: export it again.") from None


class _BrokenError(Exception):
    """An offset, length or index that leads nowhere."""


def _read(data: Buffer) -> Findings:
    (root,) = struct.unpack_from("<I", data, 0)
    model = _Table(data, root)
    if model.scalar(_MODEL_VERSION, "<I", 0) != _VERSION:
        raise InvalidError("The TFLite model has another schema version than 3: convert it anew.")
    buffers = [_buffer_bytes(buffer) for buffer in model.tables(_MODEL_BUFFERS)]
    operator_codes = sum(1 for _ in model.tables(_MODEL_OPERATOR_CODES))
    graphs = list(model.tables(_MODEL_SUBGRAPHS))
    if not graphs or not operator_codes:
        raise InvalidError("The TFLite model is empty: it computes nothing.")
    parameters = 0
    for graph in graphs:
        tensors = list(graph.tables(_GRAPH_TENSORS))
        for operator in graph.tables(_GRAPH_OPERATORS):
            for slot in (_OPERATOR_INPUTS, _OPERATOR_OUTPUTS):
                # -1 is an optional input that is not there.
                _check_indices([i for i in operator.integers(slot) if i != -1], len(tensors))
        for tensor in tensors:
            buffer = tensor.scalar(_TENSOR_BUFFER, "<I", 0)
            _check_indices([buffer], len(buffers))
            if buffers[buffer]:
                parameters += max(0, math.prod(tensor.integers(_TENSOR_SHAPE)))
    tensors = list(graphs[0].tables(_GRAPH_TENSORS))
    inputs, outputs = (
        _specs(tensors, graphs[0].integers(slot)) for slot in (_GRAPH_INPUTS, _GRAPH_OUTPUTS)
    )
    return checked_findings(inputs, outputs, parameters)


def _specs(tensors: list[_Table], indices: tuple[int, ...]) -> list[TensorSpec]:
    _check_indices(indices, len(tensors))
    specs = []
    for index in indices:
        tensor = tensors[index]
        # `shape` holds 1 where the size is free; `shape_signature`, if there, holds -1.
        shape = tensor.integers(_TENSOR_SHAPE_SIGNATURE) or tensor.integers(_TENSOR_SHAPE)
        kind = tensor.scalar(_TENSOR_TYPE, "<b", 0)
        specs.append(
            TensorSpec(
                name=tensor.text(_TENSOR_NAME),
                datatype=_DATATYPES.get(kind, f"type {kind}"),
                shape=shape,
            )
        )
    return specs


def _buffer_bytes(buffer: _Table) -> int:
    """Bytes of a constant, wherever the file keeps it: inside, or behind the FlatBuffer."""
    inside = buffer.vector(_BUFFER_DATA, 1)[1]
    offset, size = (buffer.scalar(slot, "<Q", 0) for slot in (_BUFFER_OFFSET, _BUFFER_SIZE))
    if offset > 1 and offset + size > len(buffer.data):
        raise _BrokenError
    return inside or (size if offset > 1 else 0)


def _check_indices(indices: list[int] | tuple[int, ...], count: int) -> None:
    if any(not 0 <= index < count for index in indices):
        raise _BrokenError


class _Table:
    """A FlatBuffer table at `position`; a slot that the table lacks reads as empty."""

    def __init__(self, data: Buffer, position: int) -> None:
        self.data = data
        self._position = position
        (back,) = struct.unpack_from("<i", data, position)
        self._vtable = position - back
        if self._vtable < 0:
            raise _BrokenError
        (self._vtable_size,) = struct.unpack_from("<H", data, self._vtable)

    def scalar(self, slot: int, layout: str, default: int) -> int:
        at = self._field(slot)
        return default if at is None else int(struct.unpack_from(layout, self.data, at)[0])

    def integers(self, slot: int) -> tuple[int, ...]:
        start, count = self.vector(slot, 4)
        return struct.unpack_from(f"<{count}i", self.data, start)

    def text(self, slot: int) -> str:
        start, count = self.vector(slot, 1)
        return bytes(self.data[start : start + count]).decode()

    def tables(self, slot: int) -> Iterator[_Table]:
        start, count = self.vector(slot, 4)
        if count > _MAX_ITEMS:
            raise _BrokenError
        for at in range(start, start + 4 * count, 4):
            yield _Table(self.data, self._follow(at))

    def vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """Start and length of a vector, known to lie within the file."""
        at = self._field(slot)
        if at is None:
            return 0, 0
        length_at = self._follow(at)
        (count,) = struct.unpack_from("<I", self.data, length_at)
        if length_at + 4 + count * item_bytes > len(self.data):
            raise _BrokenError
        return length_at + 4, count

    def _field(self, slot: int) -> int | None:
        at = 4 + 2 * slot
        if at + 2 > self._vtable_size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, self._vtable + at)
        return self._position + offset if offset else None

    def _follow(self, at: int) -> int:
        (offset,) = struct.unpack_from("<I", self.data, at)
        return at + int(offset)
