"""TFLite behind the runtime protocol: ai-edge-litert, else tflite-runtime, imported lazily."""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import (
    LoadedModel,
    ProviderSet,
    RuntimeLoadError,
    RuntimeRunError,
)
from shoal_agent.runtimes.common import sentence, thread_count
from shoal_agent.runtimes.delegates import BY_PROVIDER, board_sets
from shoal_agent.runtimes.onnxshape import checked_static_shapes
from shoal_agent.runtimes.providers import with_options
from shoal_shared.messages import RuntimeInfo
from shoal_shared.placement import CPU_PROVIDERS, Placement, Proof
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY, Array

# Import name and distribution, most preferred first.
_LIBRARIES = (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime"))
_DATATYPES = {dtype: name for name, dtype in NUMPY.items() if name not in ("BF16", "BYTES")}


class TfliteRuntime:
    """Loads TFLite models on the delegates of a board, or on the CPU.

    Options of a model: `providers`, `provider_options` and `provider_set` (see
    `providers.with_options`); `static_shapes`, {input: [dimensions]}; `intra_op_threads`
    (default 0: every core that this process may use).
    """

    def __init__(self, facts: BoardFacts | None = None) -> None:
        self._sets = board_sets(facts)
        self._module, distribution = next(
            ((m, d) for m, d in _LIBRARIES if importlib.util.find_spec(m)), _LIBRARIES[0]
        )
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        listed = tuple(dict.fromkeys(name for s in self._sets for name, _ in s.providers))
        self._info = RuntimeInfo(
            name=distribution, version=version, formats=("tflite",), providers=listed
        )

    @staticmethod
    def is_installed() -> bool:
        """Whether one of the libraries is there; does not import it."""
        return any(importlib.util.find_spec(module) for module, _ in _LIBRARIES)

    @property
    def info(self) -> RuntimeInfo:
        return self._info

    @property
    def version(self) -> str:
        return f"{self._info.name} {self._info.version}"

    @property
    def note(self) -> str | None:
        return None

    def provider_sets(self, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
        return with_options(self._sets, self._info.providers, options)

    def load(
        self,
        path: Path,
        options: Mapping[str, Any],
        provider_set: ProviderSet | None = None,
        compiled: Path | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> LoadedModel:
        """Load a TFLite file; blocking. Raises `RuntimeLoadError`."""
        del compiled  # Delegates keep no code that could be shared.
        chosen = provider_set or self.provider_sets(options)[-1]
        threads = thread_count(options)
        try:
            library = importlib.import_module(f"{self._module}.interpreter")
        except Exception as error:
            raise RuntimeLoadError(
                f"{self._info.name} is installed but cannot be imported: {sentence(error)}"
            ) from error
        delegates = [
            _delegate(library, name, settings)
            for name, settings in chosen.providers
            if name not in CPU_PROVIDERS
        ]
        fixed = checked_static_shapes(options) or (shapes if chosen.accelerated else None) or {}
        try:
            interpreter = library.Interpreter(
                model_path=os.fspath(path),
                num_threads=threads,
                experimental_delegates=delegates or None,
            )
            for detail in interpreter.get_input_details():
                if detail["name"] in fixed:
                    interpreter.resize_tensor_input(detail["index"], list(fixed[detail["name"]]))
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise RuntimeLoadError(
                f"{self._info.name} {self._info.version} cannot load the model: {sentence(error)}"
            ) from error
        return _TfliteModel(interpreter, tuple(name for name, _ in chosen.providers), delegates)


def _delegate(library: Any, name: str, settings: Mapping[str, str]) -> Any:
    known = BY_PROVIDER[name]
    path = settings.get("library") or ctypes.util.find_library(known.library)
    if not path:
        raise RuntimeLoadError(
            f"lib{known.library}.so not found: install the delegate of this board's image"
        )
    options = {k: v for k, v in settings.items() if k != "library"}
    try:
        return library.load_delegate(path, options)
    except (OSError, ValueError, RuntimeError) as error:
        raise RuntimeLoadError(f"{name} cannot be loaded: {sentence(error)}") from error


class _TfliteModel:
    def __init__(self, interpreter: Any, providers: tuple[str, ...], delegates: list[Any]) -> None:
        self._interpreter: Any = interpreter
        self._providers = providers
        self._delegates = delegates  # They must live as long as the interpreter.
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self._signature = ModelSignature(
            inputs=tuple(_spec("input", detail) for detail in inputs),
            outputs=tuple(_spec("output", detail) for detail in outputs),
        )
        for specs in (self._signature.inputs, self._signature.outputs):
            if len({spec.name for spec in specs}) != len(specs):
                raise RuntimeLoadError("two inputs or two outputs of the model share a name")
        self._inputs = [
            (spec, int(d["index"])) for spec, d in zip(self._signature.inputs, inputs, strict=True)
        ]
        self._outputs = [
            (spec, int(d["index"]))
            for spec, d in zip(self._signature.outputs, outputs, strict=True)
        ]
        self._shapes = {d["index"]: tuple(int(n) for n in d["shape"]) for d in inputs}

    @property
    def signature(self) -> ModelSignature:
        return self._signature

    @property
    def providers(self) -> tuple[str, ...]:
        return self._providers

    @property
    def placement(self) -> Placement:
        """TFLite does not tell which delegate took a node, so nothing is proven here."""
        accelerated = self._providers[0] not in CPU_PROVIDERS
        return Placement(accelerated=float(accelerated), proof=Proof.LISTED)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            self._resize(inputs)
            for spec, index in self._inputs:
                self._interpreter.set_tensor(index, inputs[spec.name])
            self._interpreter.invoke()
            # The interpreter reuses its memory, so the outputs must be copies: get_tensor's are.
            arrays = {spec.name: self._interpreter.get_tensor(i) for spec, i in self._outputs}
        except (ValueError, RuntimeError, OverflowError) as error:
            raise RuntimeRunError(f"the model failed: {sentence(error)}") from error
        return arrays

    def close(self) -> None:
        self._interpreter = None
        self._delegates = []

    def _resize(self, inputs: Mapping[str, Array]) -> None:
        """Give inputs of free shape the shape of this request."""
        changed = [
            (index, inputs[spec.name].shape)
            for spec, index in self._inputs
            if self._shapes.get(index) != inputs[spec.name].shape
        ]
        if not changed:
            return
        # Forgotten first: after a failure in between, the next run resizes again.
        self._shapes.clear()
        for index, shape in changed:
            self._interpreter.resize_tensor_input(index, list(shape))
        self._interpreter.allocate_tensors()
        self._shapes = {index: inputs[spec.name].shape for spec, index in self._inputs}


def _spec(what: str, detail: Mapping[str, Any]) -> TensorSpec:
    name = str(detail["name"])
    kind = np.dtype(detail["dtype"])
    datatype = "BYTES" if kind.kind in "SO" else _DATATYPES.get(kind)
    if datatype is None:
        raise RuntimeLoadError(
            f"{what} '{name}' is {kind}, which the Open Inference Protocol cannot carry"
        )
    signature = detail["shape_signature"]
    shape = signature if len(signature) else detail["shape"]
    return TensorSpec(
        name=name, datatype=datatype, shape=tuple(int(n) if n >= 0 else -1 for n in shape)
    )
