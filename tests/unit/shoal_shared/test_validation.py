"""Whether a request fits a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_shared.oip import InferRequest, OipError, RequestedOutput, Tensor
from shoal_shared.signature import ModelSignature, TensorSpec, shape_fits
from shoal_shared.validation import check_request


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def tensor(name: str, *shape: int, datatype: str = "FP32") -> Tensor:
    return Tensor(name, datatype, np.zeros(shape, np.float32))


SIGNATURE = ModelSignature(
    inputs=(spec("a", -1, 3), spec("b", -1)), outputs=(spec("y", -1, 2), spec("z", -1))
)


def check(*inputs: Tensor, outputs: tuple[str, ...] = (), max_batch: int = 8) -> int:
    request = InferRequest(list(inputs), [RequestedOutput(o) for o in outputs])
    return check_request(request, SIGNATURE, max_batch)


def test_a_fitting_request_has_as_many_items_as_its_batch_dimension() -> None:
    assert check(tensor("a", 5, 3), tensor("b", 5), outputs=("z", "y")) == 5
    assert check(tensor("b", 1), tensor("a", 1, 3)) == 1


def test_without_a_batch_dimension_a_request_is_one_item() -> None:
    assert check(tensor("a", 5, 3), tensor("b", 7), max_batch=0) == 1


def test_an_empty_batch_counts_as_one_item() -> None:
    assert check(tensor("a", 0, 3), tensor("b", 0)) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "input 'a' is missing"),
        ([tensor("a", 1, 3)], "input 'b' is missing"),
        ([tensor("a", 1, 3), tensor("a", 1, 3)], "given more than once"),
        (
            [tensor("a", 1, 3), tensor("b", 1), tensor("c", 1)],
            "the model has no input 'c'; its inputs are a, b",
        ),
        (
            [tensor("a", 1, 3, datatype="FP64"), tensor("b", 1)],
            "input 'a' is FP64, but the model takes FP32",
        ),
        ([tensor("a", 1, 4), tensor("b", 1)], r"has shape \[1, 4\], but the model takes \[-1, 3\]"),
        ([tensor("a", 3), tensor("b", 1)], r"has shape \[3\]"),
        ([tensor("a", 2, 3), tensor("b", 1)], "the inputs differ in their batch dimension"),
        ([tensor("a", 9, 3), tensor("b", 9)], "a batch of 9 is more than the model's limit of 8"),
    ],
)
def test_requests_that_do_not_fit(inputs: list[Tensor], message: str) -> None:
    with pytest.raises(OipError, match=message):
        check(*inputs)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (("y", "y"), "an output is asked for more than once"),
        (("y", "w"), "the model has no output 'w'; its outputs are y, z"),
    ],
)
def test_outputs_that_do_not_fit(outputs: tuple[str, ...], message: str) -> None:
    with pytest.raises(OipError, match=message):
        check(tensor("a", 1, 3), tensor("b", 1), outputs=outputs)


def test_more_than_a_batch_where_it_will_be_split() -> None:
    request = InferRequest([tensor("a", 9, 3), tensor("b", 9)])
    with pytest.raises(OipError, match="a batch of 9 is more than the model's limit of 8"):
        check_request(request, SIGNATURE, 8)
    assert check_request(request, SIGNATURE, 8, most=9) == 9
    assert check_request(request, SIGNATURE, 9, most=1) == 9
    with pytest.raises(OipError, match="a batch of 9 is more than the limit of 8: send it in"):
        check_request(request, SIGNATURE, 4, most=8)


def test_batchable() -> None:
    assert SIGNATURE.batchable
    fixed = spec("x", 1, 3)
    assert not ModelSignature(inputs=(fixed,), outputs=(spec("y", -1),)).batchable
    assert not ModelSignature(inputs=(spec("x", -1),), outputs=(fixed,)).batchable
    assert not ModelSignature(inputs=(spec("x"),), outputs=()).batchable
    assert not ModelSignature(inputs=(), outputs=(spec("y", -1),)).batchable


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=5))
def test_a_shape_fits_itself_with_any_dimension_free(dimensions: list[tuple[int, bool]]) -> None:
    shape = tuple(d for d, _ in dimensions)
    free = tuple(-1 if is_free else d for d, is_free in dimensions)
    assert shape_fits(shape, free)
    assert not shape_fits((*shape, 1), free)
    for i, (d, is_free) in enumerate(dimensions):
        other = (*shape[:i], d + 1, *shape[i + 1 :])
        assert shape_fits(other, free) == is_free
