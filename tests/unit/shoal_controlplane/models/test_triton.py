from __future__ import annotations

import pytest

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.triton import (
    TritonConfig,
    TritonTensor,
    check_config,
    parse_config,
)
from shoal_shared.signature import ModelSignature, TensorSpec

CONFIG = """
name: "classifier"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  {
    name: "image"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
  }
]
output {
  name: "scores"
  data_type: TYPE_FP32
  dims: 10
  label_filename: "labels.txt"
}
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
instance_group [ { kind: KIND_CPU count: 2 } ]
parameters { key: "x" value: { string_value: "y" } }
"""
BATCHED = ModelSignature(
    inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 224, 224)),),
    outputs=(TensorSpec(name="scores", datatype="FP32", shape=(-1, 10)),),
)
FIXED = ModelSignature(
    inputs=(TensorSpec(name="image", datatype="FP32", shape=(1, 3, 224, 224)),),
    outputs=(TensorSpec(name="scores", datatype="FP32", shape=(1, 10)),),
)


def test_a_config_as_triton_documents_it() -> None:
    config = parse_config(CONFIG)
    assert config == TritonConfig(
        name="classifier",
        platform="onnxruntime_onnx",
        max_batch_size=8,
        inputs=(TritonTensor("image", "FP32", (3, 224, 224)),),
        outputs=(TritonTensor("scores", "FP32", (10,), "labels.txt"),),
    )
    check_config(config, "classifier", BATCHED)


def test_an_empty_config_says_nothing_and_fits_everything() -> None:
    assert parse_config("") == TritonConfig()
    for signature in (BATCHED, FIXED):
        check_config(parse_config(""), "any", signature)
    assert parse_config('backend: "onnxruntime"').platform == "onnxruntime"


@pytest.mark.parametrize(
    "text",
    [
        'max_batch_size: 0 input { name: "image" data_type: TYPE_FP32 dims: [1, 3, 224, 224] }',
        'max_batch_size: 0 input { name: "image" dims: [-1, 3, -1, -1] }',
        'input { name: "image" data_type: TYPE_FP32 dims: [9] reshape { shape: [1] } }',
        'output { name: "scores" }',
    ],
)
def test_a_config_that_fits(text: str) -> None:
    check_config(parse_config(text), "any", FIXED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('name: "other"', "is for the model 'other'"),
        ("max_batch_size: 4", "first dimension is fixed"),
        ('input { name: "pixels" }', "has no 'pixels' there, only image"),
        ('input { name: "scores" }', "has no 'scores' there"),
        ('input { name: "image" data_type: TYPE_UINT8 }', "in the model FP32"),
        ('input { name: "image" data_type: TYPE_FP32 dims: [1, 3, 299, 299] }', "[1, 3, 224, 224]"),
        ('input { name: "image" data_type: TYPE_FP32 dims: [3, 224, 224] }', "[1, 3, 224, 224]"),
    ],
)
def test_a_config_that_contradicts_the_model(text: str, reason: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_config(parse_config(text), "classifier", FIXED)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "name: 5",
        "name: classifier",
        'name: "a" name: "b"',
        "max_batch_size: -1",
        "max_batch_size: 100000",
        "max_batch_size: 1.5",
        'max_batch_size: "8"',
        "input: 3",
        "input {}",
        'input { name: "x" data_type: TYPE_COMPLEX }',
        'input { name: "x" data_type: "TYPE_FP32" }',
        'input { name: "x" dims: [ -2 ] }',
        'input { name: "x" dims: [ 1.0 ] }',
        "input {",
    ],
)
def test_a_config_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidError, match=r"^config\.pbtxt"):
        parse_config(text)
