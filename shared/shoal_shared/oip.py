"""Open Inference Protocol v2 requests and replies: JSON and the binary tensor extension.

One codec for HTTP and MQTT. On MQTT a request also names its model in the header
(`model_name`, `model_version`, as in the protocol's gRPC form) and always carries binary
tensors; its header length travels in the user property that has the HTTP header's name.

Source: Open Inference Protocol v2 (REST), "Binary Tensor Data Extension".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shoal_shared import tensors
from shoal_shared.tensors import Array, Buffer, TensorError

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_TENSORS = 1024
MAX_TENSOR_NAME = 1024
_ALIGN = 8


class OipError(ValueError):
    """A request or reply that breaks the protocol; the text is one plain sentence."""


@dataclass(slots=True)
class Tensor:
    """A named array. `data` has the tensor's shape; see `tensors.NUMPY` for its type."""

    name: str
    datatype: str
    data: Array


@dataclass(slots=True)
class RequestedOutput:
    """An output that the client asked for. `binary` None means: as the request says."""

    name: str
    binary: bool | None = None
    classification: int = 0


@dataclass(slots=True)
class InferRequest:
    """A request. `parameters` are the protocol's, `timeout` in µs among them."""

    inputs: list[Tensor]
    outputs: list[RequestedOutput] = field(default_factory=list)
    model_name: str = ""
    model_version: str = ""
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class InferReply:
    """A reply: either outputs, or `error` with its `code` (see `status.InferCode`)."""

    outputs: list[Tensor]
    model_name: str = ""
    model_version: str = ""
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    code: str = ""


class _Parameters(msgspec.Struct, omit_defaults=True):
    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: Any = None


