from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shoal_shared.golden import (
    MAX_BYTES,
    MAX_CASES,
    Case,
    Golden,
    GoldenError,
    agrees,
    decode,
    encode,
    error_of,
)
from shoal_shared.tensors import NUMPY, Array

X = np.array([[1.0, -2.0]], np.float32)
ONE = Golden((Case({"x": X}, {"y": X}),))


def _texts(shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    return arrays.arrays(object, shape, elements=st.binary(max_size=5))


def _arrays() -> st.SearchStrategy[Array]:
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    dtypes = st.sampled_from([d for d in NUMPY.values() if d != np.dtype("O")])
    return st.one_of(shapes.flatmap(_texts), arrays.arrays(dtypes, shapes))


_named = st.dictionaries(st.text(max_size=5), _arrays(), min_size=1, max_size=3)
_goldens = st.builds(
    lambda cases: Golden(tuple(cases)),
    st.lists(st.builds(Case, inputs=_named, outputs=_named), min_size=1, max_size=4),
)


def _same(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return list(a) == list(b) and all(
        a[n].shape == b[n].shape
        and a[n].dtype == b[n].dtype
        and (a[n].tolist() == b[n].tolist() or a[n].tobytes() == b[n].tobytes())
        for n in a
    )


@given(_goldens)
def test_what_is_written_is_read(golden: Golden) -> None:
    data = encode(golden)
    assert encode(golden) == data
    back = decode(data)
    assert len(back.cases) == len(golden.cases)
    for was, now in zip(golden.cases, back.cases, strict=True):
        assert _same(was.inputs, now.inputs)
        assert _same(was.outputs, now.outputs)
    assert encode(back) == data


@given(_goldens, st.data())
def test_damaged_files_are_a_sentence(golden: Golden, data: st.DataObject) -> None:
    whole = encode(golden)
    cut = data.draw(st.integers(0, len(whole)))
    changed = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        changed[at] = data.draw(st.integers(0, 255))
    for damaged in (whole[:cut], bytes(changed), whole + b"x"):
        try:
            decode(damaged)
        except GoldenError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("at", range(4))
def test_hostile_lengths_are_refused(at: int) -> None:
    data = bytearray(encode(ONE))
    struct.pack_into("<Q", data, 16 + 8 * at, 2**64 - 1)
    with pytest.raises(GoldenError):
        decode(bytes(data))


def test_limits() -> None:
    most = Golden(ONE.cases * MAX_CASES)
    assert len(decode(encode(most)).cases) == MAX_CASES
    with pytest.raises(GoldenError, match="more than 64 golden cases"):
        encode(Golden(ONE.cases * (MAX_CASES + 1)))
    one_more = encode(most) + encode(ONE)[16:]
    with pytest.raises(GoldenError, match="more than 64 golden cases"):
        decode(one_more)
    with pytest.raises(GoldenError, match="more than"):
        decode(bytes(MAX_BYTES + 1))
    with pytest.raises(GoldenError, match="more than"):
        encode(Golden((Case({"x": np.zeros(MAX_BYTES, np.uint8)}, {"y": X}),)))


@pytest.mark.parametrize(
    "golden",
    [
        Golden(()),
        Golden((Case({}, {"y": X}),)),
        Golden((Case({"x": X}, {}),)),
        Golden((Case({"x": X.astype(np.complex64)}, {"y": X}),)),
        Golden((Case({"x" * 2000: X}, {"y": X}),)),
    ],
)
def test_what_could_not_be_read_is_not_written(golden: Golden) -> None:
    with pytest.raises(GoldenError):
        encode(golden)


def test_a_tensor_named_twice_and_a_foreign_file_are_refused() -> None:
    twice = encode(Golden((Case({"x": X, "z": X}, {"y": X}),))).replace(b'"z"', b'"x"')
    with pytest.raises(GoldenError, match="names a tensor twice"):
        decode(twice)
    with pytest.raises(GoldenError, match="no file of golden cases"):
        decode(b"PK\3\4")
    with pytest.raises(GoldenError, match="no golden cases"):
        decode(encode(ONE)[:16])


@pytest.mark.parametrize(
    ("expected", "got", "error"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([1, 2], [1, 4], 2.0),
        ([0, 250], np.array([250, 0], np.uint8), 250.0),
        ([math.nan, math.inf, -math.inf], [math.nan, math.inf, -math.inf], 0.0),
        ([1.0], [math.nan], math.inf),
        ([math.nan], [1.0], math.inf),
        ([1.0], [math.inf], math.inf),
        ([math.inf], [-math.inf], math.inf),
        ([[1.0]], [1.0], math.inf),
        ([True, False], [True, False], 0.0),
        ([True, False], [True, True], math.inf),
        ([True], [1.0], math.inf),
        (np.array([b"a"], object), np.array([b"a"], object), 0.0),
        (np.array([b"a"], object), np.array([b"b"], object), math.inf),
        (np.array([b"1"], object), [1.0], math.inf),
    ],
)
def test_error(expected: object, got: object, error: float) -> None:
    assert error_of(np.asarray(expected), np.asarray(got)) == error


def test_nothing_differs_from_nothing() -> None:
    assert error_of(np.empty((0, 3)), np.empty((0, 3))) == 0.0
    assert error_of(np.empty((0, 3)), np.empty((0, 4))) == math.inf


def test_bfloat16_is_compared_as_values() -> None:
    one, one_and_a_bit, minus_zero = 0x3F80, 0x3F81, 0x8000
    a = np.array([one, 0], np.uint16)
    b = np.array([one_and_a_bit, minus_zero], np.uint16)
    assert error_of(a, b, bfloat16=True) == 2**-7
    assert agrees({"y": a}, {"y": b}, 0.0, 0.01, ("y",)) == (True, 2**-7)
    assert not agrees({"y": a}, {"y": b}, 0.0, 0.01)[0]
    assert error_of(a[:1], np.array([1.5], np.float32), bfloat16=True) == 0.5


def test_tolerance_is_absolute_and_relative_to_the_largest_of_each_output() -> None:
    expected = {"a": np.array([10.0, 0.0]), "b": np.array([0.0])}
    near = {"a": np.array([10.0, 0.2]), "b": np.array([0.001])}
    assert agrees(expected, near, 0.001, 0.02) == (True, 0.2)
    assert not agrees(expected, near, 0.0, 0.02)[0]
    assert not agrees(expected, near, 0.001, 0.01)[0]
    # The large output does not lend its tolerance to the small one.
    assert agrees(expected, {"a": expected["a"], "b": np.array([0.1])}, 0.001, 0.02) == (False, 0.1)
    assert agrees(expected, {"a": expected["a"]}, 1e9, 1e9) == (False, math.inf)
    assert agrees({"a": np.array([math.inf])}, {"a": np.array([1e30])}, 1.0, 1.0)[0] is False


@given(arrays.arrays(np.float32, 4), arrays.arrays(np.float32, 4))
def test_error_is_symmetric_and_zero_for_itself(a: Array, b: Array) -> None:
    assert error_of(a, a) == 0.0
    assert error_of(a, b) == error_of(b, a)
    assert error_of(a, b) >= 0.0
