from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shoal_shared.activations import FP16_MAX, checked_scales, compress, restore
from shoal_shared.oip import OipError, Tensor
from shoal_shared.tensors import Array

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=6)
FINITE = hnp.arrays("<f4", SHAPES, elements=st.floats(-(2.0**100), 2.0**100, width=32))
ANY = hnp.arrays("<f4", SHAPES, elements=st.floats(width=32))
SMALL = hnp.arrays("<f4", SHAPES, elements=st.floats(-65504, 65504, width=32))


def there_and_back(array: Array, compression: str) -> tuple[Tensor, Array]:
    """The tensor as it travels, and what arrives."""
    before = array.copy()
    (sent,), scales = compress([Tensor("x", "FP32", array)], compression, {})
    np.testing.assert_array_equal(array, before)
    assert sent.data.shape == array.shape
    assert (sent.datatype == "FP32") == (not scales)
    if not scales:
        return sent, sent.data
    arrived = restore(sent, checked_scales(scales, [sent])["x"])
    assert (arrived.datatype, arrived.data.dtype) == ("FP32", np.float32)
    return sent, arrived.data


@given(SMALL)
def test_fp16_is_off_by_at_most_half_of_its_last_digit(array: Array) -> None:
    sent, arrived = there_and_back(array, "fp16")
    assert sent.datatype == "FP16"
    bound = np.maximum(np.abs(array).astype(float) * 2.0**-11, 2.0**-25)
    assert np.all(np.abs(arrived.astype(float) - array) <= bound)


@given(FINITE)
def test_int8_is_off_by_at_most_half_a_step(array: Array) -> None:
    sent, arrived = there_and_back(array, "int8")
    peak = float(np.abs(array).max())
    if sent.datatype == "FP32":
        assert 0 < peak < 1e-30
    assert np.all(np.abs(arrived.astype(float) - array) <= peak / 127 * 0.5001)


@given(ANY, st.sampled_from(["", "fp16", "int8"]))
def test_nothing_becomes_infinite_or_nan_and_no_nan_is_lost(array: Array, how: str) -> None:
    _, arrived = there_and_back(array, how)
    np.testing.assert_array_equal(np.isfinite(arrived), np.isfinite(array))
    np.testing.assert_array_equal(np.isnan(arrived), np.isnan(array))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("how", ["fp16", "int8"])
def test_what_cannot_be_compressed_travels_as_it_is(value: float, how: str) -> None:
    array = np.array([1.0, value], "<f4")
    sent, arrived = there_and_back(array, how)
    assert sent.datatype == "FP32"
    np.testing.assert_array_equal(arrived, array)


def test_fp16_ends_where_its_numbers_end() -> None:
    assert there_and_back(np.array([FP16_MAX, -FP16_MAX], "<f4"), "fp16")[0].datatype == "FP16"
    assert there_and_back(np.array([65505.0], "<f4"), "fp16")[0].datatype == "FP32"


@pytest.mark.parametrize("how", ["fp16", "int8"])
def test_zeros_stay_zeros_and_empty_tensors_empty(how: str) -> None:
    assert there_and_back(np.zeros((2, 2), "<f4"), how)[1].tolist() == [[0.0, 0.0]] * 2
    assert there_and_back(np.zeros((0, 2), "<f4"), how)[0].datatype == "FP32"


@pytest.mark.parametrize("how", ["fp16", "int8"])
def test_what_is_not_fp32_or_is_compressed_already_is_not_touched(how: str) -> None:
    tensors = [
        Tensor("i", "INT64", np.arange(3)),
        Tensor("h", "FP16", np.ones(3, np.float16)),
        Tensor("d", "FP64", np.ones(3)),
        Tensor("q", "INT8", np.ones(3, np.int8)),
        Tensor("s", "BYTES", np.array([b"x"], dtype=object)),
    ]
    sent, scales = compress(tensors, how, {"q": 0.5})
    assert [s is t for s, t in zip(sent, tensors, strict=True)] == [True] * 5
    assert scales == {"q": 0.5}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "must map"),
        (None, "must map"),
        ({"y": 1.0}, "'y', which is not compressed"),
        ({"f": 1.0}, "'f', which is not compressed"),
        ({"q": 0}, "the scale of 'q'"),
        ({"q": -1.0}, "the scale of 'q'"),
        ({"q": True}, "the scale of 'q'"),
        ({"q": "1"}, "the scale of 'q'"),
        ({"q": float("inf")}, "the scale of 'q'"),
        ({"q": float("nan")}, "the scale of 'q'"),
        ({"q": 10**400}, "the scale of 'q'"),
    ],
)
def test_scales_from_outside_are_checked(value: Any, words: str) -> None:
    tensors = [Tensor("q", "INT8", np.ones(1, np.int8)), Tensor("f", "FP32", np.ones(1, "<f4"))]
    with pytest.raises(OipError, match=words):
        checked_scales(value, tensors)
    assert checked_scales({"q": 2}, tensors) == {"q": 2}
