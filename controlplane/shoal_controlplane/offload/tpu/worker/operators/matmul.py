"""Matrix products and attention."""

from __future__ import annotations

import math

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.lazy import jax, jnp
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, operator


@operator("MatMul")
def _matmul(call: Call, a: Value, b: Value) -> Value:
    return call.xp.matmul(a, b)


@operator("Gemm", since=7, attributes="alpha beta transA transB")
def _gemm(call: Call, a: Value, b: Value, c: Value = None) -> Value:
    left = a.T if call.get("transA", 0) else a
    right = b.T if call.get("transB", 0) else b
    product = jnp.matmul(left, right)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if alpha != 1:
        product = (alpha * product).astype(product.dtype)
    if c is None:
        return product
    return product + (c if beta == 1 else (beta * c).astype(c.dtype))


@operator("Einsum", since=12, attributes="equation")
def _einsum(call: Call, *inputs: Value) -> Value:
    return jnp.einsum(call.get("equation"), *inputs)


@operator(
    "Attention",
    since=23,
    attributes="is_causal kv_num_heads q_num_heads scale softcap",
    only={"qk_matmul_output_mode": (0,), "softmax_precision": (1,)},
)
def _attention(
    call: Call,
    q: Value,
    k: Value,
    v: Value,
    mask: Value = None,
    past_key: Value = None,
    past_value: Value = None,
    lengths: Value = None,
) -> Value:
    if call.outputs > 1 or any(x is not None for x in (past_key, past_value, lengths)):
        raise call.unsupported("it keeps keys and values of earlier calls")
    flat = q.ndim == 3
    if flat:
        q, k, v = (
            _heads(x, call.get(name))
            for x, name in ((q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads"))
        )
    groups = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, groups, axis=1) if groups > 1 else x for x in (k, v))
    # The root on either side, as in the definition, keeps half precision within its range.
    root = math.sqrt(call.get("scale") or 1 / math.sqrt(q.shape[-1]))
    scores = jnp.matmul(q * root, jnp.swapaxes(k * root, -1, -2))
    softcap = call.get("softcap", 0.0)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    # After the cap, which would let what is masked come back.
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == np.bool_ else scores + mask
    if call.get("is_causal", 0):
        allowed = np.tril(np.ones(scores.shape[-2:], bool))
        scores = jnp.where(allowed, scores, -jnp.inf)
    # A row that is masked as a whole attends to nothing.
    some = jnp.max(scores, -1, keepdims=True) > -jnp.inf
    y = jnp.matmul(jnp.where(some, jax.nn.softmax(scores, -1), 0), v)
    if flat:
        y = jnp.swapaxes(y, 1, 2).reshape(y.shape[0], y.shape[2], -1)
    return y


def _heads(x: Value, count: int) -> Value:
    """[N, S, heads * D] -> [N, heads, S, D]."""
    return jnp.swapaxes(x.reshape(x.shape[0], x.shape[1], count, -1), 1, 2)
