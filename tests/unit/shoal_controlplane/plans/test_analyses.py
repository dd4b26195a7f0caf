from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from support.fleet import model_version

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.card import (
    CtcOutput,
    ImageInput,
    ModelCard,
    ModelFacts,
    TextInput,
)
from shoal_controlplane.planner.cuts.analysis import Analysis, CutError
from shoal_controlplane.planner.partition.problem import Segment
from shoal_controlplane.plans.analyses import CHILDREN, Analyses, checked_shapes, hints
from shoal_shared.golden import Case, Golden, encode
from shoal_shared.messages import GoldenGoal
from shoal_shared.signature import ModelSignature, TensorSpec

ANY = -1
Hints = dict[str, tuple[int, ...]]


def signature(*inputs: tuple[int, ...], out: tuple[int, ...] = (ANY, 2)) -> ModelSignature:
    return ModelSignature(
        inputs=tuple(
            TensorSpec(name="xyz"[i], datatype="FP32", shape=shape)
            for i, shape in enumerate(inputs)
        ),
        outputs=(TensorSpec(name="o", datatype="FP32", shape=out),),
    )


def image_card(layout: str = "NCHW", tensor: str = "x") -> ModelCard:
    return ModelCard(
        ModelFacts("m"),
        ImageInput(tensor, (48, 320), "fit-height", layout, multiple=32),  # type: ignore[arg-type]
        CtcOutput("o", ("a",)),
    )


