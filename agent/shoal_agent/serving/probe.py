"""The reserved model `$link`: tells that a device is alive, and how fast its link is."""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal_agent.serving.request import Refusal, Reply, answer, refuse
from shoal_shared.linkprobe import MAX_REPLY_BYTES, REPLY_BYTES
from shoal_shared.oip import InferRequest, Tensor
from shoal_shared.status import InferCode


def answer_probe(
    request: InferRequest, reply: Reply, received_bytes: int, queue_depth: int
) -> None:
    """Send as many bytes as the parameter `reply_bytes` asks for; inputs are only counted."""
    parameters: dict[str, Any] = {"queue_depth": queue_depth, "received_bytes": received_bytes}
    size = request.parameters.get(REPLY_BYTES, 0)
    if type(size) is not int or not 0 <= size <= MAX_REPLY_BYTES:
        text = f"parameter '{REPLY_BYTES}' must be between 0 and {MAX_REPLY_BYTES}"
        refuse(request, reply, Refusal(InferCode.INVALID, text), parameters)
        return
    data = Tensor("data", "UINT8", np.zeros(size, np.uint8))
    answer(request, reply, [data], parameters)
