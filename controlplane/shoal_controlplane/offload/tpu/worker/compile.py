"""Models compiled for the batch sizes that pay, and requests cut to fit them.

A request takes the smallest compiled batch that holds it and is padded up to it; one that is larger
than all takes several. Sizes of other dimensions that the model leaves open are compiled when they
first occur, and the least recently used of them are forgotten.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from shoal_controlplane.offload.tpu.worker import graph
from shoal_controlplane.offload.tpu.worker.errors import ModelError, RequestError
from shoal_controlplane.offload.tpu.worker.reader import Array, Model
from shoal_shared.signature import ModelSignature, TensorSpec, shape_fits
from shoal_shared.tensors import NUMPY

MAX_SHAPES = 32
"""Compiled forms that are kept."""

Shapes = tuple[tuple[int, ...], ...]


def configure(platform: str = "") -> None:
    """Set JAX up for this process, once and before anything else of it is used: 64-bit types, as
    models have them, and the platform (`cpu`, `tpu`; empty: the best there is). Raises
    `ModelError` where there is no such device."""
    jax.config.update("jax_enable_x64", True)
    if platform:
        jax.config.update("jax_platforms", platform)
    try:
        jax.devices()
    except RuntimeError as error:
        said = (str(error).splitlines() or [""])[0]
        raise ModelError(f"JAX finds no device here: {said[:300]}") from None


class CompiledModel:
    """A model on one device; without `batches` it takes requests as they are. One thread may
    compile while another infers."""

    def __init__(self, model: Model, batches: Sequence[int] = ()) -> None:
        self.signature: ModelSignature = model.signature
        self.batches: tuple[int, ...] = tuple(sorted(set(batches)))
        # A first dimension that is open need not be one of independent items.
        self._batched = bool(batches)
        if self._batched and not self.signature.batchable:
            raise ModelError("the model has no batch dimension, so it takes no batch sizes")
        self._graph = model.graph
        self._weights = jax.device_put(graph.weights(model.graph))
        self._compiled: OrderedDict[Shapes, Any] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def device(self) -> str:
        """What it runs on, such as `TPU v5 lite`."""
        return str(jax.devices()[0].device_kind)

    @property
    def largest(self) -> int:
        """The most items that one run takes; 0 where the model has no batch dimension."""
        return self.batches[-1] if self._batched else 0

    def warm(self, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        """Compile all batch sizes ahead, where no other dimension is open or `shapes` names the
        sizes of an item (without the batch) for each input with open ones. Raises `ModelError`."""
        items = [self._item(spec, (shapes or {}).get(spec.name)) for spec in self.signature.inputs]
        if any(-1 in item for item in items):
            return
        for batch in self.batches if self._batched else (0,):
            self.prepare(tuple((batch, *item) if batch else item for item in items))

    def _item(self, spec: TensorSpec, given: Sequence[int] | None) -> tuple[int, ...]:
        shape = spec.shape[1:] if self._batched else spec.shape
        if given is None:
            return shape
        if not shape_fits(tuple(given), shape):
            raise ModelError(f"shape {list(given)} does not fit {list(shape)} of '{spec.name}'")
        return tuple(given)

    def check(self, inputs: Mapping[str, Array]) -> int:
        """Number of items of a request that fits the model, 0 where it has no batch dimension.
        Raises `RequestError`."""
        specs = {spec.name: spec for spec in self.signature.inputs}
        for name in inputs:
            if name not in specs:
                raise RequestError(f"the model has no input '{name[:80]}'")
        for name, spec in specs.items():
            if name not in inputs:
                raise RequestError(f"input '{name}' is missing")
            if not shape_fits(inputs[name].shape, spec.shape):
                raise RequestError(
                    f"input '{name}' has shape {list(inputs[name].shape)}, but the model takes "
                    f"{list(spec.shape)}"
                )
        if not self._batched:
            return 0
        counts = {array.shape[0] for array in inputs.values()}
        if len(counts) > 1:
            raise RequestError(f"the inputs differ in their number of items: {sorted(counts)}")
        items: int = counts.pop()
        if items == 0:
            raise RequestError("the request has no items")
        return items

    def padded(self, items: int) -> int:
        """The compiled batch size for so many items, at most `largest`."""
        return next(batch for batch in self.batches if batch >= items)

    def prepare(self, shapes: Shapes) -> Any:
        """The compiled form for inputs of these shapes. Raises `ModelError`."""
        with self._lock:
            found = self._compiled.get(shapes)
        if found is None:
            found = self._compile(shapes)
        with self._lock:
            self._compiled[shapes] = found
            self._compiled.move_to_end(shapes)
            while len(self._compiled) > MAX_SHAPES:
                self._compiled.popitem(last=False)
        return found

    def needed(self, inputs: Mapping[str, Array]) -> list[Shapes]:
        """Shapes that must be compiled, and are not, to answer a request that `check` let pass."""
        items = [inputs[spec.name].shape for spec in self.signature.inputs]
        if not self._batched:
            return self._missing([tuple(items)])
        count, rest = items[0][0], tuple(shape[1:] for shape in items)
        whole, left = divmod(count, self.largest)
        batches = [self.largest] * bool(whole) + [self.padded(left)] * bool(left)
        return self._missing([self._shapes(batch, rest) for batch in batches])

    def room(self, item: Shapes) -> int:
        """The largest compiled batch for items of these shapes, 0 where there is none."""
        with self._lock:
            return max(
                (b for b in self.batches if self._shapes(b, item) in self._compiled), default=0
            )

    def _shapes(self, batch: int, item: Shapes) -> Shapes:
        return tuple((batch, *shape) for shape in item)

    def _missing(self, forms: list[Shapes]) -> list[Shapes]:
        with self._lock:
            return [shapes for shapes in forms if shapes not in self._compiled]

    def _compile(self, shapes: Shapes) -> Any:
        lowered = self.lower(shapes)
        try:
            return lowered.compile()
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            said = (str(error).splitlines() or [""])[0]
            raise ModelError(f"the model cannot be compiled: {said[:300]}") from None

    def lower(self, shapes: Shapes, sharding: Any = None, platform: str | None = None) -> Any:
        """The traced model for inputs of these shapes, for the device here or for another.
        Raises `ModelError`."""
        kinds = [
            jax.ShapeDtypeStruct(shape, device_type(spec.datatype))
            for shape, spec in zip(shapes, self.signature.inputs, strict=True)
        ]
        weights = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), self._weights)
        options = {} if sharding is None else {"in_shardings": sharding, "out_shardings": sharding}
        with jax.default_matmul_precision("highest"):
            traced = jax.jit(self._run, **options).trace(weights, kinds)
            return traced.lower(lowering_platforms=(platform,) if platform else None)

    def _run(self, weights: dict[str, Any], inputs: list[Any]) -> tuple[Any, ...]:
        names = [spec.name for spec in self.signature.inputs]
        found = graph.run(self._graph, dict(zip(names, inputs, strict=True)), weights)
        for value, spec in zip(found, self.signature.outputs, strict=True):
            if value.dtype != device_type(spec.datatype):
                raise ModelError(
                    f"output '{spec.name}' is {value.dtype}, but the model says {spec.datatype}"
                )
        return found

    def infer(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs, in the signature's order, of a request that `check` let pass; BF16 goes in
        and out as its 16 bits."""
        arrays = [
            to_device_type(inputs[spec.name], spec.datatype) for spec in self.signature.inputs
        ]
        if not self._batched:
            return self._infer(arrays)
        items = arrays[0].shape[0]
        parts = []
        for start in range(0, items, self.largest):
            part = [array[start : start + self.largest] for array in arrays]
            parts.append(self._infer_padded(part))
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _infer_padded(self, arrays: list[Array]) -> list[Array]:
        items = arrays[0].shape[0]
        missing = self.padded(items) - items
        if missing:
            # The last item once more: values of the kind that the model is made for.
            arrays = [np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for a in arrays]
        outputs = self._infer(arrays)
        for array, spec in zip(outputs, self.signature.outputs, strict=True):
            if array.shape[:1] != (items + missing,):
                raise ModelError(f"output '{spec.name}' does not have an element an item")
        return [array[:items] for array in outputs]

    def _infer(self, arrays: list[Array]) -> list[Array]:
        run = self.prepare(tuple(array.shape for array in arrays))
        outputs = jax.device_get(run(self._weights, arrays))
        return [
            np.asarray(array).view(NUMPY[spec.datatype])
            for array, spec in zip(outputs, self.signature.outputs, strict=True)
        ]


def device_type(datatype: str) -> np.dtype[Any]:
    """The element type on the device for one of the protocol."""
    return np.dtype(ml_dtypes.bfloat16) if datatype == "BF16" else NUMPY[datatype]


def to_device_type(array: Array, datatype: str) -> Array:
    """An array of a request as the device takes it."""
    return array.view(ml_dtypes.bfloat16) if datatype == "BF16" else array
