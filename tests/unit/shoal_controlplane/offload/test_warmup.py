from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal_controlplane.offload.target import CloudModel
from shoal_controlplane.offload.warmup import blank_request
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY
from shoal_shared.validation import check_request


def model(*shapes: tuple[int, ...], datatype: str = "FP32", max_batch: int = 8) -> CloudModel:
    inputs = tuple(
        TensorSpec(name=f"x{i}", datatype=datatype, shape=shape) for i, shape in enumerate(shapes)
    )
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),)
    signature = ModelSignature(inputs=inputs, outputs=outputs)
    return CloudModel("m", "1", "onnx", Path("/x"), "sha256:a", "http://x", signature, max_batch)


@pytest.mark.parametrize("datatype", sorted(NUMPY))
def test_a_blank_request_fits_the_model(datatype: str) -> None:
    wanted = model((-1, 3, 4), (-1, 2), datatype=datatype)
    request = blank_request(wanted, 5, {})
    assert request is not None
    assert check_request(request, wanted.signature, 8) == 5
    assert request.inputs[0].data.shape == (5, 3, 4)
    assert request.inputs[0].data.dtype == NUMPY[datatype]


def test_without_a_batch_dimension() -> None:
    wanted = model((3, 4), max_batch=0)
    request = blank_request(wanted, 1, {})
    assert request is not None
    assert request.inputs[0].data.shape == (3, 4)


def test_free_dimensions_are_those_of_the_last_request() -> None:
    wanted = model((-1, 3, -1, -1))
    assert blank_request(wanted, 2, {}) is None
    assert blank_request(wanted, 2, {"x0": (1, 3)}) is None
    request = blank_request(wanted, 2, {"x0": (7, 3, 32, 48)})
    assert request is not None
    assert request.inputs[0].data.shape == (2, 3, 32, 48)
    assert not np.any(request.inputs[0].data)


def test_large_requests_are_not_made() -> None:
    assert blank_request(model((-1, 2_000_000)), 2, {}) is not None
    assert blank_request(model((-1, 2_000_000), (-1, 1_000_000)), 2, {}) is None
