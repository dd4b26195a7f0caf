"""Analyses of models' graphs, each made once, and the shapes that they are made for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.card import ImageInput, ModelCard, TextInput
from shoal_controlplane.models.goldenfile import read_golden
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.cuts.analysis import Analysis, CutError
from shoal_shared.signature import ModelSignature, TensorSpec, shape_fits

Shapes: TypeAlias = Mapping[str, Sequence[int]]
"""Whole shapes of inputs by name; inputs may be missing."""

Analyse: TypeAlias = Callable[[Path, dict[str, tuple[int, ...]]], Awaitable[Analysis]]
"""Analyses the graph in a file for shapes of its inputs. Raises `CutError`."""

CAPACITY = 64
CHILDREN = 2
MAX_ELEMENTS = 1 << 28
_IMAGE_RANK = 4
_CHANNELS = 3

_Key: TypeAlias = tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]


class Analyses:
    """Analyses by file and shapes, the `capacity` used last. Whoever asks for one that is being
    made waits for the same child; at most `CHILDREN` of them run at once."""

    def __init__(
        self, path: Callable[[str], Path], analyse: Analyse, *, capacity: int = CAPACITY
    ) -> None:
        self._path = path
        self._analyse = analyse
        self._capacity = capacity
        self._turns = asyncio.Semaphore(CHILDREN)
        self._made: dict[_Key, asyncio.Task[Analysis]] = {}  # The one used last comes last.
        self._golden: dict[str, dict[str, tuple[int, ...]]] = {}

    async def of(self, model: ModelVersion, shapes: Shapes | None = None) -> Analysis:
        """The analysis of a model. `shapes` are those of its inputs that the operator gave; others
        come from the golden inputs, the card, and where only the batch is free it is 1.

        Raises `InvalidError` for shapes that do not fit the model, `CutError` for a graph that
        cannot be analysed, and the artifact store's errors.
        """
        if model.format != "onnx":
            raise CutError("only ONNX models can be cut: deploy it on one device")
        given = checked_shapes(model.signature, shapes or {})
        missing = [spec.name for spec in model.signature.inputs if spec.name not in given]
        golden = await self._golden_shapes(model) if missing else {}
        found = hints(model.signature, given, golden, model.card)
        key = (model.digest, tuple(sorted(found.items())))
        task = self._made.pop(key, None)
        if task is None:
            task = asyncio.create_task(self._make(self._path(model.digest), found))
            task.add_done_callback(partial(self._done, key))
        self._made[key] = task
        self._shrink()
        # Others may wait for the same: who gives up does not end it.
        return await asyncio.shield(task)

    async def stop(self) -> None:
        """End what is being made."""
        tasks = list(self._made.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> Analysis:
        async with self._turns:
            return await self._analyse(path, shapes)

    def _done(self, key: _Key, task: asyncio.Task[Analysis]) -> None:
        """A failure may pass: it is not kept."""
        if task.cancelled() or task.exception() is not None:
            self._made.pop(key, None)

    def _shrink(self) -> None:
        done = [key for key, task in self._made.items() if task.done()]
        for key in done[: max(0, len(self._made) - self._capacity)]:
            del self._made[key]

    async def _golden_shapes(self, model: ModelVersion) -> dict[str, tuple[int, ...]]:
        if model.golden is None:
            return {}
        digest = model.golden.digest
        found = self._golden.get(digest)
        if found is None:
            path = self._path(digest)
            golden = await asyncio.to_thread(read_golden, path, model.signature)
            found = {name: array.shape for name, array in golden.cases[0].inputs.items()}
            if len(self._golden) >= self._capacity:
                del self._golden[next(iter(self._golden))]
            self._golden[digest] = found
        return found


def checked_shapes(signature: ModelSignature, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes that an operator gave, which must fit the model. Raises `InvalidError`."""
    specs = {spec.name: spec for spec in signature.inputs}
    found: dict[str, tuple[int, ...]] = {}
    for name, sizes in shapes.items():
        spec = specs.get(name)
        if spec is None:
            names = ", ".join(f"'{known}'" for known in specs)[:300]
            raise InvalidError(f"The model has no input '{name[:80]}', only {names}.")
        shape = tuple(sizes)
        if not all(type(size) is int and size > 0 for size in shape):
            raise InvalidError(f"The shape of '{name}' must be a list of sizes of 1 or more.")
        if not shape_fits(shape, spec.shape):
            raise InvalidError(
                f"The shape {list(shape)} does not fit '{name}': the model takes "
                f"{list(spec.shape)}."
            )
        if math.prod(shape) > MAX_ELEMENTS:
            raise InvalidError(f"The shape of '{name}' has more than {MAX_ELEMENTS} elements.")
        found[name] = shape
    return found


def hints(
    signature: ModelSignature, given: Shapes, golden: Shapes, card: ModelCard | None
) -> dict[str, tuple[int, ...]]:
    """Whole shapes of one request's inputs, as far as they are known: `given` ones, else those of
    `golden` inputs, of the `card`, or of the model itself. A batch that is free is 1 but for
    given shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for spec in signature.inputs:
        if spec.name in given:
            found[spec.name] = tuple(given[spec.name])
            continue
        proposed = _from_golden(spec, golden) or _from_card(spec, card) or spec.shape
        if signature.batchable:
            proposed = (1, *proposed[1:])
        if len(proposed) != len(spec.shape):
            continue
        # The model's own sizes count where it has some.
        shape = tuple(
            own if own >= 0 else size for own, size in zip(spec.shape, proposed, strict=True)
        )
        if all(size >= 0 for size in shape):
            found[spec.name] = shape
    return found


def _from_golden(spec: TensorSpec, golden: Shapes) -> tuple[int, ...]:
    """The shape of a golden input, where it tells of sizes: those that were made up have size 1
    wherever the model leaves it open."""
    shape = tuple(golden.get(spec.name, ()))
    opened = (size for own, size in zip(spec.shape[1:], shape[1:], strict=False) if own < 0)
    return () if any(size == 1 for size in opened) else shape


def _from_card(spec: TensorSpec, card: ModelCard | None) -> tuple[int, ...]:
    """The shape of an input as the card has it; empty if it says nothing of that input."""
    if card is None or card.input.tensor != spec.name:
        return ()
    if isinstance(card.input, TextInput):
        return card.input.shape
    return _image(card.input) if len(spec.shape) == _IMAGE_RANK else ()


def _image(image: ImageInput) -> tuple[int, ...]:
    height, width = image.size
    if image.layout == "NCHW":
        return (1, _CHANNELS, height, width)
    return (1, height, width, _CHANNELS)
