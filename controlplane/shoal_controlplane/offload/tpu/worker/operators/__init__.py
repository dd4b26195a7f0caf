"""The operators by theme; importing this fills the table."""

from __future__ import annotations

from shoal_controlplane.offload.tpu.worker.operators import (
    activations,
    contrib,
    control,
    convolution,
    elementwise,
    indexing,
    matmul,
    normalisation,
    pooling,
    quantisation,
    recurrent,
    reductions,
    resize,
    shape,
)
from shoal_controlplane.offload.tpu.worker.operators.table import (
    NEWEST_OPSET,
    Call,
    Operator,
    Value,
    entries,
    lookup,
)

__all__ = [
    "NEWEST_OPSET",
    "Call",
    "Operator",
    "Value",
    "activations",
    "contrib",
    "control",
    "convolution",
    "elementwise",
    "entries",
    "indexing",
    "lookup",
    "matmul",
    "normalisation",
    "pooling",
    "quantisation",
    "recurrent",
    "reductions",
    "resize",
    "shape",
]
