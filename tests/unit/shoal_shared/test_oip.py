"""Requests and replies of the Open Inference Protocol: what goes in comes out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shoal_shared import oip, tensors
from shoal_shared.oip import InferReply, InferRequest, RequestedOutput, Tensor
from shoal_shared.tensors import NUMPY, TensorError

NAMES = st.text(min_size=1, max_size=8)


@st.composite
def some_tensors(draw: st.DrawFn) -> list[Tensor]:
    out = []
    for datatype in draw(st.lists(st.sampled_from(sorted(NUMPY)), max_size=5)):
        shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        if datatype == "BYTES":
            data = np.empty(shape, dtype=object)
            for index in np.ndindex(shape):
                data[index] = draw(st.binary(max_size=9))
        else:
            data = draw(npst.arrays(NUMPY[datatype], shape))
        out.append(Tensor(draw(NAMES), datatype, data))
    return out


def plain(tensor: Tensor) -> tuple[Any, ...]:
    raw = bytes(tensors.to_bytes(tensor.datatype, tensor.data))
    return tensor.name, tensor.datatype, tensor.data.shape, raw


def joined(buffers: list[Any]) -> bytes:
    return b"".join(bytes(b) for b in buffers)


@given(some_tensors(), st.none() | NAMES, st.dictionaries(NAMES, st.integers(0, 99), max_size=3))
def test_binary_requests_round_trip(
    inputs: list[Tensor], request_id: str | None, parameters: dict[str, Any]
) -> None:
    outputs = [RequestedOutput("y"), RequestedOutput("z", True), RequestedOutput("w", None, 3)]
    request = InferRequest(inputs, outputs, "cat", "7", request_id, parameters)
    buffers, length = oip.encode_request(request)
    back = oip.decode_request(joined(buffers), length)
    assert [plain(t) for t in back.inputs] == [plain(t) for t in inputs]
    assert back.outputs == outputs
    assert (back.model_name, back.model_version, back.id) == ("cat", "7", request_id)
    assert back.parameters == parameters


@given(some_tensors(), st.data())
def test_replies_round_trip_binary_and_json_mixed(
    outputs: list[Tensor], data: st.DataObject
) -> None:
    reply = InferReply(outputs, "cat", "7", "id", {"batch": 2})
    binary = data.draw(st.lists(st.booleans(), min_size=len(outputs), max_size=len(outputs)))
    for i, tensor in enumerate(outputs):
        # JSON holds no NaN and no bytes that are not text; test_tensors covers what it can.
        binary[i] |= tensor.datatype in ("BYTES", "BF16", "FP16", "FP32", "FP64")
    buffers, length = oip.encode_reply(reply, binary)
    assert (length is None) == (not any(binary))
    back = oip.decode_reply(joined(buffers), length)
    assert [plain(t) for t in back.outputs] == [plain(t) for t in outputs]
    assert (back.model_name, back.id, back.parameters) == ("cat", "id", {"batch": 2})
    header = json.loads(joined(buffers)[:length])
    for described, as_blob in zip(header.get("outputs", []), binary, strict=True):
        assert ("data" in described) != as_blob
        assert ("binary_data_size" in described.get("parameters", {})) == as_blob


@pytest.mark.parametrize("name_length", range(9))
def test_the_first_blob_is_aligned(name_length: int) -> None:
    data = np.arange(3, dtype=np.float64)
    request = InferRequest([Tensor("n" * name_length, "FP64", data)], [], "cat", "1")
    buffers, length = oip.encode_request(request)
    assert length % 8 == 0
    back = oip.decode_request(joined(buffers), length)
    assert back.inputs[0].data.flags.aligned


def test_a_blob_after_an_odd_one_is_read_right_though_not_aligned() -> None:
    odd = Tensor("a", "UINT8", np.array([1, 2, 3], np.uint8))
    request = InferRequest([odd, Tensor("b", "FP64", np.array([0.5, -2.0]))])
    buffers, length = oip.encode_request(request)
    back = oip.decode_request(joined(buffers), length)
    assert back.inputs[1].data.tolist() == [0.5, -2.0]
    again, length = oip.encode_request(back)
    assert plain(oip.decode_request(joined(again), length).inputs[1]) == plain(request.inputs[1])


def test_inputs_of_binary_requests_are_views() -> None:
    request = InferRequest([Tensor("x", "FP32", np.zeros(4, np.float32))])
    buffers, length = oip.encode_request(request)
    body = bytearray(joined(buffers))
    back = oip.decode_request(body, length)
    body[length : length + 4] = np.float32(7).tobytes()
    assert back.inputs[0].data[0] == 7


def test_a_request_as_clients_write_it() -> None:
    body = b"""{
      "id": "42", "unknown": [1],
      "parameters": {"priority": 1, "binary_data_output": true},
      "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4.5]],
                  "parameters": {"colour": "red"}},
                 {"name": "s", "datatype": "BYTES", "shape": [1], "data": ["caf\xc3\xa9"]}],
      "outputs": [{"name": "y", "parameters": {"classification": 2, "binary_data": false}}]
    }"""
    request = oip.decode_request(body)
    assert request.id == "42"
    assert request.parameters == {"priority": 1, "binary_data_output": True}
    assert request.inputs[0].data.tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert request.inputs[1].data.tolist() == ["café".encode()]
    assert request.outputs == [RequestedOutput("y", False, 2)]


def test_a_reply_as_kserve_writes_it_has_null_for_what_it_does_not_know() -> None:
    body = (
        b'{"model_name":null,"model_version":null,"id":"7","parameters":null,"outputs":'
        b'[{"name":"y","shape":[1],"datatype":"FP32","parameters":null,"data":[0.5]}]}'
    )
    reply = oip.decode_reply(body)
    assert (reply.model_name, reply.model_version, reply.parameters) == ("", "", {})
    assert reply.outputs[0].data.tolist() == [0.5]


def test_json_and_binary_inputs_mixed() -> None:
    header = {
        "inputs": [
            {"name": "a", "datatype": "INT8", "shape": [1], "data": [7]},
            {"name": "b", "datatype": "INT16", "shape": [1], "parameters": {"binary_data_size": 2}},
            {"name": "c", "datatype": "INT8", "shape": [0], "parameters": {"binary_data_size": 0}},
        ]
    }
    body = json.dumps(header).encode()
    request = oip.decode_request(body + b"\x01\x02", len(body))
    assert [t.data.tolist() for t in request.inputs] == [[7], [0x0201], []]


def test_a_reply_without_binary_outputs_is_all_json() -> None:
    reply = InferReply([Tensor("y", "INT8", np.array([[1], [2]], np.int8))], "cat", "1")
    buffers, length = oip.encode_reply(reply, [False])
    assert length is None
    assert json.loads(joined(buffers)) == {
        "model_name": "cat",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "INT8", "shape": [2, 1], "data": [1, 2]}],
    }


def test_nan_and_infinity_are_null_in_json() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    buffers, _ = oip.encode_reply(InferReply([Tensor("y", "FP32", values)]), [False])
    assert json.loads(joined(buffers))["outputs"][0]["data"] == [None, None, None, 1.0]


def test_bytes_that_json_cannot_carry() -> None:
    reply = InferReply([Tensor("y", "BYTES", np.array([b"\xff\xfe"], dtype=object))])
    with pytest.raises(TensorError, match="ask for binary data"):
        oip.encode_reply(reply, [False])
    buffers, length = oip.encode_reply(reply)
    assert oip.decode_reply(joined(buffers), length).outputs[0].data.tolist() == [b"\xff\xfe"]


def test_error_replies() -> None:
    reply = InferReply([], error="the queue is full", code="overloaded", parameters={"batch": 0})
    buffers, length = oip.encode_reply(reply)
    assert length is None
    assert oip.decode_reply(joined(buffers), length) == reply
