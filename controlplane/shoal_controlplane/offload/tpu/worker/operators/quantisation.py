"""Quantised tensors: to and from them, and products of them with sums in int32."""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.convolution import (
    AUTO_PADS,
    convolve,
    per_channel,
)
from shoal_controlplane.offload.tpu.worker.operators.elementwise import element_type
from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, axis_of, operator

_QUANTISED = (0, 2, 3, 4, 5)
"""Not given, UINT8, INT8, UINT16, INT16."""

_CONV = "dilations group kernel_shape pads strides"


def _along(value: Value, rank: int, axis: int) -> Value:
    """A scale or zero point that is one for all, or one for each place along `axis`."""
    if value.size == 1:
        return value.reshape(())
    if value.ndim > 1:
        return value
    shape = [1] * rank
    shape[axis] = -1
    return value.reshape(shape)


def _quantised(x: Value, scale: Value, zero: Value, dtype: np.dtype[Any]) -> Value:
    limits = np.iinfo(dtype)
    places = jnp.rint(x / scale) + zero.astype(jnp.float32)
    return jnp.clip(places, limits.min, limits.max).astype(dtype)


def _difference(x: Value, zero: Value) -> Value:
    return x.astype(jnp.int32) if zero is None else x.astype(jnp.int32) - zero.astype(jnp.int32)


@operator("QuantizeLinear", since=10)
@operator("QuantizeLinear", since=13, attributes="axis saturate")
@operator(
    "QuantizeLinear",
    since=21,
    attributes="axis saturate",
    only={"block_size": (0,), "output_dtype": _QUANTISED, "precision": (0, 1)},
)
def _quantise(call: Call, x: Value, scale: Value, zero: Value = None) -> Value:
    axis = axis_of(call.get("axis", 1), x.ndim) if scale.size > 1 else 0
    if zero is None:
        zero = np.zeros((), element_type(call.get("output_dtype", 0) or 2))
    _refuse_lesser(call, zero)
    return _quantised(x, _along(scale, x.ndim, axis), _along(zero, x.ndim, axis), zero.dtype)


@operator("DequantizeLinear", since=10)
@operator("DequantizeLinear", since=13, attributes="axis")
@operator(
    "DequantizeLinear", since=21, attributes="axis", only={"block_size": (0,), "output_dtype": (0,)}
)
def _dequantise(call: Call, x: Value, scale: Value, zero: Value = None) -> Value:
    axis = axis_of(call.get("axis", 1), x.ndim) if scale.size > 1 else 0
    _refuse_lesser(call, x)
    offset = None if zero is None else _along(zero, x.ndim, axis)
    return _difference(x, offset).astype(scale.dtype) * _along(scale, x.ndim, axis)


def _refuse_lesser(call: Call, value: Value) -> None:
    if np.dtype(value.dtype).kind not in "iu":
        raise call.unsupported(f"it quantises to {value.dtype}")


@operator("DynamicQuantizeLinear", since=11)
def _dynamically_quantise(call: Call, x: Value) -> tuple[Value, Value, Value]:
    low, high = jnp.minimum(jnp.min(x), 0), jnp.maximum(jnp.max(x), 0)
    scale = (high - low) / 255
    scale = jnp.where(scale == 0, 1, scale)
    zero = jnp.clip(jnp.rint(-low / scale), 0, 255).astype(jnp.uint8)
    return _quantised(x, scale, zero, np.dtype(np.uint8)), scale.astype(jnp.float32), zero


@operator("MatMulInteger", since=10)
def _matmul_integer(
    call: Call, a: Value, b: Value, a_zero: Value = None, b_zero: Value = None
) -> Value:
    if a_zero is not None and a_zero.ndim == 1 and a_zero.size > 1:
        a_zero = a_zero[:, None]
    return jnp.matmul(_difference(a, a_zero), _difference(b, b_zero))


@operator("ConvInteger", since=10, attributes=_CONV, only={"auto_pad": AUTO_PADS})
def _conv_integer(
    call: Call, x: Value, w: Value, x_zero: Value = None, w_zero: Value = None
) -> Value:
    if w_zero is not None:
        w_zero = _along(w_zero, w.ndim, 0)
    # The zero point is taken off first: padding stands for it.
    return convolve(call, _difference(x, x_zero), _difference(w, w_zero))


@operator("QLinearMatMul", since=10)
def _quantised_matmul(
    call: Call,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> Value:
    if any(v.size > 1 for v in (a_scale, y_scale)):
        raise call.unsupported("it has a scale a row")
    total = jnp.matmul(_difference(a, a_zero.reshape(())), _difference(b, b_zero))
    scale = a_scale.reshape(()) * b_scale / y_scale.reshape(())
    return _rescaled(total, scale, y_zero.reshape(()))


@operator("QLinearConv", since=10, attributes=_CONV, only={"auto_pad": AUTO_PADS})
def _quantised_conv(
    call: Call,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    w: Value,
    w_scale: Value,
    w_zero: Value,
    y_scale: Value,
    y_zero: Value,
    bias: Value = None,
) -> Value:
    total = convolve(
        call,
        _difference(x, x_zero.reshape(())),
        _difference(w, _along(w_zero, w.ndim, 0)),
    )
    if bias is not None:
        total = total + per_channel(bias, total.ndim)
    scale = _along(x_scale.reshape(()) * w_scale / y_scale.reshape(()), total.ndim, 1)
    return _rescaled(total, scale, y_zero.reshape(()))


def _rescaled(total: Value, scale: Value, zero: Value) -> Value:
    limits = np.iinfo(zero.dtype)
    places = jnp.rint(total.astype(jnp.float32) * scale) + zero.astype(jnp.float32)
    return jnp.clip(places, limits.min, limits.max).astype(zero.dtype)
