"""Arithmetic, logic and comparison, element by element with numpy's broadcasting; casts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.lazy import jax, jnp, lax
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Run, Value, operator

# ONNX's number of an element type -> its name in numpy; strings, complex numbers and those of less
# than eight bits are lacking.
ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}

# ONNX's operator -> the function of this name in numpy and in JAX's numpy.
_SAME = {
    "Abs": "abs",
    "Neg": "negative",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "rint",  # halves to even, as ONNX
    "Sign": "sign",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Asin": "arcsin",
    "Acos": "arccos",
    "Atan": "arctan",
    "Sinh": "sinh",
    "Cosh": "cosh",
    "Tanh": "tanh",
    "Asinh": "arcsinh",
    "Acosh": "arccosh",
    "Atanh": "arctanh",
    "IsNaN": "isnan",
    "Not": "logical_not",
    "BitwiseNot": "invert",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}
_SAME_SINCE_7 = {
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "Equal": "equal",
    "Less": "less",
    "Greater": "greater",
    "LessOrEqual": "less_equal",
    "GreaterOrEqual": "greater_equal",
    "Where": "where",
}


def element_type(number: int) -> np.dtype[Any]:
    """numpy's type for one of ONNX's that is in `ELEMENT_TYPES`."""
    name = ELEMENT_TYPES[number]
    # Of JAX: numpy has no bfloat16.
    return np.dtype(jnp.bfloat16 if name == "bfloat16" else name)


def _named(function: str) -> Run:
    def run(call: Call, *inputs: Value) -> Value:
        return getattr(call.xp, function)(*inputs)

    return run


for _name, _function in _SAME.items():
    operator(_name, since=6)(_named(_function))
# Before opset 7 broadcasting had attributes of its own.
for _name, _function in _SAME_SINCE_7.items():
    operator(_name, since=7)(_named(_function))


@operator("Reciprocal", since=6)
def _reciprocal(call: Call, x: Value) -> Value:
    return 1 / x


@operator("Div", since=7)
def _div(call: Call, a: Value, b: Value) -> Value:
    if np.issubdtype(a.dtype, np.integer):
        # Towards zero, as in C. No detour over floats: they do not hold all of int64.
        quotient = call.xp.floor_divide(a, b)
        inexact = call.xp.not_equal(quotient * b, a)
        return (quotient + (inexact & ((a < 0) ^ (b < 0)))).astype(a.dtype)
    return call.xp.divide(a, b)


@operator("Mod", since=10, attributes="fmod")
def _mod(call: Call, a: Value, b: Value) -> Value:
    return call.xp.fmod(a, b) if call.get("fmod", 0) else call.xp.mod(a, b)


@operator("Pow", since=7)
def _pow(call: Call, base: Value, exponent: Value) -> Value:
    if base.dtype != exponent.dtype:
        wide = np.promote_types(base.dtype, exponent.dtype)
        return call.xp.power(base.astype(wide), exponent.astype(wide)).astype(base.dtype)
    return call.xp.power(base, exponent)


@operator("Erf", since=9)
def _erf(call: Call, x: Value) -> Value:
    return lax.erf(x)


@operator("IsInf", since=10, attributes="detect_negative detect_positive")
def _isinf(call: Call, x: Value) -> Value:
    xp = call.xp
    found = xp.zeros(x.shape, bool)
    if call.get("detect_negative", 1):
        found = found | xp.isneginf(x)
    if call.get("detect_positive", 1):
        found = found | xp.isposinf(x)
    return found


@operator("BitShift", since=11, only={"direction": ("LEFT", "RIGHT")})
def _bit_shift(call: Call, x: Value, by: Value) -> Value:
    left = call.get("direction") == "LEFT"
    return call.xp.left_shift(x, by) if left else call.xp.right_shift(x, by)


@operator("Max", since=8)
def _max(call: Call, *inputs: Value) -> Value:
    return functools.reduce(call.xp.maximum, inputs)


@operator("Min", since=8)
def _min(call: Call, *inputs: Value) -> Value:
    return functools.reduce(call.xp.minimum, inputs)


@operator("Sum", since=8)
def _sum(call: Call, *inputs: Value) -> Value:
    return functools.reduce(call.xp.add, inputs)


@operator("Mean", since=8)
def _mean(call: Call, *inputs: Value) -> Value:
    total = functools.reduce(call.xp.add, inputs)
    return (total / len(inputs)).astype(total.dtype)


@operator("Clip", since=6, attributes="min max")
def _clip_by_attributes(call: Call, x: Value) -> Value:
    return _clip(call, x, call.get("min"), call.get("max"))


@operator("Clip", since=11)
def _clip(call: Call, x: Value, low: Value = None, high: Value = None) -> Value:
    # The upper bound wins where they cross.
    if low is not None:
        x = call.xp.maximum(x, call.xp.asarray(low, x.dtype))
    if high is not None:
        x = call.xp.minimum(x, call.xp.asarray(high, x.dtype))
    return x


@operator("PRelu", since=7)
def _prelu(call: Call, x: Value, slope: Value) -> Value:
    return call.xp.where(x < 0, x * slope, x)


@operator("Cast", since=6, attributes="saturate round_mode", only={"to": tuple(ELEMENT_TYPES)})
def _cast(call: Call, x: Value) -> Value:
    return _to(call, x, element_type(call.get("to")))


@operator("CastLike", since=15, attributes="saturate round_mode")
def _cast_like(call: Call, x: Value, like: Value) -> Value:
    return _to(call, x, like.dtype)


@operator("Identity")
def _identity(call: Call, x: Value) -> Value:
    return x


def _to(call: Call, x: Value, dtype: np.dtype[Any]) -> Value:
    if not call.known:
        return jax.numpy.asarray(x).astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        return x.astype(dtype)


def wide(x: Value) -> Value:
    """Half precision as float32, for sums; others as they are."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
