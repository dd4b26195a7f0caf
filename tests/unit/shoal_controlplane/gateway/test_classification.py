"""Outputs as their best classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shoal_controlplane.gateway.classification import classify
from shoal_shared.oip import Tensor
from shoal_shared.tensors import NUMPY

LABELS = ("cat", "dog", "fish")


def best(data: Any, count: int, labels: tuple[str, ...] = (), **more: Any) -> list[Any]:
    array = np.asarray(data, more.pop("dtype", np.float32))
    tensor = Tensor("y", more.pop("datatype", "FP32"), array)
    out = classify(tensor, count, labels, more.pop("batched", True))
    assert (out.name, out.datatype) == ("y", "BYTES")
    return out.data.tolist()  # type: ignore[no-any-return]


def test_score_index_label() -> None:
    assert best([[0.25, 0.5, 0.125]], 2, LABELS) == [[b"0.500000:1:dog", b"0.250000:0:cat"]]


def test_each_batch_item_on_its_own() -> None:
    rows = [[1, 2, 3], [3, 2, 1]]
    assert best(rows, 1, LABELS) == [[b"3.000000:2:fish"], [b"3.000000:0:cat"]]


def test_without_a_batch_dimension_all_scores_are_one_row() -> None:
    assert best([1, 3, 2], 2, batched=False) == [b"3.000000:1", b"2.000000:2"]
    assert best([[1, 3], [4, 2]], 2, batched=False) == [b"4.000000:2", b"3.000000:1"]
    assert best(5.0, 3, batched=False) == [b"5.000000:0"]


def test_dimensions_after_the_batch_are_flattened() -> None:
    assert best([[[1, 2], [4, 3]]], 2) == [[b"4.000000:2", b"3.000000:3"]]


def test_no_more_classes_than_there_are() -> None:
    assert len(best([[1, 2, 3]], 2**31)[0]) == 3


def test_ties_go_to_the_lower_index_and_labels_may_be_few() -> None:
    assert best([[1, 1, 1]], 3, ("cat",)) == [[b"1.000000:0:cat", b"1.000000:1", b"1.000000:2"]]


def test_nan_never_wins() -> None:
    assert best([[np.nan, 1, -np.inf]], 1) == [[b"1.000000:1"]]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_empty_outputs(shape: tuple[int, int]) -> None:
    out = classify(Tensor("y", "FP32", np.zeros(shape, np.float32)), 2, (), True)
    assert out.data.shape == (shape[0], min(2, shape[1]))


@pytest.mark.parametrize("datatype", sorted(set(NUMPY) - {"BYTES", "BF16"}))
def test_every_datatype_with_an_order(datatype: str) -> None:
    out = best([[0, 1]], 1, dtype=NUMPY[datatype], datatype=datatype)
    assert out == [[b"1.000000:1"]]


@pytest.mark.parametrize("datatype", ["BYTES", "BF16"])
def test_datatypes_without_one(datatype: str) -> None:
    with pytest.raises(ValueError, match=f"output 'y' is {datatype}, which has no classes"):
        best([[1, 2]], 1, dtype=NUMPY[datatype], datatype=datatype)


@given(
    npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-9, 9)),
    st.integers(1, 12),
)
def test_the_best_are_the_largest_in_order(scores: Any, count: int) -> None:
    for row, found in zip(scores, best(scores, count), strict=True):
        indices = [int(entry.split(b":")[1]) for entry in found]
        assert len(set(indices)) == len(indices) == min(count, len(row))
        values = [row[i] for i in indices]
        assert values == sorted(row, reverse=True)[: len(values)]
