"""Requests of our own: they warm new replicas up and tell how long answers take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shoal_controlplane.offload.target import CloudModel
from shoal_shared import tensors
from shoal_shared.oip import InferRequest, Tensor

MAX_BYTES = 16 * 1024 * 1024


def blank_request(
    model: CloudModel, items: int, shapes: Mapping[str, tuple[int, ...]]
) -> InferRequest | None:
    """A request of `items` items that are all zero, or empty.

    Free dimensions are as in `shapes`, those of the last request. None where they are not known,
    and where the request would be large."""
    inputs: list[Tensor] = []
    size = 0
    for spec in model.signature.inputs:
        known = shapes.get(spec.name, ())
        shape = list(spec.shape)
        if model.max_batch:
            shape[0] = items
        for axis, length in enumerate(shape):
            if length < 0:
                if len(known) != len(shape):
                    return None
                shape[axis] = known[axis]
        dtype = tensors.NUMPY.get(spec.datatype)
        if dtype is None:
            return None
        size += tensors.element_count(shape, spec.name) * dtype.itemsize
        if size > MAX_BYTES:
            return None
        data = np.zeros(shape, dtype) if dtype.kind != "O" else np.full(shape, b"", dtype)
        inputs.append(Tensor(spec.name, spec.datatype, data))
    return InferRequest(inputs)
