"""TFLite behind the runtime protocol: ai-edge-litert, else tflite-runtime, imported lazily."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
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
from shoal_agent.runtimes.common import imported, sentence, thread_count
from shoal_agent.runtimes.delegates import (
    BY_PROVIDER,
    CPU,
    board_sets,
    delegated,
    find_library,
)
from shoal_agent.runtimes.fixed import FixedBatch
from shoal_agent.runtimes.onnxshape import Shapes, checked_static_shapes
from shoal_agent.runtimes.providers import with_options
from shoal_agent.runtimes.remedies import explain
from shoal_shared.messages import RuntimeInfo
from shoal_shared.placement import CPU_PROVIDERS, Placement, Proof, of_nodes
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY, Array

# Import name and distribution, most preferred first.
_LIBRARIES = (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime"))
_DATATYPES = {dtype: name for name, dtype in NUMPY.items() if name not in ("BF16", "BYTES")}


class TfliteRuntime:
    """Loads TFLite models on the delegates of a board, or on the CPU.

    Options of a model: `providers`, `provider_options` and `provider_set` (see
    `providers.with_options`); `static_shapes`, {input: [dimensions]}, for delegates that need
    them fixed; `intra_op_threads` (default 0: every core that this process may use).
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
        library = imported(f"{self._module}.interpreter", self._info.name)
        names = [name for name, _ in chosen.providers if name not in CPU_PROVIDERS]
        delegates = [
            _delegate(library, name, settings)
            for name, settings in chosen.providers
            if name in names
        ]
        wanted = checked_static_shapes(options) or (shapes if chosen.static else None) or {}
        arguments: dict[str, Any] = {"model_path": os.fspath(path), "num_threads": threads}
        if delegates:
            # XNNPACK's delegate for the CPU would look like the accelerator's in the graph.
            resolver = library.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            arguments |= {
                "experimental_delegates": delegates,
                "experimental_op_resolver_type": resolver,
            }
        try:
            interpreter = library.Interpreter(**arguments)
            for detail in interpreter.get_input_details():
                shape = _fixed(detail, wanted) if chosen.static else wanted.get(detail["name"])
                if shape is not None and shape != tuple(detail["shape"]):
                    interpreter.resize_tensor_input(
                        detail["index"], list(shape), strict=chosen.static
                    )
            interpreter.allocate_tensors()
            placement = _placement(interpreter, names)
        except (ValueError, RuntimeError, OSError) as error:
            raise RuntimeLoadError(
                f"{self._info.name} {self._info.version} cannot load the model: {sentence(error)}"
            ) from error
        providers = tuple(name for name, _ in chosen.providers)
        model = _TfliteModel(interpreter, providers, delegates, placement, chosen.static)
        free = _signature(interpreter, is_fixed=False)
        return model if model.signature == free else FixedBatch(model, free)


def _delegate(library: Any, name: str, settings: Mapping[str, str]) -> Any:
    known = BY_PROVIDER[name].library
    path = find_library(known) or f"lib{known}.so"
    try:
        return library.load_delegate(path, dict(settings))
    except AttributeError as error:
        raise RuntimeLoadError(f"{path} is no TFLite delegate") from error
    except ValueError as error:
        # What the delegate says itself, if it does, follows on a line of its own.
        reason = " ".join(str(error).partition("\n")[2].split())[:300]
        raise RuntimeLoadError(
            f"{name} cannot be loaded: {reason or 'it gave no reason'}"
        ) from error
    except OSError as error:
        raise RuntimeLoadError(
            explain(str(error)) or f"{name} cannot be loaded: {sentence(error)}"
        ) from error


def _fixed(detail: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    """The shape of an input on a delegate, which has no free dimensions."""
    name = str(detail["name"])
    if name in shapes:
        return shapes[name]
    if -1 in detail["shape_signature"]:
        raise RuntimeLoadError(
            f"input '{name}' has free dimensions, which this accelerator cannot have: set the "
            "option 'static_shapes'"
        )
    return tuple(int(n) for n in detail["shape"])


def _placement(interpreter: Any, accelerators: Sequence[str]) -> Placement:
    """Counted in the graph, as far as this version of the library shows it, and where one
    delegate only may have taken nodes."""
    tell = getattr(interpreter, "_get_ops_details", None)
    if tell is None or len(accelerators) > 1:
        return Placement(accelerated=float(bool(accelerators)), proof=Proof.LISTED)
    taken, total = delegated(tell())
    if not accelerators:
        return of_nodes({CPU: total})
    nodes = {accelerators[0]: taken, CPU: total - taken}
    return of_nodes({name: count for name, count in nodes.items() if count})


class _TfliteModel:
    def __init__(
        self,
        interpreter: Any,
        providers: tuple[str, ...],
        delegates: list[Any],
        placement: Placement,
        is_fixed: bool,
    ) -> None:
        self._interpreter: Any = interpreter
        self._providers = providers
        self._placement = placement
        self._delegates = delegates  # They must live as long as the interpreter.
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self._signature = _signature(interpreter, is_fixed)
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
        return self._placement

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


def _signature(interpreter: Any, is_fixed: bool) -> ModelSignature:
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return ModelSignature(
        inputs=tuple(_spec("input", detail, is_fixed) for detail in inputs),
        outputs=tuple(_spec("output", detail, is_fixed) for detail in outputs),
    )


def _spec(what: str, detail: Mapping[str, Any], is_fixed: bool) -> TensorSpec:
    name = str(detail["name"])
    kind = np.dtype(detail["dtype"])
    datatype = "BYTES" if kind.kind in "SO" else _DATATYPES.get(kind)
    if datatype is None:
        raise RuntimeLoadError(
            f"{what} '{name}' is {kind}, which the Open Inference Protocol cannot carry"
        )
    signature = detail["shape_signature"]
    shape = signature if len(signature) and not is_fixed else detail["shape"]
    return TensorSpec(
        name=name, datatype=datatype, shape=tuple(int(n) if n >= 0 else -1 for n in shape)
    )
