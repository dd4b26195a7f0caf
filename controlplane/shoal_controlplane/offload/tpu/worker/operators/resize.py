"""Resizing by interpolation: each axis by itself, with weights that are known while compiling."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, axis_of, operator

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@operator("Upsample", since=7, attributes="scales", only={"mode": ("nearest", "linear")})
def _upsample_by_attribute(call: Call, x: Value) -> Value:
    return _upsampled(call, x, list(call.get("scales")))


@operator("Upsample", since=9, only={"mode": ("nearest", "linear")})
def _upsample(call: Call, x: Value, scales: Value) -> Value:
    return _upsampled(call, x, [float(s) for s in call.constant(scales, "scales")])


def _upsampled(call: Call, x: Value, scales: list[float]) -> Value:
    sizes = [math.floor(n * scale) for n, scale in zip(x.shape, scales, strict=True)]
    axes = list(range(x.ndim))
    return _resized(call, x, axes, sizes, scales, "asymmetric", "floor")


@operator(
    "Resize",
    since=10,
    only={"mode": ("nearest", "linear")},
)
def _resize_by_scales(call: Call, x: Value, scales: Value) -> Value:
    return _upsampled(call, x, [float(s) for s in call.constant(scales, "scales")])


@operator(
    "Resize",
    since=11,
    attributes="axes cubic_coeff_a exclude_outside extrapolation_value",
    only={
        "antialias": (0,),
        "coordinate_transformation_mode": _COORDINATES,
        "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
        "mode": ("nearest", "linear", "cubic"),
        "nearest_mode": _NEAREST,
    },
)
def _resize(
    call: Call, x: Value, roi: Value = None, scales: Value = None, sizes: Value = None
) -> Value:
    axes = [axis_of(axis, x.ndim) for axis in call.get("axes") or range(x.ndim)]
    lengths = [x.shape[axis] for axis in axes]
    if sizes is not None and sizes.size:
        wanted = call.integers(sizes, "sizes")
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        factors = [to / n for to, n in zip(wanted, lengths, strict=True)]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            wanted = [math.floor(n * factor + 0.5) for n in lengths]
            factors = [factor] * len(axes)
    elif scales is not None:
        factors = [float(s) for s in call.constant(scales, "scales").reshape(-1)]
        wanted = [math.floor(n * factor) for n, factor in zip(lengths, factors, strict=True)]
    else:
        raise ValueError("it has neither scales nor sizes")
    return _resized(
        call,
        x,
        axes,
        wanted,
        factors,
        call.get("coordinate_transformation_mode", "half_pixel"),
        call.get("nearest_mode", "round_prefer_floor"),
    )


def _resized(
    call: Call,
    x: Value,
    axes: list[int],
    sizes: list[int],
    scales: list[float],
    coordinates: str,
    nearest: str,
) -> Value:
    mode = call.get("mode", "nearest")
    dtype = x.dtype
    y = jnp.asarray(x)
    for axis, size, scale in zip(axes, sizes, scales, strict=True):
        length = x.shape[axis]
        if size == length and scale == 1:
            continue
        places = _places(size, length, scale, coordinates)
        if mode == "nearest":
            y = jnp.take(y, _nearest(places, length, nearest), axis)
            continue
        taps, weights = (
            _linear(places, length)
            if mode == "linear"
            else _cubic(
                places, length, call.get("cubic_coeff_a", -0.75), call.get("exclude_outside", 0)
            )
        )
        shape = [1] * y.ndim
        shape[axis] = size
        y = sum(
            jnp.take(y, tap, axis) * weight.astype(np.float32).reshape(shape)
            for tap, weight in zip(taps, weights, strict=True)
        )
    return y.astype(dtype)


def _places(size: int, length: int, scale: float, coordinates: str) -> Floats:
    """Where each of `size` results lies along the `length` originals. In float32, as elsewhere:
    at a half the rounding decides between neighbours."""
    out = np.arange(size, dtype=np.float32)
    factor = np.float32(scale)
    half = np.float32(0.5)
    if coordinates == "align_corners":
        steps = np.float32(length - 1)
        places = out * steps / np.float32(size - 1) if size > 1 else np.zeros(1, np.float32)
    elif coordinates == "asymmetric":
        places = out / factor
    elif coordinates == "pytorch_half_pixel" and size == 1:
        places = np.zeros(1, np.float32)
    else:
        places = (out + half) / factor - half
        if coordinates == "half_pixel_symmetric":
            # What was rounded off the size is taken off both ends.
            centre = np.float32(length / 2)
            places = places + centre * (1 - np.float32(size) / (factor * np.float32(length)))
    return places.astype(np.float64)


def _nearest(places: Floats, length: int, mode: str) -> Integers:
    if mode == "floor":
        index = np.floor(places)
    elif mode == "ceil":
        index = np.ceil(places)
    elif mode == "round_prefer_floor":
        index = np.ceil(places - 0.5)
    else:
        index = np.floor(places + 0.5)
    return np.clip(index, 0, length - 1).astype(np.int64)


def _linear(places: Floats, length: int) -> tuple[list[Integers], list[Floats]]:
    inside = np.clip(places, 0, length - 1)
    low = np.floor(inside).astype(np.int64)
    part = inside - low
    return [low, np.minimum(low + 1, length - 1)], [1 - part, part]


def _cubic(
    places: Floats, length: int, a: float, exclude: int
) -> tuple[list[Integers], list[Floats]]:
    first = np.floor(places).astype(np.int64) - 1
    taps, weights = [], []
    for i in range(4):
        tap = first + i
        far = np.abs(places - tap)
        weight = np.where(
            far <= 1,
            ((a + 2) * far - (a + 3)) * far * far + 1,
            ((a * far - 5 * a) * far + 8 * a) * far - 4 * a,
        )
        if exclude:
            weight = np.where((tap < 0) | (tap >= length), 0, weight)
        taps.append(np.clip(tap, 0, length - 1))
        weights.append(weight)
    if exclude:
        total = np.sum(weights, axis=0)
        weights = [weight / total for weight in weights]
    return taps, weights
