"""Tensors as raw bytes and as JSON data, every datatype."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shoal_shared import tensors
from shoal_shared.tensors import MAX_DIMENSIONS, NUMPY, TensorError, from_bytes, from_list

FIXED = sorted(set(NUMPY) - {"BYTES"})
INTEGERS = [d for d in FIXED if d.startswith(("INT", "UINT"))]
FLOATS = ["BF16", "FP16", "FP32", "FP64"]
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, datatype: str) -> np.ndarray:
    shape = draw(SHAPES)
    if datatype == "BYTES":
        array = np.empty(shape, dtype=object)
        for index in np.ndindex(shape):
            array[index] = draw(st.binary(max_size=12))
        return array
    return draw(npst.arrays(NUMPY[datatype], shape))


@pytest.mark.parametrize("datatype", sorted(NUMPY))
@given(data=st.data())
def test_raw_bytes_round_trip(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    raw = bytes(tensors.to_bytes(datatype, array))
    back = from_bytes("x", datatype, array.shape, raw)
    assert back.dtype == NUMPY[datatype]
    assert back.shape == array.shape
    assert bytes(tensors.to_bytes(datatype, back)) == raw
    if datatype == "BYTES":
        assert back.tolist() == array.tolist()


@pytest.mark.parametrize("datatype", [*INTEGERS, "BOOL"])
@given(data=st.data())
def test_json_round_trip_is_exact(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    flat = tensors.to_list("x", datatype, array)
    back = from_list("x", datatype, array.shape, flat)
    assert back.dtype == NUMPY[datatype]
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@given(data=st.data())
def test_json_round_trip_of_floats(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    back = from_list("x", datatype, array.shape, tensors.to_list("x", datatype, array))
    np.testing.assert_array_equal(back, array)


@given(st.lists(st.text(max_size=8), max_size=6))
def test_json_round_trip_of_text(strings: list[str]) -> None:
    array = from_list("x", "BYTES", (len(strings),), strings)
    assert array.tolist() == [s.encode() for s in strings]
    assert tensors.to_list("x", "BYTES", array) == strings


@pytest.mark.parametrize("datatype", [d for d in FIXED if NUMPY[d].itemsize > 1 and d != "BF16"])
def test_bytes_are_little_endian_whatever_the_array_is(datatype: str) -> None:
    big = np.array([1, 2, 3], NUMPY[datatype].newbyteorder(">"))
    raw = bytes(tensors.to_bytes(datatype, big))
    assert from_bytes("x", datatype, (3,), raw).tolist() == [1, 2, 3]
    assert tensors.datatype_of(big) == datatype


def test_bytes_follow_rows_of_a_transposed_array() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    raw = bytes(tensors.to_bytes("INT32", array))
    assert np.frombuffer(raw, "<i4").tolist() == [0, 3, 1, 4, 2, 5]


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.zeros((4, 4), np.float32)
    view = tensors.to_bytes("FP32", array)
    array[0, 0] = 1.0
    assert bytes(view[:4]) == struct.pack("<f", 1.0)


def test_an_array_over_bytes_is_a_read_only_view() -> None:
    raw = bytearray(struct.pack("<2f", 1.0, 2.0))
    array = from_bytes("x", "FP32", (2,), raw)
    raw[:4] = struct.pack("<f", 9.0)
    assert array[0] == 9.0
    assert not from_bytes("x", "FP32", (2,), bytes(raw)).flags.writeable


def test_bytes_elements_have_a_length_of_four_bytes_before_them() -> None:
    array = np.array([b"ab", "é"], dtype=object)
    raw = bytes(tensors.to_bytes("BYTES", array))
    assert raw == b"\x02\0\0\0ab" + b"\x02\0\0\0\xc3\xa9"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "too few bytes"),
        (b"\1\0\0\0a\1\0\0", "within the length of element 1"),
        (b"\xff\xff\xff\xffabcd", "ends within element 0"),
        (b"\1\0\0\0a\2\0\0\0b", "ends within element 1"),
        (b"\0\0\0\0\0\0\0\0x", "1 bytes after its last element"),
    ],
)
def test_lying_bytes_elements(raw: bytes, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        from_bytes("x", "BYTES", (2,), raw)


def test_a_huge_number_of_bytes_elements_is_refused_before_any_is_made() -> None:
    with pytest.raises(TensorError, match="too few bytes for"):
        from_bytes("x", "BYTES", (2**40,), b"\0" * 64)


@pytest.mark.parametrize("size", [0, 3, 5, 8])
def test_raw_bytes_must_fit_the_shape(size: int) -> None:
    with pytest.raises(TensorError, match=f"has {size} bytes, but its shape \\[1\\]"):
        from_bytes("x", "FP32", (1,), b"\0" * size)


@pytest.mark.parametrize("raw", [b"\0\2", b"\xff\0"])
def test_bool_bytes_other_than_0_and_1(raw: bytes) -> None:
    with pytest.raises(TensorError, match="BOOL bytes other than 0 and 1"):
        from_bytes("x", "BOOL", (2,), raw)


@pytest.mark.parametrize("datatype", ["", "FLOAT", "fp32", "FP8", "STRING"])
def test_unknown_datatype(datatype: str) -> None:
    with pytest.raises(TensorError, match="unknown datatype"):
        from_bytes("x", datatype, (1,), b"\0\0\0\0")
    with pytest.raises(TensorError, match="unknown datatype"):
        from_list("x", datatype, (1,), [1])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((-1,), "negative dimension"),
        ((2, -3), "negative dimension"),
        ((2**40, 2**40), "too large a shape"),
        ((0, 2**40, 2**40), "too large a shape"),
        ((0, 2**70), "too large a shape"),
        ((10**4000,), "too large a shape"),
        ((1,) * (MAX_DIMENSIONS + 1), "33 dimensions, more than the limit of 32"),
    ],
)
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_impossible_shapes(datatype: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(TensorError, match=message):
        from_bytes("x", datatype, shape, b"")
    with pytest.raises(TensorError, match=message):
        from_list("x", datatype, shape, [])


@pytest.mark.parametrize("datatype", sorted(NUMPY))
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2**40)])
def test_empty_tensors(datatype: str, shape: tuple[int, ...]) -> None:
    assert from_bytes("x", datatype, shape, b"").shape == shape
    empty = from_list("x", datatype, shape, [])
    assert (empty.shape, empty.dtype) == (shape, NUMPY[datatype])
    assert bytes(tensors.to_bytes(datatype, empty)) == b""
    assert tensors.to_list("x", datatype, empty) == []


def test_a_scalar_has_no_dimensions() -> None:
    assert from_list("x", "INT32", (), [5]).shape == ()
    assert from_bytes("x", "INT32", (), struct.pack("<i", 5)) == 5


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]])
def test_data_may_be_flat_or_nested(data: list[Any]) -> None:
    assert from_list("x", "INT8", (2, 2), data).tolist() == [[1, 2], [3, 4]]
    text = from_list("x", "BYTES", (2, 2), [["a", "b"], ["c", "d"]])
    assert text.tolist() == [[b"a", b"b"], [b"c", b"d"]]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT32", [1.5]),
        ("INT32", [1.0]),
        ("INT32", ["1"]),
        ("INT32", [True]),
        ("INT32", [None]),
        ("INT32", [{}]),
        ("INT64", [2**63]),
        ("INT64", [-1, 2**63]),
        ("UINT64", [2**64]),
        ("UINT64", [-1, 2**63]),
        ("UINT64", [0.5, 2**63]),
        ("BOOL", [1]),
        ("BOOL", [True, 0]),
        ("BOOL", [None]),
        ("FP32", ["1.5"]),
        ("FP32", [True]),
        ("FP32", [[1], [2, 3]]),
        ("FP32", [1, [2]]),
        ("FP32", [1, {}]),
        ("BF16", ["x"]),
        ("BYTES", [1]),
        ("BYTES", ["a", None]),
        ("BYTES", [["a"], [b"b"]]),
    ],
)
def test_data_of_another_kind(datatype: str, data: list[Any]) -> None:
    with pytest.raises(TensorError):
        from_list("x", datatype, (len(data),), data)


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integer_limits(datatype: str) -> None:
    info = np.iinfo(NUMPY[datatype])
    both = [int(info.min), int(info.max)]
    assert from_list("x", datatype, (2,), both).tolist() == both
    for beyond in (int(info.min) - 1, int(info.max) + 1):
        with pytest.raises(TensorError, match=f"range of {datatype}|not {datatype}"):
            from_list("x", datatype, (1,), [beyond])


def test_wrong_number_of_elements() -> None:
    with pytest.raises(TensorError, match=r"3 elements, but its shape \[2\] needs 2"):
        from_list("x", "INT8", (2,), [1, 2, 3])


@pytest.mark.parametrize("datatype", FLOATS)
def test_null_is_nan_and_large_numbers_become_infinite(datatype: str) -> None:
    array = from_list("x", datatype, (3,), [None, 1.5, 1e300])
    values = tensors.to_list("x", datatype, array)
    assert math.isnan(values[0])
    assert values[1] == 1.5
    assert values[2] == (1e300 if datatype == "FP64" else math.inf)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (1.0 + 2**-8, 0x3F80),  # half way, down to even
        (1.0 + 3 * 2**-8, 0x3F82),  # half way, up to even
        (1.0 + 2**-8 + 2**-20, 0x3F81),  # just above half way
        (3.4028234e38, 0x7F80),  # beyond the largest: infinite
        (0.0, 0x0000),
        (-0.0, 0x8000),
    ],
)
def test_bf16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert int(from_list("x", "BF16", (1,), [value])[0]) == bits


@given(st.floats(width=32))
def test_bf16_is_the_nearest_and_nan_stays_nan(value: float) -> None:
    (back,) = tensors.to_list("x", "BF16", from_list("x", "BF16", (1,), [value]))
    if math.isnan(value):
        assert math.isnan(back)
    elif math.isfinite(back):
        assert abs(back - value) <= max(abs(value) * 2**-8, 2**-134)
    else:
        assert abs(value) >= 3.38e38


def test_deep_nesting_is_refused() -> None:
    deep: list[Any] = ["a"]
    for _ in range(500):
        deep = [deep]
    for datatype in ("BYTES", "FP32", "UINT64"):
        with pytest.raises(TensorError):
            from_list("x", datatype, (1,), deep)


def test_bytes_that_are_not_text_cannot_be_json() -> None:
    array = np.array([b"ok", b"\xff"], dtype=object)
    with pytest.raises(TensorError, match="output 'x' holds bytes that are not UTF-8"):
        tensors.to_list("x", "BYTES", array)


def test_datatype_of_arrays() -> None:
    for datatype in set(FIXED) - {"BF16"}:
        assert tensors.datatype_of(np.zeros(1, NUMPY[datatype])) == datatype
    assert tensors.datatype_of(np.array(["a"])) == "BYTES"
    assert tensors.datatype_of(np.array([b"a"])) == "BYTES"
    assert tensors.datatype_of(np.array([b"a"], dtype=object)) == "BYTES"
    with pytest.raises(TensorError, match="complex128 have no datatype"):
        tensors.datatype_of(np.zeros(1, np.complex128))
