"""Sums, extrema and their kin along axes."""

from __future__ import annotations

from typing import Any

from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp, lax
from shoal_controlplane.offload.tpu.worker.operators.table import (
    Call,
    Run,
    Value,
    axis_of,
    operator,
)


def _log_sum_exp(xp: Any, x: Value, axis: tuple[int, ...], keepdims: bool) -> Value:
    top = jnp.max(x, axis, keepdims=True)
    # -inf alone sums up to -inf, not to NaN.
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.log(jnp.sum(jnp.exp(x - top), axis, keepdims=True)) + top
    return total if keepdims else total.squeeze(axis)


_KINDS: dict[str, Run] = {
    "ReduceSum": lambda xp, x, **of: xp.sum(x, **of),
    "ReduceMean": lambda xp, x, **of: xp.mean(x, **of),
    "ReduceMax": lambda xp, x, **of: xp.max(x, **of),
    "ReduceMin": lambda xp, x, **of: xp.min(x, **of),
    "ReduceProd": lambda xp, x, **of: xp.prod(x, **of),
    "ReduceL1": lambda xp, x, **of: xp.sum(xp.abs(x), **of),
    "ReduceL2": lambda xp, x, **of: xp.sqrt(xp.sum(xp.square(x), **of)),
    "ReduceSumSquare": lambda xp, x, **of: xp.sum(xp.square(x), **of),
    "ReduceLogSum": lambda xp, x, **of: xp.log(xp.sum(x, **of)),
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduced(call: Call, x: Value, axes: list[int] | None) -> Value:
    if not axes:
        # Where empty axes mean none, what is done to each element stays.
        axes = [] if call.get("noop_with_empty_axes", 0) else list(range(x.ndim))
    along = tuple(axis_of(axis, x.ndim) for axis in axes)
    keep = bool(call.get("keepdims", 1))
    return _KINDS[call.op](call.xp, x, axis=along, keepdims=keep).astype(x.dtype)


def _by_attribute(call: Call, x: Value) -> Value:
    return _reduced(call, x, call.get("axes"))


def _by_input(call: Call, x: Value, axes: Value = None) -> Value:
    return _reduced(call, x, None if axes is None else call.integers(axes, "axes"))


operator(*_KINDS, attributes="axes keepdims")(_by_attribute)
# The axes became an input with opset 18, for ReduceSum with 13.
operator(*(set(_KINDS) - {"ReduceSum"}), since=18, attributes="keepdims noop_with_empty_axes")(
    _by_input
)
operator("ReduceSum", since=13, attributes="keepdims noop_with_empty_axes")(_by_input)


@operator("ArgMax", "ArgMin", attributes="axis keepdims select_last_index")
def _arg(call: Call, x: Value) -> Value:
    axis = axis_of(call.get("axis", 0), x.ndim)
    last = call.get("select_last_index", 0)
    seen = jnp.flip(x, axis) if last else jnp.asarray(x)
    found = (jnp.argmax if call.op == "ArgMax" else jnp.argmin)(seen, axis).astype(jnp.int64)
    if last:
        found = x.shape[axis] - 1 - found
    return jnp.expand_dims(found, axis) if call.get("keepdims", 1) else found


@operator("TopK", attributes="axis k")
def _top_k_by_attribute(call: Call, x: Value) -> tuple[Value, Value]:
    return _top_k_of(call, x, call.get("k"))


@operator("TopK", since=10, attributes="axis largest sorted")
def _top_k(call: Call, x: Value, k: Value) -> tuple[Value, Value]:
    return _top_k_of(call, x, call.integers(k, "k")[0])


def _top_k_of(call: Call, x: Value, k: int) -> tuple[Value, Value]:
    axis = axis_of(call.get("axis", -1), x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"k is {k}, but axis {axis} has {x.shape[axis]} elements")
    # A stable sort: among equals the lower index comes first, whichever end is asked for.
    order = jnp.argsort(x, axis, stable=True, descending=bool(call.get("largest", 1)))
    first = lax.slice_in_dim(order, 0, k, axis=axis)
    return jnp.take_along_axis(jnp.asarray(x), first, axis), first.astype(jnp.int64)


@operator("CumSum", since=11, attributes="exclusive reverse")
def _cumsum(call: Call, x: Value, axis: Value) -> Value:
    along = axis_of(call.integers(axis, "axis")[0], x.ndim)
    backwards = call.get("reverse", 0)
    seen = call.xp.flip(x, along) if backwards else x
    total = call.xp.cumsum(seen, along, dtype=x.dtype)
    if call.get("exclusive", 0):
        total = total - seen
    return call.xp.flip(total, along) if backwards else total
