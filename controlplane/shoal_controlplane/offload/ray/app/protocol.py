"""Open Inference Protocol v2 over HTTP for the one model of an application, without the HTTP.

Source: Open Inference Protocol v2 (REST), "Binary Tensor Data Extension".
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shoal_controlplane.offload.ray.app.arguments import Arguments
from shoal_controlplane.offload.ray.app.model import InputError, RunError
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, OipError
from shoal_shared.tensors import TensorError

DIGEST = "shoal-digest"
"""Header with which a client names the content of the model that it means."""
MAX_BODY = 256 * 1024 * 1024
_JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    content_type: str = _JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def answer_json(content: Any, status: int = 200) -> Answer:
    """An answer with JSON."""
    return Answer(status, json.dumps(content).encode())


def refusal(status: int, sentence: str) -> Answer:
    """An answer that says what is wrong."""
    return answer_json({"error": sentence}, status)


def may_ask(authorization: str | None, token_sha256: str) -> bool:
    """Whether a header `Authorization` shows the token that has this digest."""
    scheme, _, token = (authorization or "").partition(" ")
    found = hashlib.sha256(token.strip().encode()).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(found, token_sha256)


def metadata(arguments: Arguments) -> Answer:
    """Metadata of the model."""
    return answer_json(
        {
            "name": arguments.name,
            "versions": [arguments.version],
            "platform": "onnxruntime_onnx",
            **msgspec.to_builtins(arguments.signature),
        }
    )


def decoded(body: bytes, header_length: str | None) -> InferRequest | Answer:
    """The request in a body, or the answer that refuses it."""
    if header_length is not None and not (header_length.isdecimal() and len(header_length) <= 12):
        return refusal(400, f"{oip.HEADER_LENGTH} is no number")
    try:
        return oip.decode_request(body, None if header_length is None else int(header_length))
    except OipError as error:
        return refusal(400, str(error))


def encoded(request: InferRequest, reply: InferReply, arguments: Arguments) -> Answer:
    """The answer that carries a reply, binary where the request asks for it."""
    every = request.parameters.get("binary_data_output") is True
    flags = {output.name: output.binary for output in request.outputs}
    chosen = [flags.get(tensor.name) for tensor in reply.outputs]
    binary = [every if flag is None else flag for flag in chosen]
    reply.model_name, reply.model_version = arguments.name, arguments.version
    try:
        buffers, length = oip.encode_reply(reply, binary)
    except TensorError as error:
        return refusal(400, str(error))
    body = b"".join(buffers)
    if length is None:
        return Answer(200, body)
    return Answer(200, body, "application/octet-stream", {oip.HEADER_LENGTH: str(length)})


def failed(error: InputError | RunError) -> Answer:
    """The answer for a model that did not answer."""
    return refusal(400 if isinstance(error, InputError) else 500, str(error))
