from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.grpc.convert import parse, request_of, response_of
from shoal_controlplane.gateway.grpc.descriptor import message_class
from shoal_shared import tensors
from shoal_shared.oip import InferReply, Tensor
from shoal_shared.tensors import NUMPY, Array

LIMIT = 1024 * 1024
FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def message(*inputs: tuple[str, str, list[int]], raw: list[bytes] | None = None) -> Any:
    request = message_class("ModelInferRequest")(model_name="m", raw_input_contents=raw or [])
    for name, datatype, shape in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    request = message(("x", datatype, shape))
    for field, values in contents.items():
        getattr(request.inputs[0].contents, field).extend(values)
    return request


def refused(request: Any, status: GatewayStatus = GatewayStatus.INVALID) -> str:
    with pytest.raises(GatewayError) as caught:
        request_of(request)
    assert caught.value.status is status
    return str(caught.value)


def arrays(datatype: str) -> st.SearchStrategy[Array]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    if datatype == "BYTES":
        return hnp.arrays(object, shapes, elements=st.binary(max_size=9), fill=st.nothing())
    return hnp.arrays(NUMPY[datatype], shapes)


@pytest.mark.parametrize("datatype", NUMPY)
@given(data=st.data())
def test_raw_inputs_arrive_as_they_were_sent(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    raw = bytes(tensors.to_bytes(datatype, array))
    request = request_of(message(("x", datatype, list(array.shape)), raw=[raw]))
    (tensor,) = request.inputs
    assert tensor.data.shape == array.shape
    assert tensor.data.dtype == NUMPY[datatype]
    assert bytes(tensors.to_bytes(datatype, tensor.data)) == raw


@pytest.mark.parametrize("datatype", FIELDS)
@given(data=st.data())
def test_typed_contents_arrive_as_they_were_sent(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    request = request_of(
        typed(datatype, list(array.shape), **{FIELDS[datatype]: array.ravel().tolist()})
    )
    (tensor,) = request.inputs
    assert tensor.data.dtype == NUMPY[datatype]
    np.testing.assert_array_equal(tensor.data, array)


@pytest.mark.parametrize("datatype", NUMPY)
@given(data=st.data())
def test_outputs_leave_raw_and_in_order(datatype: str, data: st.DataObject) -> None:
    arrays_out = [data.draw(arrays(datatype)) for _ in range(2)]
    outputs = [Tensor(f"y{i}", datatype, array) for i, array in enumerate(arrays_out)]
    response = response_of(InferReply(outputs, "m", "3", "id-1"))
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "id-1")
    assert [o.name for o in response.outputs] == ["y0", "y1"]
    for output, raw, array in zip(
        response.outputs, response.raw_output_contents, arrays_out, strict=True
    ):
        assert (output.datatype, tuple(output.shape)) == (datatype, array.shape)
        assert raw == bytes(tensors.to_bytes(datatype, array))


def test_uint64_is_exact_beyond_the_floats() -> None:
    values = [0, 2**63 + 1, 2**64 - 1]
    tensor = request_of(typed("UINT64", [3], uint64_contents=values)).inputs[0]
    assert tensor.data.tolist() == values


def test_raw_input_is_a_view() -> None:
    tensor = request_of(message(("x", "FP32", [2]), raw=[bytes(8)])).inputs[0]
    assert tensor.data.base is not None
    assert not tensor.data.flags.writeable


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (message(("x", "FP32", [2]), raw=[bytes(8), b""]), "1 inputs, but 2 raw_input_contents"),
        (message(("x", "FP32", [1]), ("y", "FP32", [1]), raw=[bytes(4)]), "2 inputs, but 1"),
        (message(("x", "FP32", [2]), raw=[bytes(7)]), "has 7 bytes"),
        (message(("x", "FP32", [-1]), raw=[b""]), "negative dimension"),
        (message(("x", "FP31", [1]), raw=[bytes(4)]), "unknown datatype"),
        (message(("x", "FP31", [1])), "unknown datatype"),
        (message(("x", "BOOL", [1]), raw=[b"\2"]), "other than 0 and 1"),
        (message(("x", "BYTES", [1]), raw=[b"\5\0\0\0abc"]), "ends within element 0"),
        (message(("x", "UINT8", [1] * 100), raw=[b"a"]), "dimension"),
        (message(("x", "UINT8", [0, 2**62, 2**62]), raw=[b""]), "too large a shape"),
        (message(("x", "FP32", [2])), "has 0 elements"),
        (message(*[(f"x{i}", "FP32", [0]) for i in range(1025)]), "more than 1024"),
        (typed("FP16", [1], fp32_contents=[1.0]), "raw_input_contents only"),
        (typed("BF16", [1], fp32_contents=[1.0]), "raw_input_contents only"),
        (typed("FP32", [1], fp64_contents=[1.0]), "belongs in fp32_contents"),
        (typed("INT64", [1], int_contents=[1], int64_contents=[1]), "belongs in int64_contents"),
        (typed("INT8", [2], int_contents=[0, 128]), "range of INT8"),
        (typed("UINT16", [1], uint_contents=[65536]), "range of UINT16"),
        (typed("INT32", [3], int_contents=[1, 2]), "has 2 elements"),
        (typed("INT32", [1] * 100, int_contents=[1]), "dimension"),
    ],
)
def test_contradictions_are_refused(request_: Any, part: str) -> None:
    text = refused(request_)
    assert part in text
    assert "\n" not in text