class _TensorHeader(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Parameters | None = None
    data: list[Any] | None = None


class _OutputHeader(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: _Parameters | None = None


class _RequestHeader(msgspec.Struct, omit_defaults=True):
    inputs: list[_TensorHeader]
    outputs: list[_OutputHeader] = []
    model_name: str = ""
    model_version: str = ""
    id: str | None = None
    parameters: dict[str, Any] | None = None


class _ReplyHeader(msgspec.Struct, omit_defaults=True):
    model_name: str | None = None
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_TensorHeader] = []
    error: str = ""
    code: str = ""


_request_decoder = msgspec.json.Decoder(_RequestHeader)
_reply_decoder = msgspec.json.Decoder(_ReplyHeader)
_encoder = msgspec.json.Encoder()


def decode_request(body: Buffer, header_length: int | None = None) -> InferRequest:
    """Decode a request of HTTP or MQTT; arrays of binary tensors are views of `body`.

    `header_length` is the length of the JSON part in bytes, None where all is JSON. Raises
    `OipError` with one sentence for anything that breaks the protocol.
    """
    header, blobs = _split(body, header_length)
    try:
        parsed = _request_decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OipError(f"the request is not a valid inference request: {error}") from None
    inputs = _decode_tensors(parsed.inputs, blobs)
    outputs = [_requested(o) for o in parsed.outputs]
    return InferRequest(
        inputs, outputs, parsed.model_name, parsed.model_version, parsed.id, parsed.parameters or {}
    )


def decode_reply(body: Buffer, header_length: int | None = None) -> InferReply:
    """Decode a reply; see `decode_request`."""
    header, blobs = _split(body, header_length)
    try:
        parsed = _reply_decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OipError(f"the reply is not a valid inference reply: {error}") from None
    return InferReply(
        _decode_tensors(parsed.outputs, blobs),
        parsed.model_name or "",
        parsed.model_version or "",
        parsed.id,
        parsed.parameters or {},
        parsed.error,
        parsed.code,
    )


def encode_request(request: InferRequest) -> tuple[list[Buffer], int]:
    """Encode a request with binary inputs: (buffers to join, header length in bytes)."""
    headers, blobs = _encode_tensors(request.inputs, [True] * len(request.inputs))
    outputs = [_OutputHeader(o.name, _output_parameters(o)) for o in request.outputs]
    header = _RequestHeader(
        headers,
        outputs,
        request.model_name,
        request.model_version,
        request.id,
        request.parameters or None,
    )
    return _join(_encoder.encode(header), blobs)


def encode_reply(reply: InferReply, binary: Sequence[bool] = ()) -> tuple[list[Buffer], int | None]:
    """Encode a reply: (buffers to join, header length, or None where all is JSON).

    `binary` tells for each output whether it travels as a blob; left out, all do. Raises
    `TensorError` where JSON cannot carry an output.
    """
    binary = binary or [True] * len(reply.outputs)
    headers, blobs = _encode_tensors(reply.outputs, binary)
    header = _ReplyHeader(
        reply.model_name or None,
        reply.model_version or None,
        reply.id,
        reply.parameters or None,
        headers,
        reply.error,
        reply.code,
    )
    encoded = _encoder.encode(header)
    if not any(binary):
        return [encoded], None
    return _join(encoded, blobs)


def _split(body: Buffer, header_length: int | None) -> tuple[Buffer, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    view = memoryview(body)
    if not 0 <= header_length <= len(view):
        raise OipError(f"{HEADER_LENGTH} is {header_length}, but the body has {len(view)} bytes")
    return view[:header_length], view[header_length:]


def _decode_tensors(headers: list[_TensorHeader], blobs: memoryview) -> list[Tensor]:
    if len(headers) > MAX_TENSORS:
        raise OipError(f"{len(headers)} tensors are more than the limit of {MAX_TENSORS}")
    out: list[Tensor] = []
    at = 0
    for header in headers:
        name, parameters = _checked_name(header.name), header.parameters
        size = None
        if parameters is not None:
            if parameters.shared_memory_region is not None:
                raise OipError(f"tensor '{name}' is in shared memory, which is not supported")
            size = parameters.binary_data_size
        try:
            if size is not None:
                if header.data is not None:
                    raise OipError(f"tensor '{name}' has both data and binary_data_size")
                if size < 0 or at + size > len(blobs):
                    raise OipError(
                        f"tensor '{name}' claims {size} bytes of binary data, "
                        f"but {len(blobs) - at} remain in the body"
                    )
                raw = blobs[at : at + size]
                at += size
                array = tensors.from_bytes(name, header.datatype, header.shape, raw)
            elif header.data is not None:
                array = tensors.from_list(name, header.datatype, header.shape, header.data)
            else:
                raise OipError(f"tensor '{name}' has neither data nor binary_data_size")
        except TensorError as error:
            raise OipError(str(error)) from None
        out.append(Tensor(name, header.datatype, array))
    if at != len(blobs):
        raise OipError(f"{len(blobs) - at} bytes follow the last binary tensor")
    return out


def _encode_tensors(
    outputs: list[Tensor], binary: Sequence[bool]
) -> tuple[list[_TensorHeader], list[Buffer]]:
    headers: list[_TensorHeader] = []
    blobs: list[Buffer] = []
    for tensor, as_blob in zip(outputs, binary, strict=True):
        shape = tensor.data.shape
        if as_blob:
            blob = tensors.to_bytes(tensor.datatype, tensor.data)
            blobs.append(blob)
            parameters = _Parameters(binary_data_size=len(blob))
            headers.append(_TensorHeader(tensor.name, tensor.datatype, shape, parameters))
        else:
            data = tensors.to_list(tensor.name, tensor.datatype, tensor.data)
            headers.append(_TensorHeader(tensor.name, tensor.datatype, shape, None, data))
    return headers, blobs


def _join(header: bytes, blobs: list[Buffer]) -> tuple[list[Buffer], int]:
    # JSON may end in blanks: with them the first blob is aligned for its element type, so that
    # the receiver's view needs no copy.
    header += b" " * (-len(header) % _ALIGN)
    return [header, *blobs], len(header)


def _checked_name(name: str) -> str:
    if len(name) > MAX_TENSOR_NAME:
        raise OipError(f"the name of a tensor has more than {MAX_TENSOR_NAME} characters")
    return name


def _requested(output: _OutputHeader) -> RequestedOutput:
    name, p = _checked_name(output.name), output.parameters
    if p is None:
        return RequestedOutput(name)
    if p.shared_memory_region is not None:
        raise OipError(f"output '{name}' is in shared memory, which is not supported")
    count = p.classification or 0
    if count < 0:
        raise OipError(f"output '{name}' asks for a negative number of classes")
    return RequestedOutput(name, p.binary_data, count)


def _output_parameters(output: RequestedOutput) -> _Parameters | None:
    if output.binary is None and not output.classification:
        return None
    return _Parameters(binary_data=output.binary, classification=output.classification or None)
