from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal_agent.serving.activations import Activations, computed_nan
from shoal_shared.oip import InferRequest, OipError, Tensor

NAN = float("nan")


def floats(datatype: str, dtype: str, *values: float) -> Tensor:
    return Tensor("x", datatype, np.array(values, dtype))


def bf16(*bits: int) -> Tensor:
    return Tensor("x", "BF16", np.array(bits, "<u2"))


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (floats("FP32", "<f4", 1, NAN, 2), True),
        (floats("FP32", "<f4", 1, float("inf"), float("-inf")), False),
        (floats("FP16", "<f2", NAN), True),
        (floats("FP16", "<f2", 1), False),
        (floats("FP64", "<f8", 0, NAN), True),
        (floats("FP32", "<f4"), False),
        (Tensor("x", "FP32", np.array(NAN, "<f4")), True),
        (Tensor("x", "FP32", np.zeros((0, 3), "<f4")), False),
        (bf16(0x3F80, 0x7FC0), True),
        (bf16(0xFF81), True),
        (bf16(0x7F80, 0xFF80), False),
        (Tensor("x", "INT32", np.array([-1], "<i4")), False),
        (Tensor("x", "BYTES", np.array([b"nan"], dtype=object)), False),
    ],
)
@pytest.mark.filterwarnings("error")
def test_nan_is_found_in_every_float_type(tensor: Tensor, found: bool) -> None:
    good = floats("FP32", "<f4", 1)
    assert computed_nan([good], [good, tensor]) is found
    assert computed_nan([], [tensor]) is found


def test_nan_that_went_in_is_nobodys_fault() -> None:
    nan = floats("FP32", "<f4", NAN)
    assert not computed_nan([nan], [nan])
    assert not computed_nan([floats("FP16", "<f2", NAN)], [nan])


def test_compressed_tensors_are_used_restored_and_passed_on_as_they_came() -> None:
    q, f = Tensor("q", "INT8", np.array([2], "i1")), floats("FP32", "<f4", 1)
    found = Activations.of(InferRequest([q, f], parameters={"scales": {"q": 0.5}}))
    (restored,) = found.inputs(["q", "absent"])
    assert (restored.datatype, restored.data.tolist()) == ("FP32", [1.0])
    assert found.passes(["q", "x"]) == [q, f]
    assert found.trace == ()
    with pytest.raises(OipError, match="tensor 'z', which later stages need, is missing"):
        found.passes(["q", "z"])


def test_a_tensor_is_given_once() -> None:
    with pytest.raises(OipError, match="more than once"):
        Activations.of(InferRequest([floats("FP32", "<f4", 1), floats("FP32", "<f4", 1)]))


@pytest.mark.parametrize(
    "trace",
    [
        None,
        "abc",
        {},
        [[]],
        [["d", 1]],
        [["d", 1, 2, 3]],
        [[1, 1, 1]],
        [["d", 1, -1]],
        [["d", 1, 2.5]],
        [["d", True, 1]],
        [["d", 1, 2**60]],
        [["d" * 65, 1, 1]],
        [["d", 1, 1]] * 1001,
    ],
)
def test_a_trace_from_outside_is_checked(trace: Any) -> None:
    with pytest.raises(OipError, match="parameter 'trace' must list"):
        Activations.of(InferRequest([], parameters={"trace": trace}))
    good = Activations.of(InferRequest([], parameters={"trace": [["d", 1, 2]]}))
    assert good.trace == (("d", 1, 2),)
