from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.runtimes.base import RuntimeInputError, RuntimeShapeError
from shoal_agent.runtimes.fixed import FixedBatch
from shoal_shared.placement import of_nodes
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import Array

FREE = -1


def _signature(items: int) -> ModelSignature:
    return ModelSignature(
        inputs=(
            TensorSpec(name="a", datatype="FP32", shape=(items, 2)),
            TensorSpec(name="b", datatype="INT64", shape=(items,)),
        ),
        outputs=(
            TensorSpec(name="sum", datatype="FP32", shape=(items,)),
            TensorSpec(name="twice", datatype="FP32", shape=(items, 2)),
        ),
    )


def compute(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {
        "sum": inputs["a"].sum(axis=1) + inputs["b"].astype(np.float32),
        "twice": inputs["a"] * 2,
    }


class Compiled:
    """Takes batches of `size` only, as an accelerator does."""

    providers = ("NPU", "CPU")
    placement = of_nodes({"NPU": 2})

    def __init__(self, size: int) -> None:
        self.signature = _signature(size)
        self.runs: list[dict[str, Array]] = []
        self.closed = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for spec in self.signature.inputs:
            assert inputs[spec.name].shape == spec.shape
        self.runs.append(dict(inputs))
        return compute(inputs)

    def close(self) -> None:
        self.closed = True


def _inputs(items: int) -> dict[str, Array]:
    rng = np.random.default_rng(items)
    return {
        "a": rng.normal(size=(items, 2)).astype(np.float32),
        "b": rng.integers(-9, 9, items),
    }


@given(st.integers(1, 5), st.integers(0, 17))
def test_any_batch_gives_what_the_model_would_give_unwrapped(size: int, items: int) -> None:
    compiled = Compiled(size)
    inputs = _inputs(items)
    got, expected = FixedBatch(compiled, _signature(FREE)).run(inputs), compute(inputs)
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        assert np.array_equal(got[name], array)
    assert len(compiled.runs) == max(1, -(-items // size))


def test_the_last_run_is_filled_up_with_its_last_item() -> None:
    compiled = Compiled(3)
    FixedBatch(compiled, _signature(FREE)).run({"a": np.eye(4, 2, dtype="f"), "b": np.arange(4)})
    assert [run["b"].tolist() for run in compiled.runs] == [[0, 1, 2], [3, 3, 3]]


def test_a_batch_that_fits_is_passed_on_without_a_copy() -> None:
    compiled = Compiled(3)
    inputs = _inputs(3)
    FixedBatch(compiled, _signature(FREE)).run(inputs)
    assert compiled.runs[0]["a"] is inputs["a"]


def test_other_shapes_are_refused_in_a_sentence() -> None:
    model = FixedBatch(Compiled(1), _signature(FREE))
    wrong: tuple[Array, ...] = (np.zeros((1, 3), np.float32), np.zeros((1, 2, 1), np.float32))
    for a in (*wrong, np.zeros((), np.float32)):
        with pytest.raises(RuntimeShapeError) as caught:
            model.run({"a": a, "b": np.zeros(1, np.int64)})
        assert str(caught.value) == (
            f"this device compiled the model for 'a' of [1, 2], not of {list(a.shape)}"
        )
    with pytest.raises(RuntimeInputError, match="differ in their batch dimension"):
        model.run({"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.int64)})


def test_without_a_batch_dimension_only_the_compiled_shape_passes() -> None:
    compiled = Compiled(2)
    model = FixedBatch(compiled, _signature(2))
    inputs = _inputs(2)
    assert np.array_equal(model.run(inputs)["twice"], compute(inputs)["twice"])
    for items in (0, 1, 3):
        with pytest.raises(RuntimeShapeError):
            model.run(_inputs(items))
    assert len(compiled.runs) == 1


def test_all_else_is_the_models_own() -> None:
    compiled = Compiled(2)
    model = FixedBatch(compiled, _signature(FREE))
    assert model.signature == _signature(FREE)
    assert model.providers == compiled.providers
    assert model.placement == compiled.placement
    model.close()
    assert compiled.closed
