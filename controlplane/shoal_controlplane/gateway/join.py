"""Outputs of the pieces of a batch, put together in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal_shared.oip import Tensor


class JoinError(ValueError):
    """The outputs of two pieces do not belong into one array; the text is one plain sentence."""


class OutputJoin:
    """Arrays of `items` rows, made when the first piece tells their form."""

    def __init__(self, items: int) -> None:
        self._items = items
        self._whole: dict[str, Tensor] = {}

    def add(self, start: int, stop: int, outputs: Sequence[Tensor]) -> None:
        """Copy the outputs of the items [start, stop) to where they belong. Raises `JoinError`."""
        if not self._whole:
            for tensor in outputs:
                shape = (self._items, *tensor.data.shape[1:])
                data = np.empty(shape, tensor.data.dtype)
                self._whole[tensor.name] = Tensor(tensor.name, tensor.datatype, data)
        if len(outputs) != len(self._whole):
            raise JoinError("the devices did not return the same outputs")
        for tensor in outputs:
            whole = self._whole.get(tensor.name)
            if whole is None or whole.datatype != tensor.datatype:
                raise JoinError("the devices did not return the same outputs")
            form = (stop - start, *whole.data.shape[1:])
            if tensor.data.shape != form:
                raise JoinError(
                    f"output '{tensor.name}' cannot be put together: a device returned "
                    f"{list(tensor.data.shape)} where {list(form)} was due"
                )
            whole.data[start:stop] = tensor.data

    def tensors(self) -> list[Tensor]:
        """The outputs of all items, once all were added."""
        return list(self._whole.values())
