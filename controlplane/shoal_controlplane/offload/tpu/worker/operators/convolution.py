"""Convolutions over any number of spatial axes, channels before them (NCHW)."""

from __future__ import annotations

from shoal_controlplane.offload.tpu.worker.operators.lazy import jnp, lax
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, operator

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")

_ATTRIBUTES = "dilations group kernel_shape pads strides"


def window_pads(
    call: Call, size: tuple[int, ...], kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """What comes before and after each spatial axis, by `auto_pad` and `pads`."""
    auto = call.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return [(0, 0)] * len(size)
    if auto == "NOTSET":
        pads = call.get("pads") or [0] * (2 * len(size))
        if len(pads) != 2 * len(size):
            raise ValueError(f"{len(pads)} pads do not fit {len(size)} spatial axes")
        return list(zip(pads[: len(size)], pads[len(size) :], strict=True))
    found = []
    for n, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return found


def convolve(call: Call, x: Value, w: Value, accumulate: Value = None) -> Value:
    """The node's convolution of `x` [N, C, …] with `w` [M, C / group, …]; `accumulate` is the
    type of the sums where it is another one."""
    spatial = x.ndim - 2
    strides = call.get("strides") or [1] * spatial
    dilations = call.get("dilations") or [1] * spatial
    pads = window_pads(call, x.shape[2:], list(w.shape[2:]), strides, dilations)
    return lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(w),
        strides,
        pads,
        rhs_dilation=dilations,
        feature_group_count=call.get("group", 1),
        preferred_element_type=accumulate,
    )


def per_channel(x: Value, rank: int) -> Value:
    """A value a channel, for a tensor of `rank` axes."""
    return x.reshape((1, -1) + (1,) * (rank - 2))


@operator("Conv", attributes=_ATTRIBUTES, only={"auto_pad": AUTO_PADS})
def _conv(call: Call, x: Value, w: Value, bias: Value = None) -> Value:
    y = convolve(call, x, w)
    return y if bias is None else y + per_channel(bias, y.ndim)


@operator(
    "ConvTranspose",
    attributes=f"{_ATTRIBUTES} output_padding output_shape",
    only={"auto_pad": AUTO_PADS},
)
def _conv_transpose(call: Call, x: Value, w: Value, bias: Value = None) -> Value:
    spatial = x.ndim - 2
    size, kernel = x.shape[2:], w.shape[2:]
    strides = call.get("strides") or [1] * spatial
    dilations = call.get("dilations") or [1] * spatial
    extra = call.get("output_padding") or [0] * spatial
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    cut = _transposed_pads(call, size, strides, reach, extra)
    pads = [
        (r - before, r - after + e) for (before, after), r, e in zip(cut, reach, extra, strict=True)
    ]
    groups = call.get("group", 1)
    # [C, M / group, …] -> [M, C / group, …], mirrored.
    inner = w.shape[0] // groups
    split = w.reshape(groups, inner, w.shape[1], *kernel)
    turned = jnp.swapaxes(split, 1, 2).reshape(groups * w.shape[1], inner, *kernel)
    y = lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.flip(turned, tuple(range(2, turned.ndim))),
        [1] * spatial,
        pads,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        feature_group_count=groups,
    )
    return y if bias is None else y + per_channel(bias, y.ndim)


def _transposed_pads(
    call: Call, size: tuple[int, ...], strides: list[int], reach: list[int], extra: list[int]
) -> list[tuple[int, int]]:
    """What the result loses at each end of each spatial axis."""
    auto, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        return window_pads(call, size, [], strides, [])
    if wanted is None:
        wanted = [n * stride for n, stride in zip(size, strides, strict=True)]
    found = []
    for n, stride, r, e, out in zip(size, strides, reach, extra, wanted[-len(size) :], strict=True):
        total = stride * (n - 1) + e + r + 1 - out
        if total < 0:
            # More than there is: zeros at the end.
            found.append((0, total))
            continue
        less, more = total // 2, total - total // 2
        found.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return found
