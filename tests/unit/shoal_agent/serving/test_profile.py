from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from shoal_agent.runtimes.base import RuntimeRunError
from shoal_agent.serving.profile import RUNS, checked_shapes, measure
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import Array


class Bench:
    """A model of which the first run of a shape is cold, on a clock of its own."""

    def __init__(
        self,
        seconds: Callable[[int], float],
        accepts: Callable[[tuple[int, ...]], bool] = lambda shape: True,
        outputs: Callable[[Array], Array] = lambda x: x,
    ) -> None:
        self.now = 0.0
        self.seconds, self.accepts, self.outputs = seconds, accepts, outputs
        self.shapes: list[tuple[int, ...]] = []
        self.last: Mapping[str, Array] = {}

    def clock(self) -> float:
        return self.now

    async def run(self, inputs: Mapping[str, Array]) -> tuple[float, Mapping[str, Array]]:
        x = self.last["x"] if "x" not in inputs else inputs["x"]
        self.last = inputs
        if not self.accepts(x.shape):
            raise RuntimeRunError(f"does not take {x.shape}")
        seconds = self.seconds(x.shape[0] if x.ndim else 1) * (1 if x.shape in self.shapes else 7)
        self.shapes.append(x.shape)
        self.now += seconds
        return seconds, {"y": self.outputs(x)}


def _signature(*shape: int, datatype: str = "FP32") -> ModelSignature:
    spec = TensorSpec(name="x", datatype=datatype, shape=shape)
    return ModelSignature(
        inputs=(spec,), outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),)
    )


async def test_sizes_double_until_the_knee_and_the_cold_run_does_not_count() -> None:
    # 10 ms + b/4 ms pays up to 64 and beyond; past 8 items, each costs 5 ms more.
    bench = Bench(lambda b: 0.010 + 0.00025 * b + max(b - 8, 0) * 0.005)
    measured = await measure(_signature(-1, 4), 64, None, bench.run, bench.clock)

    assert [b for b, _ in measured.profile.samples] == [1, 2, 4, 8, 16]
    assert measured.profile.knee == 8
    assert measured.profile.samples[0][1] == pytest.approx(10.25)
    assert bench.shapes.count((1, 4)) == RUNS + 1
    assert measured.note == ""


async def test_the_largest_size_is_the_limit_itself() -> None:
    bench = Bench(lambda b: 0.001)
    measured = await measure(_signature(-1, 4), 6, None, bench.run, bench.clock)
    assert [b for b, _ in measured.profile.samples] == [1, 2, 4, 6]


@pytest.mark.parametrize(("shape", "max_batch"), [((1, 4), 64), ((-1, 4), 1), ((), 64)])
async def test_one_size_where_nothing_is_merged(shape, max_batch: int) -> None:
    bench = Bench(lambda b: 0.001)
    measured = await measure(_signature(*shape), max_batch, None, bench.run, bench.clock)
    assert [b for b, _ in measured.profile.samples] == [1]
    assert measured.profile.knee == 1


async def test_a_model_that_mixes_its_items_up_is_not_batched() -> None:
    bench = Bench(lambda b: 0.001, outputs=lambda x: x[:1])
    measured = await measure(_signature(-1, 4), 64, None, bench.run, bench.clock)
    assert measured.profile.knee == 1


async def test_a_model_that_fails_on_more_than_one_item_is_not_batched() -> None:
    bench = Bench(lambda b: 0.001, accepts=lambda shape: shape[0] == 1)
    measured = await measure(_signature(-1, 4), 64, None, bench.run, bench.clock)
    assert (measured.profile.knee, measured.note) == (1, "")


async def test_the_budget_is_kept_but_one_time_is_always_measured() -> None:
    slow = Bench(lambda b: 3.0)
    measured = await measure(_signature(-1, 4), 64, None, slow.run, slow.clock)
    assert measured.profile.samples == ((1, 3000.0),)
    assert len(slow.shapes) == 2

    bench = Bench(lambda b: 0.05 + 0.001 * b)
    await measure(_signature(-1, 4), 64, None, bench.run, bench.clock)
    assert bench.now < 2.5


async def test_pictures_are_tried_in_a_picture_size_first() -> None:
    bench = Bench(lambda b: 0.001, accepts=lambda shape: shape[2] == 320)
    measured = await measure(_signature(-1, 3, -1, -1), 1, None, bench.run, bench.clock)
    assert bench.shapes[0] == (1, 3, 320, 320)
    assert measured.note == ""

    bench = Bench(lambda b: 0.001)
    await measure(_signature(-1, -1), 1, None, bench.run, bench.clock)
    assert bench.shapes[0] == (1, 1)


async def test_given_shapes_are_used() -> None:
    bench = Bench(lambda b: 0.001)
    shapes = checked_shapes(_signature(-1, 3, -1, -1), {"x": [9, 3, 48, 100]})
    await measure(_signature(-1, 3, -1, -1), 2, shapes, bench.run, bench.clock)
    assert set(bench.shapes) == {(1, 3, 48, 100), (2, 3, 48, 100)}


async def test_a_model_that_nothing_pleases_is_not_refused() -> None:
    bench = Bench(lambda b: 0.001, accepts=lambda shape: False)
    measured = await measure(_signature(-1, -1), 8, None, bench.run, bench.clock)
    assert measured.profile.samples == ((1, 0.0),)
    assert measured.profile.knee == 1
    assert "profile_shapes" in measured.note
    assert "does not take (1, 1)" in measured.note


async def test_strings_are_made_up_too() -> None:
    bench = Bench(lambda b: 0.001)
    await measure(_signature(-1, 2, datatype="BYTES"), 1, None, bench.run, bench.clock)
    assert bench.last["x"].tolist() == np.array([[b"", b""]], dtype=object).tolist()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (3, "must map inputs"),
        ({"z": [1]}, "unknown input 'z'"),
        ({"x": 4}, "list of sizes"),
        ({"x": [1, 0]}, "list of sizes"),
        ({"x": [1, True]}, "list of sizes"),
        ({"x": [1, 5]}, r"is \[1, 5\], but the model takes \[-1, 4\]"),
        ({"x": [1]}, r"is \[1\], but the model takes"),
        ({"x": [1 << 40, 4]}, "more than"),
    ],
)
def test_wrong_shapes_are_refused(option: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_shapes(_signature(-1, 4), option)


def test_no_shapes_are_no_error() -> None:
    assert checked_shapes(_signature(-1, 4), None) is None
