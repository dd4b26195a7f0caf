"""The classification extension: an output as its best classes, `score:index:label`.

Source: Triton Inference Server, protocol extension "classification".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shoal_shared.oip import Tensor


def classify(tensor: Tensor, count: int, labels: Sequence[str], batched: bool) -> Tensor:
    """The `count` best classes of each batch item as BYTES.

    `tensor` holds scores of shape [batch, …] if `batched`, else of any shape; the answer has
    shape [batch, k] or [k], with k = min(count, number of classes). Raises `ValueError` for a
    datatype that has no order.
    """
    if tensor.datatype in ("BYTES", "BF16"):
        raise ValueError(f"output '{tensor.name}' is {tensor.datatype}, which has no classes")
    scores = tensor.data
    shape = (scores.shape[0], math.prod(scores.shape[1:])) if batched and scores.ndim else (1, -1)
    rows = scores.reshape(shape)
    k = min(count, rows.shape[1])
    # NaN sorts last, so it never wins.
    keys = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    out = np.empty((rows.shape[0], k), dtype=object)
    for i, row in enumerate(rows):
        best = np.argsort(-keys[i].astype(np.float64), kind="stable")[:k]
        for j, index in enumerate(best):
            label = f":{labels[index]}" if index < len(labels) else ""
            out[i, j] = f"{float(row[index]):f}:{index}{label}".encode()
    return Tensor(tensor.name, "BYTES", out if batched else out.reshape(k))
