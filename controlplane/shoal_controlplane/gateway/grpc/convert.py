"""Between the gRPC messages and the gateway's own requests and replies.

Source: Open Inference Protocol v2 (gRPC), "Inference" and "Tensor Data".
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.grpc.descriptor import message_class
from shoal_shared import tensors
from shoal_shared.oip import MAX_TENSORS, InferReply, InferRequest, RequestedOutput, Tensor
from shoal_shared.tensors import Array

FINAL_RESPONSE: Final = "triton_final_response"
EMPTY_FINAL_RESPONSE: Final = "triton_enable_empty_final_response"

_ModelInferResponse = message_class("ModelInferResponse")

_TYPED: Final[dict[str, tuple[str, np.dtype[Any]]]] = {
    "BOOL": ("bool_contents", np.dtype("?")),
    "INT8": ("int_contents", np.dtype("<i4")),
    "INT16": ("int_contents", np.dtype("<i4")),
    "INT32": ("int_contents", np.dtype("<i4")),
    "INT64": ("int64_contents", np.dtype("<i8")),
    "UINT8": ("uint_contents", np.dtype("<u4")),
    "UINT16": ("uint_contents", np.dtype("<u4")),
    "UINT32": ("uint_contents", np.dtype("<u4")),
    "UINT64": ("uint64_contents", np.dtype("<u8")),
    "FP32": ("fp32_contents", np.dtype("<f4")),
    "FP64": ("fp64_contents", np.dtype("<f8")),
    "BYTES": ("bytes_contents", np.dtype("O")),
}
"""Datatype -> (field of InferTensorContents, type of its elements). The rest travels raw only."""


def parse(name: str, data: bytes, max_bytes: int) -> Any:
    """The message `name` out of its bytes on the wire, which may be compressed.

    Raises `GatewayError`: INVALID for what is not such a message, TOO_LARGE if it inflates to
    more than `max_bytes`.
    """
    try:
        return message_class(name).FromString(_inflated(data, max_bytes))
    except DecodeError:
        raise _invalid(f"the bytes are not a message of type {name}") from None


def request_of(message: Any) -> InferRequest:
    """The request in a ModelInferRequest; raw inputs are views, without a copy of their own.

    Raises `GatewayError` with one sentence for anything that breaks the protocol.
    """
    if len(message.inputs) > MAX_TENSORS or len(message.outputs) > MAX_TENSORS:
        raise _invalid(f"the request has more than {MAX_TENSORS} inputs or outputs")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise _invalid(
            f"the request has {len(message.inputs)} inputs, but {len(raw)} raw_input_contents"
        )
    inputs: list[Tensor] = []
    for i, tensor in enumerate(message.inputs):
        _reject_shared_memory(f"input '{tensor.name}'", tensor.parameters)
        if raw and tensor.HasField("contents"):
            raise _invalid(f"input '{tensor.name}' has contents although raw_input_contents is set")
        shape = tuple(tensor.shape)
        try:
            if raw:
                array = tensors.from_bytes(tensor.name, tensor.datatype, shape, raw[i])
            else:
                array = _typed(tensor.name, tensor.datatype, shape, tensor.contents)
        except tensors.TensorError as error:
            raise _invalid(str(error)) from None
        inputs.append(Tensor(tensor.name, tensor.datatype, array))
    parameters = parameters_of(message.parameters)
    parameters.pop(EMPTY_FINAL_RESPONSE, None)
    return InferRequest(
        inputs,
        [_requested(output) for output in message.outputs],
        message.model_name,
        message.model_version,
        message.id or None,
        parameters,
    )


def response_of(reply: InferReply) -> Any:
    """The ModelInferResponse of a reply: every output in raw_output_contents, in order."""
    response = _ModelInferResponse(
        model_name=reply.model_name, model_version=reply.model_version, id=reply.id or ""
    )
    for key, value in reply.parameters.items():
        set_parameter(response, key, value)
    for output in reply.outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.data.shape)
        response.raw_output_contents.append(bytes(tensors.to_bytes(output.datatype, output.data)))
    return response


def parameters_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """Typed values of a map of InferParameter (or ModelRepositoryParameter)."""
    values: dict[str, Any] = {}
    for key, parameter in message.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise _invalid(f"parameter '{key}' has no value")
        values[key] = getattr(parameter, choice)
    return values


def set_parameter(response: Any, key: str, value: Any) -> None:
    """Set a parameter of a response; what is no scalar travels as its JSON text."""
    parameter = response.parameters[key]
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value if isinstance(value, str) else json.dumps(value)


def _inflated(data: bytes, max_bytes: int) -> bytes:
    # gRPC's own inflation checks the size only after it has filled the memory, so the server
    # turns it off and gets compressed messages as they are. No message of this service starts
    # with these bytes: as a protobuf tag 0x1f is illegal, and 0x78 is field 15, which none has.
    gzip = data[:2] == b"\x1f\x8b"
    deflate = len(data) > 1 and data[0] == 0x78 and (data[0] << 8 | data[1]) % 31 == 0
    if not gzip and not deflate:
        return data
    inflater = zlib.decompressobj(wbits=47)
    try:
        inflated = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise _invalid(f"the message cannot be decompressed: {error}") from None
    if len(inflated) > max_bytes:
        raise GatewayError(
            GatewayStatus.TOO_LARGE,
            f"the decompressed message is larger than the limit of {max_bytes} bytes",
        )
    if not inflater.eof:
        raise _invalid("the compressed message is cut off")
    return inflated


def _typed(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Array:
    """Array out of typed contents, checked against datatype and shape."""
    if datatype not in _TYPED:
        if datatype in tensors.NUMPY:
            raise _invalid(
                f"input '{name}' is {datatype}, which travels in raw_input_contents only"
            )
        raise _invalid(f"input '{name}' has the unknown datatype {datatype[:20]!r}")
    field, element = _TYPED[datatype]
    for other, _ in contents.ListFields():
        if other.name != field:
            raise _invalid(f"input '{name}' is {datatype}, so its data belongs in {field}")
    values = getattr(contents, field)
    count = tensors.element_count(shape, name)
    if len(values) != count:
        raise _invalid(
            f"input '{name}' has {len(values)} elements, but its shape {list(shape)} needs {count}"
        )
    array: Array = np.fromiter(values, element, count)
    dtype = tensors.NUMPY[datatype]
    if dtype.itemsize < element.itemsize and count:
        info = np.iinfo(dtype)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise _invalid(f"input '{name}' has data outside the range of {datatype}")
    return array.astype(dtype, copy=False).reshape(shape)


def _requested(output: Any) -> RequestedOutput:
    _reject_shared_memory(f"output '{output.name}'", output.parameters)
    count = parameters_of(output.parameters).get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise _invalid(f"output '{output.name}' needs a number of classes, 0 or more")
    return RequestedOutput(output.name, True, count)


def _reject_shared_memory(what: str, parameters: Iterable[str]) -> None:
    if "shared_memory_region" in parameters:
        raise GatewayError(
            GatewayStatus.UNSUPPORTED, f"{what} is in shared memory, which is not supported"
        )


def _invalid(message: str) -> GatewayError:
    return GatewayError(GatewayStatus.INVALID, message)
