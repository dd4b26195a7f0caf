"""Pooling over any number of spatial axes."""

from __future__ import annotations

import math

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.convolution import AUTO_PADS, window_pads
from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp, lax
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, operator

_ATTRIBUTES = "ceil_mode dilations kernel_shape pads strides"


class _Window:
    """Where a pooling's windows lie along each spatial axis."""

    def __init__(self, call: Call, size: tuple[int, ...]) -> None:
        self.size = size
        self.kernel: list[int] = call.get("kernel_shape")
        self.strides: list[int] = call.get("strides") or [1] * len(size)
        self.dilations: list[int] = call.get("dilations") or [1] * len(size)
        self.pads = window_pads(call, size, self.kernel, self.strides, self.dilations)
        # What the last window reaches beyond the padding where the number is rounded up.
        self.beyond = [0] * len(size)
        if call.get("ceil_mode", 0) and call.get("auto_pad", "NOTSET") == "NOTSET":
            self.beyond = [self._beyond(i) for i in range(len(size))]

    def _beyond(self, i: int) -> int:
        before, after = self.pads[i]
        stride = self.strides[i]
        room = self.size[i] + before + after - (self.kernel[i] - 1) * self.dilations[i] - 1
        count = -(-room // stride) + 1
        # A window that starts in the padding at the end does not count.
        if (count - 1) * stride >= self.size[i] + before:
            count -= 1
        return max((count - 1) * stride - room, 0)

    def reduce(self, x: Value, start: Value, function: Value) -> Value:
        """Fold each window; padding counts as `start`."""
        padding = [
            (before, after + more)
            for (before, after), more in zip(self.pads, self.beyond, strict=True)
        ]
        return lax.reduce_window(
            jnp.asarray(x),
            start,
            function,
            (1, 1, *self.kernel),
            (1, 1, *self.strides),
            [(0, 0), (0, 0), *padding],
            window_dilation=(1, 1, *self.dilations),
        )

    def counts(self, padded: bool) -> Value:
        """Elements in each window, those of the padding included or not."""
        total = np.ones(())
        for i, n in enumerate(self.size):
            before, after = self.pads[i]
            reach = (self.kernel[i] - 1) * self.dilations[i]
            room = n + before + after + self.beyond[i] - reach - 1
            starts = np.arange(room // self.strides[i] + 1) * self.strides[i] - before
            places = starts[:, None] + np.arange(self.kernel[i]) * self.dilations[i]
            low, high = (-before, n + after) if padded else (0, n)
            count = ((places >= low) & (places < high)).sum(1)
            total = total[..., None] * count
        return np.maximum(total, 1)


@operator("MaxPool", attributes=_ATTRIBUTES, only={"auto_pad": AUTO_PADS, "storage_order": (0,)})
def _max_pool(call: Call, x: Value) -> Value:
    if call.outputs > 1:
        raise call.unsupported("it gives indices, too")
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    lowest = -jnp.inf if floating else jnp.iinfo(x.dtype).min
    return _Window(call, x.shape[2:]).reduce(x, np.asarray(lowest, x.dtype), lax.max)


@operator(
    "AveragePool", attributes=f"{_ATTRIBUTES} count_include_pad", only={"auto_pad": AUTO_PADS}
)
def _average_pool(call: Call, x: Value) -> Value:
    window = _Window(call, x.shape[2:])
    total = window.reduce(x, np.zeros((), x.dtype), lax.add)
    return total / window.counts(bool(call.get("count_include_pad", 0))).astype(x.dtype)


@operator("LpPool", since=2, attributes=f"{_ATTRIBUTES} p", only={"auto_pad": AUTO_PADS})
def _lp_pool(call: Call, x: Value) -> Value:
    p = call.get("p", 2)
    total = _Window(call, x.shape[2:]).reduce(jnp.abs(x) ** p, np.zeros((), x.dtype), lax.add)
    return total ** (1 / p)


def _spatial(x: Value) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool")
def _global_average_pool(call: Call, x: Value) -> Value:
    if not math.prod(x.shape[2:]):
        raise ValueError("there is nothing to average")
    return jnp.mean(x, _spatial(x), keepdims=True)


@operator("GlobalMaxPool")
def _global_max_pool(call: Call, x: Value) -> Value:
    return jnp.max(x, _spatial(x), keepdims=True)


@operator("GlobalLpPool", since=2, attributes="p")
def _global_lp_pool(call: Call, x: Value) -> Value:
    p = call.get("p", 2)
    return jnp.sum(jnp.abs(x) ** p, _spatial(x), keepdims=True) ** (1 / p)
