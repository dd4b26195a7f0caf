"""Activations, softmax and its kin."""

from __future__ import annotations

import math

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.lazy import jax, jnp, lax
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, axis_of, operator

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


@operator("Relu", since=6)
def _relu(call: Call, x: Value) -> Value:
    return call.xp.maximum(x, call.xp.zeros((), x.dtype))


@operator("LeakyRelu", since=6, attributes="alpha")
def _leaky_relu(call: Call, x: Value) -> Value:
    return jnp.where(x < 0, x * call.get("alpha", 0.01), x)


@operator("ThresholdedRelu", since=10, attributes="alpha")
def _thresholded_relu(call: Call, x: Value) -> Value:
    return jnp.where(x > call.get("alpha", 1.0), x, 0)


@operator("Elu", since=6, attributes="alpha")
def _elu(call: Call, x: Value) -> Value:
    return jnp.where(x < 0, call.get("alpha", 1.0) * jnp.expm1(jnp.minimum(x, 0)), x)


@operator("Selu", since=6, attributes="alpha gamma")
def _selu(call: Call, x: Value) -> Value:
    alpha, gamma = call.get("alpha", _SELU_ALPHA), call.get("gamma", _SELU_GAMMA)
    return gamma * jnp.where(x < 0, alpha * jnp.expm1(jnp.minimum(x, 0)), x)


@operator("Celu", since=12, attributes="alpha")
def _celu(call: Call, x: Value) -> Value:
    alpha = call.get("alpha", 1.0)
    return jnp.where(x < 0, alpha * jnp.expm1(jnp.minimum(x, 0) / alpha), x)


@operator("Sigmoid", since=6)
def _sigmoid(call: Call, x: Value) -> Value:
    return jax.nn.sigmoid(x)


@operator("HardSigmoid", since=6, attributes="alpha beta")
def _hard_sigmoid(call: Call, x: Value) -> Value:
    return jnp.clip(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@operator("HardSwish", since=14)
def _hard_swish(call: Call, x: Value) -> Value:
    return x * jnp.clip(x / 6 + 0.5, 0, 1)


@operator("Swish", since=24, attributes="alpha")
def _swish(call: Call, x: Value) -> Value:
    return x * jax.nn.sigmoid(call.get("alpha", 1.0) * x)


@operator("Mish", since=18)
def _mish(call: Call, x: Value) -> Value:
    return x * jnp.tanh(jax.nn.softplus(x))


@operator("Softplus")
def _softplus(call: Call, x: Value) -> Value:
    return jax.nn.softplus(x)


@operator("Softsign")
def _softsign(call: Call, x: Value) -> Value:
    return x / (1 + jnp.abs(x))


@operator("Shrink", since=9, attributes="bias lambd")
def _shrink(call: Call, x: Value) -> Value:
    bias, threshold = call.get("bias", 0.0), call.get("lambd", 0.5)
    return jnp.where(x < -threshold, x + bias, jnp.where(x > threshold, x - bias, 0)).astype(
        x.dtype
    )


@operator("Gelu", since=20, only={"approximate": ("none", "tanh")})
def _gelu(call: Call, x: Value) -> Value:
    return gelu(x, call.get("approximate", "none") == "tanh")


def gelu(x: Value, approximate: bool) -> Value:
    """Gaussian error linear unit, by the error function or its approximation by tanh."""
    if approximate:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + jnp.tanh(inner))
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


@operator("Dropout", since=7, attributes="ratio seed")
def _dropout(
    call: Call, x: Value, ratio: Value = None, training: Value = None
) -> Value | tuple[Value, Value]:
    if training is not None and call.constant(training, "training mode").any():
        raise call.unsupported("it is in training mode")
    return (x, np.ones(x.shape, bool)) if call.outputs > 1 else x


def _by_rows(call: Call, x: Value, axis: int) -> Value:
    """Before opset 13, all axes from `axis` on counted as one."""
    at = axis_of(axis, x.ndim) if axis != x.ndim else axis
    return x.reshape(math.prod(x.shape[:at]), -1)


@operator("Softmax", "LogSoftmax", "Hardmax", attributes="axis")
def _softmax_of_rows(call: Call, x: Value) -> Value:
    return _softmax(call, _by_rows(call, x, call.get("axis", 1)), -1).reshape(x.shape)


@operator("Softmax", "LogSoftmax", "Hardmax", since=13, attributes="axis")
def _softmax_of_axis(call: Call, x: Value) -> Value:
    return _softmax(call, x, call.get("axis", -1))


def _softmax(call: Call, x: Value, axis: int) -> Value:
    if call.op == "Softmax":
        return jax.nn.softmax(x, axis)
    if call.op == "LogSoftmax":
        return jax.nn.log_softmax(x, axis)
    return jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], dtype=x.dtype, axis=axis)
