"""Shapes: what asks for them and what changes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.elementwise import (
    ELEMENT_TYPES,
    element_type,
)
from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, axis_of, operator


@operator("Constant", attributes="value value_float value_floats value_int value_ints")
def _constant(call: Call) -> Value:
    value = call.get("value")
    if value is not None:
        return np.asarray(value)
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for attribute in (name, f"{name}s"):
            if call.get(attribute) is not None:
                return np.asarray(call.get(attribute), dtype)
    raise call.unsupported("it has no value")


@operator("Shape", attributes="start end")
def _shape(call: Call, x: Value) -> Value:
    return np.asarray(x.shape[slice(call.get("start", 0), call.get("end"))], np.int64)


@operator("Size")
def _size(call: Call, x: Value) -> Value:
    return np.asarray(math.prod(x.shape), np.int64)


@operator("ConstantOfShape", since=9, attributes="value")
def _constant_of_shape(call: Call, shape: Value) -> Value:
    value = call.get("value")
    fill = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(-1)[0]
    return np.full(call.integers(shape, "shape"), fill)


@operator("EyeLike", since=9, attributes="k", only={"dtype": tuple(ELEMENT_TYPES)})
def _eye_like(call: Call, x: Value) -> Value:
    number = call.get("dtype")
    dtype = x.dtype if number is None else element_type(number)
    return np.eye(x.shape[0], x.shape[1], call.get("k", 0)).astype(dtype)


@operator("Range", since=11)
def _range(call: Call, start: Value, limit: Value, step: Value) -> Value:
    first, last, by = (
        call.constant(value, name).reshape(-1)[0]
        for value, name in ((start, "start"), (limit, "limit"), (step, "step"))
    )
    count = max(math.ceil((last - first) / by), 0)
    return (first + np.arange(count).astype(start.dtype) * by).astype(start.dtype)


@operator("Reshape", since=5, attributes="allowzero")
def _reshape(call: Call, x: Value, shape: Value) -> Value:
    wanted = call.integers(shape, "shape")
    if not call.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten", attributes="axis")
def _flatten(call: Call, x: Value) -> Value:
    axis = call.get("axis", 1)
    at = axis if axis == x.ndim else axis_of(axis, x.ndim)
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


@operator("Transpose", attributes="perm")
def _transpose(call: Call, x: Value) -> Value:
    return call.xp.transpose(x, call.get("perm"))


@operator("Squeeze", attributes="axes")
def _squeeze_by_attribute(call: Call, x: Value) -> Value:
    return _squeezed(x, call.get("axes"))


@operator("Squeeze", since=13)
def _squeeze(call: Call, x: Value, axes: Value = None) -> Value:
    return _squeezed(x, None if axes is None else call.integers(axes, "axes"))


def _squeezed(x: Value, axes: list[int] | None) -> Value:
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(axis_of(axis, x.ndim) for axis in axes))


@operator("Unsqueeze", attributes="axes")
def _unsqueeze_by_attribute(call: Call, x: Value) -> Value:
    return call.xp.expand_dims(x, tuple(call.get("axes")))


@operator("Unsqueeze", since=13)
def _unsqueeze(call: Call, x: Value, axes: Value) -> Value:
    return call.xp.expand_dims(x, tuple(call.integers(axes, "axes")))


@operator("Concat", since=4, attributes="axis")
def _concat(call: Call, *inputs: Value) -> Value:
    return call.xp.concatenate(inputs, call.get("axis"))


@operator("Split", since=2, attributes="axis split")
def _split_by_attribute(call: Call, x: Value) -> Any:
    return _split_at(call, x, call.get("split"))


@operator("Split", since=13, attributes="axis num_outputs")
def _split(call: Call, x: Value, sizes: Value = None) -> Any:
    return _split_at(call, x, None if sizes is None else call.integers(sizes, "sizes"))


def _split_at(call: Call, x: Value, sizes: list[int] | None) -> Any:
    axis = axis_of(call.get("axis", 0), x.ndim)
    if sizes is None:
        # The last part is smaller where it does not come out even.
        size = -(-x.shape[axis] // call.outputs)
        sizes = [size] * (call.outputs - 1)
        sizes.append(x.shape[axis] - sum(sizes))
    if sum(sizes) != x.shape[axis] or min(sizes, default=0) < 0:
        raise ValueError(f"parts of {sizes} do not make up {x.shape[axis]}")
    ends = [int(end) for end in np.cumsum(sizes)[:-1]]
    return tuple(call.xp.split(x, ends, axis))


@operator("Expand", since=8)
def _expand(call: Call, x: Value, shape: Value) -> Value:
    wanted = np.broadcast_shapes(x.shape, tuple(call.integers(shape, "shape")))
    return call.xp.broadcast_to(x, wanted)


@operator("Tile", since=6)
def _tile(call: Call, x: Value, repeats: Value) -> Value:
    return call.xp.tile(x, call.integers(repeats, "repeats"))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@operator("Pad", since=2, attributes="pads value", only={"mode": ("constant", "reflect", "edge")})
def _pad_by_attributes(call: Call, x: Value) -> Value:
    fill = np.asarray(call.get("value", 0.0), x.dtype)
    return _padded(call, x, call.get("pads"), list(range(x.ndim)), fill)


@operator("Pad", since=11, only={"mode": tuple(_PAD_MODES)})
def _pad(call: Call, x: Value, pads: Value, fill: Value = None, axes: Value = None) -> Value:
    along = range(x.ndim) if axes is None else call.integers(axes, "axes")
    if fill is None:
        fill = np.zeros((), x.dtype)
    return _padded(call, x, call.integers(pads, "pads"), [axis_of(a, x.ndim) for a in along], fill)


def _padded(call: Call, x: Value, pads: list[int], axes: list[int], fill: Value) -> Value:
    if len(pads) != 2 * len(axes):
        raise ValueError(f"{len(pads)} pads do not fit {len(axes)} axes")
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    # Negative ones cut.
    cut = tuple(
        slice(max(-b, 0), size - max(-a, 0))
        for b, a, size in zip(before, after, x.shape, strict=True)
    )
    width = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
    mode = _PAD_MODES[call.get("mode", "constant")]
    if mode == "constant":
        return call.xp.pad(x[cut], width, mode, constant_values=fill.reshape(()))
    return call.xp.pad(x[cut], width, mode)


@operator("DepthToSpace", attributes="blocksize", only={"mode": ("DCR", "CRD")})
def _depth_to_space(call: Call, x: Value) -> Value:
    size = call.get("blocksize")
    n, c, h, w = x.shape
    depth = c // (size * size)
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, size, size, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, depth, size, size, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, depth, h * size, w * size)


@operator("SpaceToDepth", attributes="blocksize")
def _space_to_depth(call: Call, x: Value) -> Value:
    size = call.get("blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size).transpose(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size * size, h // size, w // size)


@operator("Trilu", since=14, attributes="upper")
def _trilu(call: Call, x: Value, diagonal: Value = None) -> Value:
    k = 0 if diagonal is None else call.integers(diagonal, "diagonal")[0]
    return call.xp.triu(x, k) if call.get("upper", 1) else call.xp.tril(x, k)


@operator("OneHot", since=9, attributes="axis")
def _one_hot(call: Call, indices: Value, depth: Value, values: Value) -> Value:
    size = call.integers(depth, "depth")[0]
    axis = axis_of(call.get("axis", -1), indices.ndim + 1)
    # Negative indices count from the end; those out of range match nothing.
    counted = jnp.where(indices < 0, indices + size, indices)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = size
    hit = jnp.expand_dims(counted, axis) == np.arange(size).reshape(shape)
    return jnp.where(hit, values[1], values[0])
