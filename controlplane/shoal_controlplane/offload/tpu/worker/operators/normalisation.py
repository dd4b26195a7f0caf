"""Normalisations, in their form for inference."""

from __future__ import annotations

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.convolution import per_channel
from shoal_controlplane.offload.tpu.worker.operators.elementwise import wide
from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp, lax
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, axis_of, operator


def _standardised(x: Value, axes: tuple[int, ...], epsilon: float) -> Value:
    """Zero mean and unit variance along `axes`, in float32 at least."""
    x = wide(x)
    centred = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axes, keepdims=True)
    return centred * lax.rsqrt(variance + epsilon)


@operator(
    "BatchNormalization", since=7, attributes="epsilon momentum", only={"training_mode": (0,)}
)
def _batch_normalisation(
    call: Call, x: Value, scale: Value, bias: Value, mean: Value, variance: Value
) -> Value:
    if call.outputs > 1:
        raise call.unsupported("it is in training mode")
    factor = scale * lax.rsqrt(jnp.asarray(variance) + call.get("epsilon", 1e-5))
    shift = bias - mean * factor
    y = x * per_channel(factor, x.ndim) + per_channel(shift, x.ndim)
    return y.astype(x.dtype)


@operator("InstanceNormalization", since=6, attributes="epsilon")
def _instance_normalisation(call: Call, x: Value, scale: Value, bias: Value) -> Value:
    y = _standardised(x, tuple(range(2, x.ndim)), call.get("epsilon", 1e-5))
    return (y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)).astype(x.dtype)


def layer_normalisation(
    x: Value, axis: int, epsilon: float, scale: Value, bias: Value | None
) -> Value:
    """Layer normalisation over all axes from `axis` on."""
    y = _standardised(x, tuple(range(axis_of(axis, x.ndim), x.ndim)), epsilon).astype(x.dtype)
    y = y * scale
    return y if bias is None else y + bias


@operator("LayerNormalization", since=1, attributes="axis epsilon", only={"stash_type": (1,)})
def _layer_normalisation(call: Call, x: Value, scale: Value, bias: Value = None) -> Value:
    if call.outputs > 1:
        raise call.unsupported("it gives its mean and deviation, too")
    return layer_normalisation(x, call.get("axis", -1), call.get("epsilon", 1e-5), scale, bias)


@operator("RMSNormalization", since=23, attributes="axis epsilon", only={"stash_type": (1,)})
def _rms_normalisation(call: Call, x: Value, scale: Value) -> Value:
    axes = tuple(range(axis_of(call.get("axis", -1), x.ndim), x.ndim))
    square = jnp.mean(jnp.square(wide(x)), axes, keepdims=True)
    return (wide(x) * lax.rsqrt(square + call.get("epsilon", 1e-5))).astype(x.dtype) * scale


def _in_groups(call: Call, x: Value) -> Value:
    groups = call.get("num_groups")
    parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    axes = tuple(range(2, parts.ndim))
    return _standardised(parts, axes, call.get("epsilon", 1e-5))


@operator(
    "GroupNormalization", since=18, attributes="epsilon num_groups", only={"stash_type": (1,)}
)
def _group_normalisation_by_group(call: Call, x: Value, scale: Value, bias: Value) -> Value:
    parts = _in_groups(call, x)
    y = parts * per_channel(scale, parts.ndim) + per_channel(bias, parts.ndim)
    return y.reshape(x.shape).astype(x.dtype)


@operator(
    "GroupNormalization", since=21, attributes="epsilon num_groups", only={"stash_type": (1,)}
)
def _group_normalisation(call: Call, x: Value, scale: Value, bias: Value) -> Value:
    y = _in_groups(call, x).reshape(x.shape)
    return (y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)).astype(x.dtype)


@operator("MeanVarianceNormalization", since=9, attributes="axes")
def _mean_variance_normalisation(call: Call, x: Value) -> Value:
    axes = tuple(call.get("axes") or (0, 2, 3))
    centred = x - jnp.mean(x, axes, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axes, keepdims=True))
    return centred / (deviation + 1e-9)


@operator("LpNormalization", attributes="axis", only={"p": (1, 2)})
def _lp_normalisation(call: Call, x: Value) -> Value:
    axis = call.get("axis", -1)
    if call.get("p", 2) == 1:
        length = jnp.sum(jnp.abs(x), axis, keepdims=True)
    else:
        length = jnp.sqrt(jnp.sum(jnp.square(x), axis, keepdims=True))
    return jnp.where(length == 0, 0, x / jnp.where(length == 0, 1, length))


@operator("LRN", attributes="alpha beta bias size")
def _local_response_normalisation(call: Call, x: Value) -> Value:
    size = call.get("size")
    before = (size - 1) // 2
    around = lax.reduce_window(
        jnp.square(x),
        np.zeros((), x.dtype),
        lax.add,
        (1, size) + (1,) * (x.ndim - 2),
        (1,) * x.ndim,
        [(0, 0), (before, size - 1 - before)] + [(0, 0)] * (x.ndim - 2),
    )
    base = call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * around
    return x / base ** call.get("beta", 0.75)
