"""How float tensors travel between the stages of a plan: in fewer bits where that is allowed.

A compressed tensor is FP16 or INT8 on the wire, and FP32 again after `restore`: its values times
one scale per tensor. The scales travel beside the tensors, and name those that are compressed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from shoal_shared.oip import OipError, Tensor

COMPRESSIONS = ("", "fp16", "int8")
"""As they are; FP16, off by at most 2^-11 of a value or 2^-25; or INT8 with one scale per tensor,
off by at most half of the largest magnitude's 127th part."""

FP16_MAX = 65504.0
_INT8_STEPS = 127
# Outside of these a scale or its inverse is not a normal FP32 number.
_INT8_LEAST, _INT8_MOST = 1e-30, 1e38


def compress(
    tensors: Iterable[Tensor], compression: str, scales: Mapping[str, float]
) -> tuple[list[Tensor], dict[str, float]]:
    """Tensors as they are sent on, and the scales of those that are compressed.

    `scales` are those of tensors that arrived compressed: they travel on unchanged. So does what
    is not FP32, and what the compression cannot hold: NaN, infinities, magnitudes out of range.
    """
    out: list[Tensor] = []
    kept: dict[str, float] = {}
    for tensor in tensors:
        scale = scales.get(tensor.name)
        if scale is None and compression:
            sent, scale = _compressed(tensor, compression)
        else:
            sent = tensor
        if scale is not None:
            kept[tensor.name] = scale
        out.append(sent)
    return out, kept


def restore(tensor: Tensor, scale: float) -> Tensor:
    """The FP32 tensor that was compressed with `scale`."""
    data = tensor.data.astype(np.float32)
    if scale != 1:
        with np.errstate(over="ignore"):
            data *= np.float32(scale)
    return Tensor(tensor.name, "FP32", data)


def checked_scales(value: object, tensors: Collection[Tensor]) -> dict[str, float]:
    """Scales as they arrived beside `tensors`. Raises `OipError` for what no sender gives."""
    if not isinstance(value, dict):
        raise OipError("parameter 'scales' must map names of tensors to numbers")
    datatypes = {tensor.name: tensor.datatype for tensor in tensors}
    for name, scale in value.items():
        if datatypes.get(name) not in ("FP16", "INT8"):
            raise OipError(f"parameter 'scales' names '{str(name)[:80]}', which is not compressed")
        if type(scale) not in (int, float) or not 0 < scale <= _INT8_MOST:
            raise OipError(f"the scale of '{str(name)[:80]}' is not a positive number")
    return value


def _compressed(tensor: Tensor, compression: str) -> tuple[Tensor, float | None]:
    data = tensor.data
    if tensor.datatype != "FP32" or not data.size:
        return tensor, None
    with np.errstate(invalid="ignore"):
        # Two passes without a copy; NaN comes through both.
        peak = max(abs(float(data.min())), abs(float(data.max())))
    if math.isnan(peak):
        return tensor, None
    if compression == "fp16":
        if peak > FP16_MAX:
            return tensor, None
        return Tensor(tensor.name, "FP16", data.astype(np.float16)), 1.0
    if peak == 0:
        return Tensor(tensor.name, "INT8", np.zeros(data.shape, np.int8)), 1.0
    if not _INT8_LEAST <= peak <= _INT8_MOST:
        return tensor, None
    steps = data.astype(np.float32)
    steps *= np.float32(_INT8_STEPS / peak)
    np.rint(steps, out=steps)
    return Tensor(tensor.name, "INT8", steps.astype(np.int8)), peak / _INT8_STEPS
