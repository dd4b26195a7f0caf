"""TFLite behind the runtime protocol: ai-edge-litert, else tflite-runtime, imported lazily."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shoal_agent.runtimes.base import LoadedModel, RuntimeLoadError, RuntimeRunError
from shoal_agent.runtimes.common import sentence, thread_count
from shoal_shared.messages import RuntimeInfo
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY, Array

# Import name and distribution, most preferred first.
_LIBRARIES = (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime"))
_DATATYPES = {dtype: name for name, dtype in NUMPY.items() if name not in ("BF16", "BYTES")}


class TfliteRuntime:
    """Loads TFLite models on the CPU.

    Option of a model: `intra_op_threads` (default 0: every core that this process may use).
    """

    def __init__(self) -> None:
        self._module, distribution = next(
            ((m, d) for m, d in _LIBRARIES if importlib.util.find_spec(m)), _LIBRARIES[0]
        )
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        self._info = RuntimeInfo(
            name=distribution, version=version, formats=("tflite",), providers=("CPU",)
        )

    @staticmethod
    def is_installed() -> bool:
        """Whether one of the libraries is there; does not import it."""
        return any(importlib.util.find_spec(module) for module, _ in _LIBRARIES)

    @property
    def info(self) -> RuntimeInfo:
        return self._info

    def load(self, path: Path, options: Mapping[str, Any]) -> LoadedModel:
        """Load a TFLite file; blocking. Raises `RuntimeLoadError`."""
        threads = thread_count(options)
        try:
            library = importlib.import_module(f"{self._module}.interpreter")
        except Exception as error:
            raise RuntimeLoadError(
                f"{self._info.name} is installed but cannot be imported: {sentence(error)}"
            ) from error
        try:
            interpreter = library.Interpreter(model_path=os.fspath(path), num_threads=threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise RuntimeLoadError(
                f"{self._info.name} {self._info.version} cannot load the model: {sentence(error)}"
            ) from error
        return _TfliteModel(interpreter)


class _TfliteModel:
    def __init__(self, interpreter: Any) -> None:
        self._interpreter: Any = interpreter
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
        return ("CPU",)

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