def test_raw_and_typed_do_not_mix() -> None:
    request = typed("FP32", [1], fp32_contents=[1.0])
    request.raw_input_contents.append(bytes(4))
    assert "although raw_input_contents is set" in refused(request)


def test_no_inputs_at_all_is_for_the_model_to_judge() -> None:
    assert request_of(message()).inputs == []


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_shared_memory_is_refused(side: str) -> None:
    request = message(("x", "FP32", [0]))
    request.outputs.add(name="y")
    getattr(request, side)[0].parameters["shared_memory_region"].string_param = "r"
    assert "shared memory" in refused(request, GatewayStatus.UNSUPPORTED)


def test_parameters_keep_their_types() -> None:
    request = message()
    request.parameters["b"].bool_param = False
    request.parameters["i"].int64_param = -1
    request.parameters["u"].uint64_param = 2**64 - 1
    request.parameters["s"].string_param = ""
    request.parameters["d"].double_param = 0.5
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    read = request_of(request)
    assert read.parameters == {"b": False, "i": -1, "u": 2**64 - 1, "s": "", "d": 0.5}
    assert type(read.parameters["b"]) is bool

    reply = InferReply([], parameters={"b": True, "i": 3, "s": "t", "d": 0.5, "l": [1], "n": 2**70})
    parameters = response_of(reply).parameters
    assert parameters["b"].bool_param is True
    assert parameters["i"].int64_param == 3
    assert parameters["s"].string_param == "t"
    assert parameters["d"].double_param == 0.5
    assert parameters["l"].string_param == "[1]"
    assert parameters["n"].string_param == str(2**70)


def test_parameter_without_a_value_is_refused() -> None:
    request = message()
    request.parameters["p"].SetInParent()
    assert "'p' has no value" in refused(request)


def test_requested_outputs_and_classification() -> None:
    request = message()
    request.id = "7"
    request.outputs.add(name="a")
    request.outputs.add(name="b").parameters["classification"].int64_param = 3
    read = request_of(request)
    assert [(o.name, o.classification) for o in read.outputs] == [("a", 0), ("b", 3)]
    assert read.id == "7"
    assert request_of(message()).id is None


@pytest.mark.parametrize(
    "choice", [{"int64_param": -1}, {"string_param": "3"}, {"bool_param": True}]
)
def test_wrong_number_of_classes_is_refused(choice: dict[str, Any]) -> None:
    request = message()
    parameter = request.outputs.add(name="y").parameters["classification"]
    for field, value in choice.items():
        setattr(parameter, field, value)
    assert "'y' needs a number of classes" in refused(request)


@given(st.binary(max_size=200))
def test_parse_answers_any_bytes_with_a_message_or_a_sentence(data: bytes) -> None:
    try:
        request_of(parse("ModelInferRequest", data, LIMIT))
    except GatewayError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, bytes])
def test_parse_inflates(pack: Any) -> None:
    request = message(("x", "FP32", [500]), raw=[bytes(2000)])
    assert parse("ModelInferRequest", pack(request.SerializeToString()), LIMIT) == request


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_is_refused_before_it_fills_the_memory(pack: Any) -> None:
    bomb = pack(bytes(64 * LIMIT))
    tracemalloc.start()
    try:
        with pytest.raises(GatewayError) as caught:
            parse("ModelInferRequest", bomb, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status is GatewayStatus.TOO_LARGE
    assert peak < 4 * LIMIT


@pytest.mark.parametrize(("pack", "header"), [(gzip.compress, 10), (zlib.compress, 2)])
def test_broken_compression_is_refused(pack: Any, header: int) -> None:
    packed = pack(message(("x", "FP32", [500]), raw=[bytes(2000)]).SerializeToString())
    for broken, part in (
        (packed[:-6], "cut off"),
        (packed[:header] + b"\xff" * 9, "cannot be decompressed"),
        (pack(b"\xff\xff"), "not a message"),
    ):
        with pytest.raises(GatewayError, match=part) as caught:
            parse("ModelInferRequest", broken, LIMIT)
        assert caught.value.status is GatewayStatus.INVALID
