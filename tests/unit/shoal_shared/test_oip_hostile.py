"""Requests that lie: one sentence as an error, whatever they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_shared import oip
from shoal_shared.oip import MAX_TENSORS, OipError


def tensor(**changes: Any) -> dict[str, Any]:
    described = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]} | changes
    return {k: v for k, v in described.items() if v is not None}


def blob(size: Any, **changes: Any) -> dict[str, Any]:
    return tensor(**{"data": None, "parameters": {"binary_data_size": size}, **changes})


def split(*inputs: dict[str, Any], blobs: bytes = b"", **more: Any) -> tuple[bytes, int]:
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + blobs, len(header)


@pytest.mark.parametrize(
    ("inputs", "blobs", "message"),
    [
        ([blob(8)], b"\0" * 4, "claims 8 bytes of binary data, but 4 remain"),
        ([blob(4), blob(4)], b"\0" * 4, "claims 4 bytes of binary data, but 0 remain"),
        ([blob(2**70)], b"\0" * 4, "but 4 remain"),
        ([blob(-4)], b"\0" * 4, "claims -4 bytes"),
        ([blob(4)], b"\0" * 5, "1 bytes follow the last binary tensor"),
        ([tensor()], b"\0" * 4, "4 bytes follow"),
        ([], b"\0" * 4, "4 bytes follow"),
        ([blob(3)], b"\0" * 3, r"has 3 bytes, but its shape \[1\] and datatype FP32 need 4"),
        ([blob(4, shape=[2])], b"\0" * 4, "need 8"),
        ([blob(4, data=[1.0])], b"\0" * 4, "both data and binary_data_size"),
        ([blob(None)], b"", "neither data nor binary_data_size"),
        ([tensor(data=None)], b"", "neither data nor binary_data_size"),
        ([blob("4")], b"\0" * 4, "Expected `int | null`, got `str`"),
        ([blob(4.0)], b"\0" * 4, "Expected `int | null`, got `float`"),
        ([blob(True)], b"\0" * 4, "Expected `int | null`, got `bool`"),
        ([blob(1, datatype="BOOL")], b"\7", "BOOL bytes other than 0 and 1"),
        ([blob(4, datatype="FP128")], b"\0" * 4, "unknown datatype 'FP128'"),
        ([blob(4, datatype="BYTES")], b"\1\0\0\0", "ends within element 0"),
        ([blob(0, shape=[-1])], b"", "negative dimension"),
        ([blob(4, shape=[2**40, 2**40])], b"\0" * 4, "too large a shape"),
        ([blob(0, shape=[0, 2**62, 2**62])], b"", "too large a shape"),
        ([blob(4, shape=[1] * 33)], b"\0" * 4, "33 dimensions"),
        ([tensor(parameters={"shared_memory_region": "r"})], b"", "in shared memory"),
    ],
)
def test_lies(inputs: list[dict[str, Any]], blobs: bytes, message: str) -> None:
    body, length = split(*inputs, blobs=blobs)
    with pytest.raises(OipError, match=message):
        oip.decode_request(body, length)
    # A device is believed no more than a client.
    reply = json.dumps({"outputs": inputs}).encode()
    with pytest.raises(OipError, match=message):
        oip.decode_reply(reply + blobs, len(reply))


@pytest.mark.parametrize("length", [-1, 10**12, 2**70])
def test_a_header_length_beyond_the_body(length: int) -> None:
    body, _ = split(tensor())
    with pytest.raises(OipError, match=f"Inference-Header-Content-Length is {length}"):
        oip.decode_request(body, length)


@pytest.mark.parametrize("length", [0, 1, 10])
def test_a_header_length_within_the_json(length: int) -> None:
    body, _ = split(tensor())
    with pytest.raises(OipError, match="not a valid inference request"):
        oip.decode_request(body, length)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe{",
        b'{"inputs": null}',
        b'{"inputs": {}}',
        b'{"inputs": [1]}',
        b'{"inputs": [{}]}',
        b'{"inputs": [], "id": 7}',
        b'{"inputs": [], "parameters": []}',
        b'{"inputs": [], "outputs": [{"name": 3}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1.5], "data": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [true], "data": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": 1, "data": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": 1}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1e999]}]}',
        b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["\\ud800"]}]}',
        b'{"inputs": [{"name": "\xff", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [%b]}]}'
        % (b"9" * 5000),
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [%b], "data": [1]}]}'
        % (b"9" * 5000),
    ],
)
def test_json_that_is_no_request(body: bytes) -> None:
    with pytest.raises(OipError) as caught:
        oip.decode_request(body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [70, 500, 100_000])
@pytest.mark.parametrize("leaf", [b'"a"', b"1", b"null", b""])
def test_deep_nesting(depth: int, leaf: bytes) -> None:
    nested = b"[" * depth + leaf + b"]" * depth
    for datatype in (b"BYTES", b"FP32", b"UINT64"):
        body = b'{"inputs":[{"name":"x","datatype":"%b","shape":[1],"data":%b}]}'
        with pytest.raises(OipError):
            oip.decode_request(body % (datatype, nested))
    with pytest.raises(OipError):
        oip.decode_request(b'{"inputs":[],"parameters":{"p":%b}' % nested)


def test_limits_of_names_and_numbers_of_tensors() -> None:
    body, length = split(*[blob(0, shape=[0])] * (MAX_TENSORS + 1))
    with pytest.raises(OipError, match="1025 tensors are more than the limit of 1024"):
        oip.decode_request(body, length)
    for request in (split(tensor(name="n" * 5000)), split(outputs=[{"name": "n" * 5000}])):
        with pytest.raises(OipError, match="the name of a tensor has more than 1024") as caught:
            oip.decode_request(*request)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"classification": -1}, "negative number of classes"),
        ({"shared_memory_region": "r"}, "in shared memory"),
        ({"binary_data": "yes"}, "Expected `bool | null`"),
    ],
)
def test_outputs_that_cannot_be(parameters: dict[str, Any], message: str) -> None:
    body, length = split(outputs=[{"name": "y", "parameters": parameters}])
    with pytest.raises(OipError, match=message):
        oip.decode_request(body, length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
DIMENSIONS = st.lists(st.integers(-2, 3) | st.sampled_from([2**31, 2**62, 2**64]), max_size=4)


@st.composite
def plausible(draw: st.DrawFn) -> dict[str, Any]:
    """A tensor's header of which each part may be right or wrong."""
    datatype = st.sampled_from(["FP32", "BYTES", "BOOL", "UINT64", "INT8", "BF16"])
    header = {"name": "x", "datatype": draw(datatype), "shape": draw(DIMENSIONS)}
    if draw(st.booleans()):
        header["data"] = draw(st.lists(JSON, max_size=4))
    if draw(st.booleans()):
        header["parameters"] = {"binary_data_size": draw(st.integers(-1, 12))}
    if draw(st.booleans()):
        header[draw(st.sampled_from(["name", "datatype", "shape"]))] = draw(JSON)
    return header


@given(st.lists(plausible(), max_size=3), st.binary(max_size=24), st.booleans())
def test_only_oip_errors_escape(inputs: list[Any], blobs: bytes, binary: bool) -> None:
    header = json.dumps({"inputs": inputs, "outputs": inputs}).encode()
    for decode in (oip.decode_request, oip.decode_reply):
        try:
            decode(header + blobs if binary else header, len(header) if binary else None)
        except OipError as error:
            assert str(error)


@given(st.binary(max_size=60), st.none() | st.integers(-1, 70))
def test_noise_is_no_request(body: bytes, length: int | None) -> None:
    for decode in (oip.decode_request, oip.decode_reply):
        try:
            decode(body, length)
        except OipError as error:
            assert str(error)
