from __future__ import annotations

import math

import numpy as np
import pytest

from shoal_agent.serving.request import Contract, accept, deadline_of
from shoal_shared.oip import InferRequest, OipError, Tensor
from shoal_shared.signature import ModelSignature, TensorSpec


def _spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=shape)


SIGNATURE = ModelSignature(
    inputs=(_spec("a", -1, -1), _spec("b", -1, 2)), outputs=(_spec("y", -1),)
)


def _accept(max_batch: int, a: tuple[int, ...], b: tuple[int, ...]):
    inputs = [Tensor("b", "FP32", np.zeros(b, "<f4")), Tensor("a", "FP32", np.zeros(a, "<f4"))]
    contract = Contract.of(SIGNATURE, max_batch)
    return accept(
        InferRequest(inputs), contract, number=0, now=0.0, deadline=1.0, done=lambda _: None
    )


@pytest.mark.parametrize(
    ("parameters", "expires_at", "deadline"),
    [
        ({}, None, math.inf),
        ({"timeout": 0}, None, math.inf),
        ({"timeout": 2_000_000}, None, 12.0),
        ({"timeout": 2_000_000}, 11.0, 11.0),
        ({"timeout": 2_000_000}, 13.0, 12.0),
        ({}, 13.0, 13.0),
        ({"timeout": 10**400}, 13.0, 13.0),
        ({"timeout": 10**400}, None, 10.0 + 2**53 / 1e6),
    ],
)
def test_the_earlier_deadline_counts(parameters, expires_at, deadline: float) -> None:
    assert deadline_of(parameters, 10.0, expires_at) == deadline


@pytest.mark.parametrize("timeout", [-1, "5", True, [1], None])
def test_a_timeout_that_is_no_number_is_refused(timeout: object) -> None:
    with pytest.raises(OipError, match="'timeout' must be a number of microseconds"):
        deadline_of({"timeout": timeout}, 0.0, None)


def test_requests_of_one_shape_may_be_merged() -> None:
    first, second = _accept(8, (1, 5), (1, 2)), _accept(8, (3, 5), (3, 2))
    assert first.kind == second.kind is not None
    assert (first.items, second.items) == (1, 3)
    assert _accept(8, (1, 6), (1, 2)).kind != first.kind


def test_requests_without_items_and_to_models_that_are_not_merged_run_alone() -> None:
    assert _accept(8, (0, 5), (0, 2)).kind is None
    assert _accept(1, (2, 5), (2, 2)).kind is None


def test_too_large_and_uneven_batches_are_refused() -> None:
    with pytest.raises(OipError, match="a batch of 9 is more than the model's limit of 8"):
        _accept(8, (9, 5), (9, 2))
    with pytest.raises(OipError, match="differ in their batch dimension"):
        _accept(8, (2, 5), (3, 2))
