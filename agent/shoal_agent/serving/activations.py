"""What a message between the stages of a plan holds, checked; pure.

It is an Open Inference Protocol request. Its header names the whole model, and these parameters
travel beside the tensors: `timeout` (µs left when it was sent), `epoch` of the plan, `trace` with
one entry [device, wait µs, service µs] for each stage so far, and `scales` of compressed tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal_shared.activations import checked_scales, restore
from shoal_shared.oip import InferRequest, OipError, Tensor
from shoal_shared.tensors import Array

Step = tuple[str, int, int]
"""A stage that a request went through: device, µs of waiting and µs of pure compute."""

_MAX_STEPS = 1000
_MAX_NAME = 64
_MAX_US = 2**53
_BF16_INFINITY = 0x7F80


@dataclass(frozen=True, slots=True)
class Activations:
    """The tensors of a message by name, as they arrived, and the scales of compressed ones."""

    tensors: Mapping[str, Tensor]
    scales: Mapping[str, float]
    trace: tuple[Step, ...]

    @classmethod
    def of(cls, request: InferRequest) -> Activations:
        """Raises `OipError` with one sentence."""
        tensors = {tensor.name: tensor for tensor in request.inputs}
        if len(tensors) != len(request.inputs):
            raise OipError("a tensor is given more than once")
        scales = checked_scales(request.parameters.get("scales", {}), request.inputs)
        return cls(tensors, scales, _checked_trace(request.parameters.get("trace", [])))

    def inputs(self, names: Iterable[str]) -> list[Tensor]:
        """Those of the tensors that are there, ready to be used."""
        return [self.restored(self.tensors[name]) for name in names if name in self.tensors]

    def passes(self, names: Iterable[str]) -> list[Tensor]:
        """Tensors as they arrived. Raises `OipError` if one is missing."""
        missing = [name for name in names if name not in self.tensors]
        if missing:
            raise OipError(f"tensor '{missing[0][:80]}', which later stages need, is missing")
        return [self.tensors[name] for name in names]

    def restored(self, tensor: Tensor) -> Tensor:
        """A tensor of this message in the datatype that it was computed in."""
        scale = self.scales.get(tensor.name)
        return tensor if scale is None else restore(tensor, scale)


def computed_nan(inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> bool:
    """Whether NaN came out although none went in."""
    return any(map(_has_nan, outputs)) and not any(map(_has_nan, inputs))


def _has_nan(tensor: Tensor) -> bool:
    data: Array = tensor.data
    if not data.size:
        return False
    if tensor.datatype == "BF16":
        return int(np.bitwise_and(data, 0x7FFF).max()) > _BF16_INFINITY
    if data.dtype.kind != "f":
        return False
    with np.errstate(invalid="ignore"):
        # One pass without a copy: the least of numbers with a NaN among them is NaN.
        return bool(np.isnan(data.min()))


def _checked_trace(value: Any) -> tuple[Step, ...]:
    if not isinstance(value, list) or len(value) > _MAX_STEPS or not all(map(_is_step, value)):
        raise OipError("parameter 'trace' must list [device, wait µs, service µs]")
    return tuple((device, wait, service) for device, wait, service in value)


def _is_step(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and len(value[0]) <= _MAX_NAME
        and all(type(us) is int and 0 <= us < _MAX_US for us in value[1:])
    )
