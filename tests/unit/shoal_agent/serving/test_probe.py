from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.serving.service import InferenceService
from shoal_shared import oip
from shoal_shared.linkprobe import LINK_MODEL, MAX_REPLY_BYTES
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.status import InferCode


def probe(sent_bytes: int, **parameters: Any) -> tuple[InferReply, int]:
    """The reply of a device without any model, and the size of what was sent."""
    data = Tensor("anything", "UINT8", np.zeros(sent_bytes, np.uint8))
    request = InferRequest([data], [], LINK_MODEL, "", "seven", parameters)
    buffers, header_length = oip.encode_request(request)
    payload = b"".join(buffers)
    replies: list[InferReply] = []
    service = InferenceService(RuntimeRegistry([]))
    service.handle(
        payload, header_length, None, lambda b, n: replies.append(oip.decode_reply(b"".join(b), n))
    )
    (reply,) = replies
    return reply, len(payload)


@pytest.mark.parametrize("size", [0, 1, 1000, MAX_REPLY_BYTES])
def test_it_answers_at_once_with_as_many_bytes_as_asked_for(size: int) -> None:
    reply, sent = probe(500, reply_bytes=size)
    (data,) = reply.outputs
    assert (data.name, data.datatype, data.data.shape) == ("data", "UINT8", (size,))
    assert reply.parameters == {"queue_depth": 0, "received_bytes": sent}
    assert (reply.error, reply.id, reply.model_name) == ("", "seven", LINK_MODEL)


def test_nothing_is_asked_for_without_the_parameter() -> None:
    assert probe(0)[0].outputs[0].data.shape == (0,)


@pytest.mark.parametrize("size", [-1, MAX_REPLY_BYTES + 1, 2**63, 1.5, "9", True, None, [1]])
def test_any_other_size_is_refused(size: Any) -> None:
    reply, sent = probe(3, reply_bytes=size)
    assert (reply.code, reply.outputs) == (InferCode.INVALID.value, [])
    assert "'reply_bytes' must be between 0 and 4194304" in reply.error
    assert reply.parameters == {"queue_depth": 0, "received_bytes": sent}