class Cutter:
    """Analyses for as long as the test wants."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, Hints]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None
        self.running = self.most_running = 0

    async def __call__(self, path: Path, shapes: Hints) -> Analysis:
        self.calls.append((path, shapes))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        return Analysis((Segment("s", 1, 1, 1, 1.0, 1),), (), (), (), dict(shapes))


def path_of(digest: str) -> Path:
    return Path("/files") / digest


async def test_an_analysis_is_made_once_for_each_file_and_shapes() -> None:
    cutter = Cutter()
    analyses = Analyses(path_of, cutter)
    model = model_version()
    first = await analyses.of(model)
    assert first.shapes == {"x": (1, 4)}
    assert await analyses.of(model) is first
    assert (await analyses.of(model, {"x": [8, 4]})).shapes == {"x": (8, 4)}
    assert await analyses.of(model, {"x": (1, 4)}) is first
    assert cutter.calls == [
        (path_of(model.digest), {"x": (1, 4)}),
        (path_of(model.digest), {"x": (8, 4)}),
    ]


async def test_those_who_ask_at_once_share_one_child_and_may_give_up() -> None:
    cutter = Cutter()
    cutter.go.clear()
    analyses = Analyses(path_of, cutter)
    tasks = [asyncio.create_task(analyses.of(model_version())) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    cutter.go.set()
    assert await tasks[1] is await tasks[2]
    assert len(cutter.calls) == 1


async def test_few_children_run_at_once() -> None:
    cutter = Cutter()
    cutter.go.clear()
    analyses = Analyses(path_of, cutter)
    tasks = [asyncio.create_task(analyses.of(model_version(), {"x": [n, 4]})) for n in range(1, 7)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert cutter.running == CHILDREN
    cutter.go.set()
    await asyncio.gather(*tasks)
    assert cutter.most_running == CHILDREN


async def test_a_failure_is_not_kept() -> None:
    cutter = Cutter()
    cutter.error = CutError("the child was killed")
    analyses = Analyses(path_of, cutter)
    with pytest.raises(CutError, match="killed"):
        await analyses.of(model_version())
    cutter.error = None
    assert (await analyses.of(model_version())).shapes == {"x": (1, 4)}


async def test_the_one_unused_longest_is_forgotten_first() -> None:
    cutter = Cutter()
    analyses = Analyses(path_of, cutter, capacity=2)
    for batch in (1, 2, 1, 3, 1, 2):
        await analyses.of(model_version(), {"x": (batch, 4)})
    assert [shapes["x"][0] for _, shapes in cutter.calls] == [1, 2, 3, 2]


async def test_stop_ends_what_is_being_made() -> None:
    cutter = Cutter()
    cutter.go.clear()
    analyses = Analyses(path_of, cutter)
    task = asyncio.create_task(analyses.of(model_version()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await analyses.stop()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cutter.running == 0


async def test_only_onnx_can_be_cut() -> None:
    with pytest.raises(CutError, match="only ONNX models can be cut: deploy it on one device"):
        await Analyses(path_of, Cutter()).of(model_version(format="tflite"))


async def test_golden_inputs_give_shapes(tmp_path: Path) -> None:
    spec = signature((ANY, 3, 48, ANY), out=(ANY, ANY))
    case = Case({"x": np.zeros((2, 3, 48, 96), np.float32)}, {"o": np.zeros((2, 12), np.float32)})
    file = tmp_path / "golden"
    file.write_bytes(encode(Golden((case,))))
    reads: list[str] = []

    def path(digest: str) -> Path:
        reads.append(digest)
        return file

    golden = GoldenGoal(digest="sha256:" + "cd" * 32, size=1, absolute=0.1, relative=0.1)
    model = model_version(signature=spec, golden=golden, card=image_card())
    analyses = Analyses(path, Cutter())
    assert (await analyses.of(model)).shapes == {"x": (1, 3, 48, 96)}
    await analyses.of(model)
    assert reads.count(golden.digest) == 1
    assert (await analyses.of(model, {"x": [1, 3, 48, 320]})).shapes == {"x": (1, 3, 48, 320)}


def test_golden_inputs_that_were_made_up_tell_nothing_of_sizes() -> None:
    free = signature((ANY, ANY, 4))
    assert hints(free, {}, {"x": (1, 1, 4)}, None) == {}
    assert hints(free, {}, {"x": (1, 7, 4)}, None) == {"x": (1, 7, 4)}
    assert hints(signature((ANY, 1, 4)), {}, {"x": (1, 1, 4)}, None) == {"x": (1, 1, 4)}


def test_the_card_gives_shapes_of_pictures_and_texts() -> None:
    free = signature((ANY, 3, ANY, ANY))
    assert hints(free, {}, {}, image_card()) == {"x": (1, 3, 48, 320)}
    assert hints(free, {}, {}, image_card(tensor="other")) == {}
    assert hints(signature((ANY, ANY, ANY, 3)), {}, {}, image_card("NHWC")) == {
        "x": (1, 48, 320, 3)
    }
    # The model's own sizes count: a grey picture has one channel.
    assert hints(signature((ANY, 1, 32, ANY)), {}, {}, image_card()) == {"x": (1, 1, 32, 320)}
    text = ModelCard(ModelFacts("m"), TextInput("x", (1, 1)), CtcOutput("o", ("a",)))
    assert hints(signature((ANY, ANY)), {}, {}, text) == {"x": (1, 1)}


def test_a_free_batch_is_one_and_other_free_sizes_are_left_to_the_cutter() -> None:
    assert hints(signature((ANY, 4), (ANY, 7)), {}, {}, None) == {"x": (1, 4), "y": (1, 7)}
    assert hints(signature((ANY, 4), (ANY, ANY)), {}, {}, None) == {"x": (1, 4)}
    # Not a batch: the output has none.
    assert hints(signature((ANY, 4), out=(2,)), {}, {}, None) == {}
    assert hints(signature((5, 4), out=(2,)), {}, {}, None) == {"x": (5, 4)}


def test_given_shapes_come_first_and_are_taken_as_they_are() -> None:
    spec = signature((ANY, 3, ANY, ANY), (ANY, 2))
    found = hints(spec, {"x": (4, 3, 8, 8)}, {"x": (1, 3, 9, 9), "y": (1, 2)}, image_card())
    assert found == {"x": (4, 3, 8, 8), "y": (1, 2)}


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"z": [1, 4]}, "The model has no input 'z', only 'x'."),
        ({"x": [1]}, "does not fit 'x': the model takes"),
        ({"x": [1, 5]}, "does not fit 'x': the model takes"),
        ({"x": [0, 4]}, "must be a list of sizes of 1 or more"),
        ({"x": [-1, 4]}, "must be a list of sizes of 1 or more"),
        ({"x": [True, 4]}, "must be a list of sizes of 1 or more"),
        ({"x": [2**40, 4]}, "has more than"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, list[int]], sentence: str) -> None:
    with pytest.raises(InvalidError, match=sentence):
        checked_shapes(signature((ANY, 4)), shapes)
