"""Operators of ONNX Runtime's own domain that its optimiser leaves in models."""

from __future__ import annotations

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.activations import gelu
from shoal_controlplane.offload.tpu.worker.operators.lazy import jax, jnp
from shoal_controlplane.offload.tpu.worker.operators.normalisation import layer_normalisation
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, operator

MICROSOFT = "com.microsoft"


@operator("Gelu", domain=MICROSOFT)
def _gelu(call: Call, x: Value) -> Value:
    return gelu(x, approximate=False)


@operator("BiasGelu", domain=MICROSOFT)
def _bias_gelu(call: Call, x: Value, bias: Value) -> Value:
    return gelu(x + bias, approximate=False)


@operator("FastGelu", domain=MICROSOFT)
def _fast_gelu(call: Call, x: Value, bias: Value = None) -> Value:
    return gelu(x if bias is None else x + bias, approximate=True)


@operator("QuickGelu", domain=MICROSOFT, attributes="alpha")
def _quick_gelu(call: Call, x: Value) -> Value:
    return x * jax.nn.sigmoid(call.get("alpha", 1.702) * x)


@operator(
    "FusedMatMul",
    domain=MICROSOFT,
    attributes="alpha transA transB",
    only={"transBatchA": (0,), "transBatchB": (0,)},
)
def _fused_matmul(call: Call, a: Value, b: Value) -> Value:
    left = jnp.swapaxes(a, -1, -2) if call.get("transA", 0) else a
    right = jnp.swapaxes(b, -1, -2) if call.get("transB", 0) else b
    return call.get("alpha", 1.0) * jnp.matmul(left, right)


@operator("SkipLayerNormalization", domain=MICROSOFT, attributes="epsilon")
def _skip_layer_normalisation(
    call: Call, x: Value, skip: Value, scale: Value, shift: Value = None, bias: Value = None
) -> Value:
    total = x + skip if bias is None else x + skip + bias
    y = layer_normalisation(total, -1, call.get("epsilon", 1e-12), scale, shift)
    if call.outputs == 1:
        return y
    if call.outputs < 4:
        raise call.unsupported("it gives its mean and deviation, too")
    # Both statistics are for training only, and left out by name; the sum is the fourth.
    return y, np.zeros(0, np.float32), np.zeros(0, np.float32), total
