"""Shapes of an ONNX file, read and fixed by position, without the onnx library.

A device has no onnx library, and ONNX Runtime can fix dimensions by name only: where height and
width are both named "?", that fixes the wrong one. So the few messages around a shape are
rewritten in protobuf's wire format, and all else is copied as it is. Field numbers are those of
onnx.proto: ModelProto.graph 7; GraphProto.initializer 5, input 11, output 12, value_info 13;
ValueInfoProto.name 1, type 2; TypeProto.tensor_type 1; Tensor.shape 2; TensorShapeProto.dim 1;
Dimension.dim_value 1, dim_param 2.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_agent.runtimes.base import RuntimeLoadError
from shoal_agent.runtimes.wire import (
    BYTES,
    VARINT,
    Field,
    WireError,
    fields,
    integer,
    message,
    read_varint,
    tag,
    varint,
    within,
)

Shapes = Mapping[str, tuple[int, ...]]
"""Dimensions by the name of a tensor; -1 is free."""

_GRAPH, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 7, 5, 11, 12, 13
_MAX_DIMENSION = 2**31 - 1


@dataclass(frozen=True)
class Dims:
    """Shapes of a model's inputs, without those that are constants, and of its outputs."""

    inputs: Shapes
    outputs: Shapes


def read_dims(path: Path) -> Dims:
    """Shapes in an ONNX file. Raises `RuntimeLoadError`."""
    with _opened(path) as (data, graph):
        inputs: dict[str, tuple[int, ...]] = {}
        outputs: dict[str, tuple[int, ...]] = {}
        constants: set[str] = set()
        for field in fields(data, graph.value, graph.end):
            if field.kind != BYTES:
                continue
            if field.number == _INITIALIZER:
                constants.add(_text(data, field, 8))
            elif field.number in (_INPUT, _OUTPUT):
                name, dims = _value_info(data, field)
                (inputs if field.number == _INPUT else outputs)[name] = dims
    free = {name: dims for name, dims in inputs.items() if name not in constants}
    return Dims(free, outputs)


def checked_static_shapes(options: Mapping[str, Any]) -> Shapes | None:
    """Option `static_shapes`, {input: [dimensions]}; None where it is not given.

    Raises `RuntimeLoadError` with one sentence.
    """
    given = options.get("static_shapes")
    if given is None:
        return None
    fine = isinstance(given, Mapping) and all(
        isinstance(dims, list | tuple)
        and all(isinstance(d, int) and not isinstance(d, bool) and d > 0 for d in dims)
        for dims in given.values()
    )
    if not fine:
        raise RuntimeLoadError("option 'static_shapes' must map inputs to lists of sizes")
    return {str(name): tuple(dims) for name, dims in given.items()}


def fix_shapes(source: Path, target: Path, shapes: Shapes) -> None:
    """Write `source` to `target` with the inputs' free dimensions fixed, by position.

    Shapes of values in between are left out, for ONNX Runtime infers them anew. Raises
    `RuntimeLoadError` if a shape is missing, does not fit, or the file is no ONNX model.
    """
    known = read_dims(source).inputs
    for name in shapes:
        if name not in known:
            raise RuntimeLoadError(
                f"a shape is given for '{name[:80]}', which is no input; inputs are "
                f"{', '.join(known)[:300]}"
            )
    fixed = {name: _fixed(name, dims, shapes.get(name)) for name, dims in known.items()}
    with _opened(source) as (data, graph):
        parts = list(_rewritten(data, graph, fixed))
        try:
            with target.open("wb") as out:
                out.write(data[: graph.start])
                out.write(tag(_GRAPH) + varint(sum(map(len, parts))))
                out.writelines(parts)
                out.write(data[graph.end :])
        except OSError as error:
            raise RuntimeLoadError(
                f"the model with fixed shapes cannot be written: {error.strerror}"
            ) from error


def _fixed(name: str, dims: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    if wanted is None:
        if -1 in dims:
            raise RuntimeLoadError(
                f"input '{name}' has free dimensions, which this accelerator cannot have: set the "
                "option 'static_shapes'"
            )
        return dims
    fits = len(wanted) == len(dims) and all(
        0 < w <= _MAX_DIMENSION and d in (-1, w) for w, d in zip(wanted, dims, strict=True)
    )
    if not fits:
        raise RuntimeLoadError(
            f"input '{name}' cannot be fixed to {list(wanted)}: the model takes {list(dims)}"
        )
    return wanted


def _rewritten(data: memoryview, graph: Field, fixed: Shapes) -> Iterator[memoryview | bytes]:
    """The graph's fields: inputs with their shapes, nothing on values in between."""
    for field in fields(data, graph.value, graph.end):
        if field.number == _VALUE_INFO and field.kind == BYTES:
            continue
        if field.number == _INPUT and field.kind == BYTES:
            name, dims = _value_info(data, field)
            if -1 in dims and name in fixed:
                yield message(_INPUT, _with_shape(data, field, fixed[name]))
                continue
        yield data[field.start : field.end]


def _with_shape(data: memoryview, info: Field, dims: tuple[int, ...]) -> bytes:
    """A ValueInfoProto with another shape; its element type and all else stay."""
    shape = message(2, b"".join(message(1, integer(1, d)) for d in dims))

    def changed(field: Field, path: tuple[int, ...]) -> bytes:
        parts = []
        for inner in fields(data, field.value, field.end):
            if inner.number == path[0] and inner.kind == BYTES:
                parts.append(
                    shape if len(path) == 1 else message(path[0], changed(inner, path[1:]))
                )
            else:
                parts.append(bytes(data[inner.start : inner.end]))
        return b"".join(parts)

    return changed(info, (2, 1, 2))


def _value_info(data: memoryview, info: Field) -> tuple[str, tuple[int, ...]]:
    """Name and dimensions of a ValueInfoProto; no dimensions for what is no tensor."""
    name, dims = _text(data, info, 1), []
    for kind in within(data, info, 2):
        for tensor in within(data, kind, 1):
            for shape in within(data, tensor, 2):
                dims += [_dimension(data, dim) for dim in within(data, shape, 1)]
    return name, tuple(dims)


def _dimension(data: memoryview, dim: Field) -> int:
    size = -1
    for field in fields(data, dim.value, dim.end):
        if field.number == 1 and field.kind == VARINT:
            size, _ = read_varint(data, field.value, field.end)
    return size if 0 < size <= _MAX_DIMENSION else -1


def _text(data: memoryview, message: Field, number: int) -> str:
    found = within(data, message, number)
    return bytes(data[found[-1].value : found[-1].end]).decode(errors="replace") if found else ""


@contextmanager
def _opened(path: Path) -> Iterator[tuple[memoryview, Field]]:
    """The bytes of a model file, mapped, and its graph; errors become `RuntimeLoadError`."""
    damaged = "the model file is damaged, or is no ONNX model"
    try:
        with path.open("rb") as file:
            # Unmapped when the last slice of it is gone.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise RuntimeLoadError(f"the model file cannot be read: {error.strerror}") from error
    except ValueError:  # Nothing to map.
        raise RuntimeLoadError("the model file is empty") from None
    try:
        graphs = [f for f in fields(data, 0, len(data)) if (f.number, f.kind) == (_GRAPH, BYTES)]
        if len(graphs) != 1:
            raise RuntimeLoadError(damaged)
        yield data, graphs[0]
    except WireError:
        raise RuntimeLoadError(damaged) from None
