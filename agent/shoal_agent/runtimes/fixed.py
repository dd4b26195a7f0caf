"""A model that was compiled for fixed shapes, behind the signature that it had before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shoal_agent.runtimes.base import LoadedModel, RuntimeInputError, RuntimeShapeError
from shoal_shared.placement import Placement
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import NUMPY, Array


class FixedBatch:
    """Splits batches into runs of the size that `model` takes; the last run is filled up with
    repetitions of its last item, whose outputs are dropped.

    `signature` is what requests are checked against. Where its batch dimension is not free,
    inputs are passed on as they are. Other shapes than the compiled ones raise
    `RuntimeShapeError`.
    """

    def __init__(self, model: LoadedModel, signature: ModelSignature) -> None:
        self._model = model
        self._signature = signature
        self._shapes = {spec.name: spec.shape for spec in model.signature.inputs}
        self._size = model.signature.inputs[0].shape[0] if signature.batchable else 0

    @property
    def signature(self) -> ModelSignature:
        return self._signature

    @property
    def providers(self) -> tuple[str, ...]:
        return self._model.providers

    @property
    def placement(self) -> Placement:
        return self._model.placement

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        items = self._items(inputs)
        if not self._size or items == self._size:
            return self._model.run(inputs)
        runs = [
            self._model.run({name: self._part(a, at) for name, a in inputs.items()})
            for at in range(0, items, self._size)
        ]
        if not runs:
            return self._nothing()
        return {name: np.concatenate([run[name] for run in runs])[:items] for name in runs[0]}

    def close(self) -> None:
        self._model.close()

    def _items(self, inputs: Mapping[str, Array]) -> int:
        """Items in the batch, after a check of all dimensions."""
        first = 1 if self._size else 0
        for name, shape in self._shapes.items():
            given = inputs[name].shape
            if given[first:] != shape[first:] or len(given) != len(shape):
                raise RuntimeShapeError(
                    f"this device compiled the model for '{name}' of {list(shape)}, not of "
                    f"{list(given)}"
                )
        if not self._size:
            return 0
        items = {inputs[name].shape[0] for name in self._shapes}
        if len(items) > 1:
            raise RuntimeInputError("the inputs differ in their batch dimension")
        return int(items.pop())

    def _part(self, array: Array, at: int) -> Array:
        part = array[at : at + self._size]
        lacking = self._size - len(part)
        return np.concatenate([part, np.repeat(part[-1:], lacking, axis=0)]) if lacking else part

    def _nothing(self) -> dict[str, Array]:
        """Outputs of an empty batch: the model cannot be run on nothing, so on zeros."""
        zeros = {
            spec.name: np.zeros(spec.shape, NUMPY[spec.datatype])
            for spec in self._model.signature.inputs
        }
        return {name: array[:0] for name, array in self._model.run(zeros).items()}


_conforms: type[LoadedModel] = FixedBatch
