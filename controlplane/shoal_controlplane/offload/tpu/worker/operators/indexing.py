"""Reading and writing parts of tensors: slices, gathers and scatters."""

from __future__ import annotations

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, axis_of, operator


@operator("Slice", attributes="axes ends starts")
def _slice_by_attributes(call: Call, x: Value) -> Value:
    starts, ends = call.get("starts"), call.get("ends")
    return _sliced(x, starts, ends, call.get("axes"), None)


@operator("Slice", since=10)
def _slice(
    call: Call, x: Value, starts: Value, ends: Value, axes: Value = None, steps: Value = None
) -> Value:
    return _sliced(
        x,
        call.integers(starts, "starts"),
        call.integers(ends, "ends"),
        None if axes is None else call.integers(axes, "axes"),
        None if steps is None else call.integers(steps, "steps"),
    )


def _sliced(
    x: Value, starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None
) -> Value:
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    parts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis_of(axis, x.ndim)
        # Python counts from the end as ONNX does, but a step back that ends before the first
        # element has no number there.
        stop = None if step < 0 and end < -x.shape[at] else end
        parts[at] = slice(start, stop, step)
    return x[tuple(parts)]


def _counted(call: Call, indices: Value, size: int) -> Value:
    """Indices from the front, in the type that the device indexes fastest with."""
    xp = np if isinstance(indices, np.ndarray) else jnp
    return xp.where(indices < 0, indices + size, indices).astype(np.int32)


@operator("Gather", attributes="axis")
def _gather(call: Call, x: Value, indices: Value) -> Value:
    axis = axis_of(call.get("axis", 0), x.ndim)
    if call.known:
        return np.take(x, indices, axis)
    return jnp.take(x, _counted(call, indices, x.shape[axis]), axis, mode="clip")


@operator("GatherElements", since=11, attributes="axis")
def _gather_elements(call: Call, x: Value, indices: Value) -> Value:
    axis = axis_of(call.get("axis", 0), x.ndim)
    counted = _counted(call, indices, x.shape[axis])
    return jnp.asarray(x)[_grid(counted, axis)]


def _grid(indices: Value, axis: int) -> tuple[Value, ...]:
    """An index for each axis: `indices` along `axis`, the own place along the others."""
    own = np.meshgrid(*(np.arange(s) for s in indices.shape), indexing="ij", sparse=True)
    return tuple(indices if i == axis else own[i] for i in range(indices.ndim))


@operator("GatherND", since=11, attributes="batch_dims")
def _gather_nd(call: Call, x: Value, indices: Value) -> Value:
    shared = call.get("batch_dims", 0)
    depth = indices.shape[-1]
    rest = indices.ndim - 1 - shared
    own = [
        np.arange(size).reshape((-1,) + (1,) * (shared - 1 - i + rest))
        for i, size in enumerate(indices.shape[:shared])
    ]
    at = [_counted(call, indices[..., i], x.shape[shared + i]) for i in range(depth)]
    return jnp.asarray(x)[(*own, *at)]


_WRITES = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}


@operator("Scatter", since=9, attributes="axis")
@operator("ScatterElements", since=11, attributes="axis", only={"reduction": tuple(_WRITES)})
def _scatter_elements(call: Call, x: Value, indices: Value, updates: Value) -> Value:
    axis = axis_of(call.get("axis", 0), x.ndim)
    at = jnp.asarray(x).at[_grid(_counted(call, indices, x.shape[axis]), axis)]
    return getattr(at, _WRITES[call.get("reduction", "none")])(updates)


@operator("ScatterND", since=11, only={"reduction": tuple(_WRITES)})
def _scatter_nd(call: Call, x: Value, indices: Value, updates: Value) -> Value:
    places = tuple(_counted(call, indices[..., i], x.shape[i]) for i in range(indices.shape[-1]))
    return getattr(jnp.asarray(x).at[places], _WRITES[call.get("reduction", "none")])(updates)


@operator("NonZero", since=9)
def _nonzero(call: Call, x: Value) -> Value:
    # How many there are is part of the shape, so they must be known.
    return np.asarray(np.nonzero(call.constant(x, "input")), np.int64)


@operator("ReverseSequence", since=10, attributes="batch_axis time_axis")
def _reverse_sequence(call: Call, x: Value, lengths: Value) -> Value:
    batch, time = call.get("batch_axis", 1), call.get("time_axis", 0)
    steps = np.arange(x.shape[time])
    if batch == 0:
        steps, ends = steps[None, :], lengths[:, None]
    else:
        steps, ends = steps[:, None], lengths[None, :]
    source = jnp.where(steps < ends, ends - 1 - steps, steps)
    shape = source.shape + (1,) * (x.ndim - 2)
    return jnp.take_along_axis(jnp.asarray(x), source.reshape(shape), time)
