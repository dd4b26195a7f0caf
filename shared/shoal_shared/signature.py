"""Signatures of models: names, datatypes and shapes of inputs and outputs."""

from __future__ import annotations

import msgspec


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output. `datatype` is an Open Inference Protocol name; -1 in `shape` is any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelSignature(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and outputs of a model in their order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batchable(self) -> bool:
        """Whether the first dimension of every input and output is free: a batch dimension."""
        specs = self.inputs + self.outputs
        return bool(self.inputs) and all(s.shape and s.shape[0] == -1 for s in specs)


def shape_fits(shape: tuple[int, ...], spec: tuple[int, ...]) -> bool:
    """Whether a concrete `shape` fits `spec`, where -1 fits any size."""
    return len(shape) == len(spec) and all(s in (-1, d) for d, s in zip(shape, spec, strict=True))
