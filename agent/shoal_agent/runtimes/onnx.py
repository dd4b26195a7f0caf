"""ONNX Runtime behind the runtime protocol. The library is imported on the first load."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import (
    LoadedModel,
    ProviderSet,
    RuntimeInputError,
    RuntimeLoadError,
    RuntimeRunError,
)
from shoal_agent.runtimes.common import imported, sentence
from shoal_agent.runtimes.fixed import FixedBatch
from shoal_agent.runtimes.onnxfolder import InFolder
from shoal_agent.runtimes.onnxsession import SessionOpener
from shoal_agent.runtimes.onnxshape import Dims, checked_static_shapes, fix_shapes, read_dims
from shoal_agent.runtimes.providers import QNN, board_sets, simulator_note, with_options
from shoal_shared.messages import RuntimeInfo
from shoal_shared.placement import Placement
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import Array

logger = logging.getLogger("runtimes")

DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("CPUExecutionProvider",),
    "onnxruntime-gpu": (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ),
    "onnxruntime-cann": ("CANNExecutionProvider", "CPUExecutionProvider"),
}
"""Packages that bring ONNX Runtime, with the providers that each ships. They overwrite one
another, so exactly one may be installed."""

PLUGINS = {"onnxruntime-qnn": QNN}
"""Packages that add a provider to an installed ONNX Runtime, and that provider."""

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


def installed_distributions() -> dict[str, str]:
    """Those of `DISTRIBUTIONS` that are installed, with their versions. Imports none of them."""
    found: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def installed_plugins() -> dict[str, tuple[str, str]]:
    """Those of `PLUGINS` that are installed: their provider and version. Imports none of them."""
    found: dict[str, tuple[str, str]] = {}
    for name, provider in PLUGINS.items():
        try:
            found[name] = (provider, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class OnnxRuntime:
    """Loads ONNX models on the providers of a board.

    Options of a model: `providers`, `provider_options` and `provider_set` (see
    `providers.with_options`); `static_shapes`, {input: [dimensions]}, for accelerators that need
    them fixed; `intra_op_threads` (see `thread_count`); `spinning` (default false: waiting
    threads would burn the cores that the event loop and other processes need);
    `graph_optimization`: none, basic, extended or all (default).
    """

    def __init__(self, facts: BoardFacts | None = None, machine: str = "") -> None:
        self._machine = machine or platform.machine()
        name, version = next(iter(installed_distributions().items()), ("onnxruntime", "unknown"))
        self._plugins = installed_plugins()
        listed = (*(provider for provider, _ in self._plugins.values()), *DISTRIBUTIONS[name])
        self._sets = board_sets(listed, facts, self._machine)
        self._info = RuntimeInfo(
            name="onnxruntime", version=version, formats=("onnx",), providers=listed
        )
        self._version = " ".join(
            [f"{name} {version}", *(f"{plugin} {v}" for plugin, (_, v) in self._plugins.items())]
        )

    @staticmethod
    def is_installed() -> bool:
        """Whether the library is there; does not import it."""
        return importlib.util.find_spec("onnxruntime") is not None

    @property
    def info(self) -> RuntimeInfo:
        return self._info

    @property
    def version(self) -> str:
        """Versions of all that compiles and runs a model, for the keys of compiled code."""
        return self._version

    @property
    def note(self) -> str | None:
        return simulator_note(self._info.providers, self._machine)

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
        """Load an ONNX file; blocking. Raises `RuntimeLoadError`."""
        chosen = provider_set or self.provider_sets(options)[-1]
        ort = imported("onnxruntime", "ONNX Runtime")
        opener = SessionOpener(ort, options, chosen)
        if not (chosen.static or chosen.compiles):
            return _opened(ort, opener, path, None)
        dims = read_dims(path)
        wanted = checked_static_shapes(options) or shapes or {}
        is_free = any(-1 in shape for shape in dims.inputs.values())
        if not chosen.static:
            if not is_free:
                return _opened(ort, opener, path, compiled)
            if not _only_batch_is_free(dims, wanted):
                # Code is added for each new shape, so that there is nothing to share.
                return _opened(ort, opener, path, None)
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            source = path
            if is_free and not opener.has_context(compiled):
                source = Path(folder) / "fixed.onnx"
                fix_shapes(path, source, wanted)
            model = _opened(ort, opener, source, compiled)
        return FixedBatch(model, freed(model.signature, dims))


def _opened(ort: Any, opener: SessionOpener, path: Path, compiled: Path | None) -> LoadedModel:
    def load(folder: Path | None) -> LoadedModel:
        session, placement = opener.open(path, folder)
        return _OnnxModel(session, _signature(session), ort.OrtValue, placement)

    if compiled is None:
        return load(None)
    try:
        compiled.mkdir(parents=True, exist_ok=True)
        return InFolder(compiled, load) if opener.works_in_folder else load(compiled)
    except OSError as error:
        logger.warning("compiled code is not kept: %s", error.strerror or error)
        return load(None)


def _only_batch_is_free(dims: Dims, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether nothing but the first dimension is free, and shapes are known that fix it."""
    return all(
        -1 not in shape or (-1 not in shape[1:] and name in wanted)
        for name, shape in dims.inputs.items()
    )


class _OnnxModel:
    def __init__(
        self, session: Any, signature: ModelSignature, ort_value: Any, placement: Placement
    ) -> None:
        self._session: Any = session
        self._signature = signature
        self._placement = placement
        self._providers = tuple(session.get_providers())
        self._ort_value = ort_value
        self._outputs = [spec.name for spec in signature.outputs]
        datatypes = {spec.datatype for spec in signature.inputs + signature.outputs}
        self._has_strings = "BYTES" in datatypes
        self._has_bf16 = "BF16" in datatypes

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
        feeds = self._with_text(inputs) if self._has_strings else inputs
        try:
            if self._has_bf16:
                arrays = self._run_ort_values(feeds)
            else:
                arrays = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise RuntimeRunError(f"the model failed: {sentence(error)}") from error
        if self._has_strings:
            arrays = [a if a.dtype != object else _from_text(a) for a in arrays]
        return dict(zip(self._outputs, arrays, strict=True))

    def close(self) -> None:
        self._session = None

    def _with_text(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {
            spec.name: _to_text(spec.name, inputs[spec.name])
            if spec.datatype == "BYTES"
            else inputs[spec.name]
            for spec in self._signature.inputs
        }

    def _run_ort_values(self, feeds: Mapping[str, Array]) -> list[Array]:
        # numpy has no bfloat16: its 16 bits go in and out through OrtValues.
        values: dict[str, Any] = {}
        for spec in self._signature.inputs:
            array = np.ascontiguousarray(feeds[spec.name])
            if spec.datatype == "BF16":
                value = self._ort_value.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
            else:
                value = self._ort_value.ortvalue_from_numpy(array)
            values[spec.name] = value
        results = self._session.run_with_ort_values(self._outputs, values)
        return [
            _bf16_bits(value) if spec.datatype == "BF16" else value.numpy()
            for spec, value in zip(self._signature.outputs, results, strict=True)
        ]


def _bf16_bits(value: Any) -> Array:
    shape = tuple(value.shape())
    bits = np.empty(shape, np.uint16)
    if bits.size:
        ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits


def _to_text(name: str, array: Array) -> Array:
    try:
        text = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError:
        raise RuntimeInputError(
            f"input '{name}' holds bytes that are not UTF-8, which ONNX strings must be"
        ) from None
    out = np.empty(len(text), dtype=object)
    out[:] = text
    return out.reshape(array.shape)


def _from_text(array: Array) -> Array:
    out = np.empty(array.size, dtype=object)
    out[:] = [element.encode() for element in array.reshape(-1)]
    return out.reshape(array.shape)


def _signature(session: Any) -> ModelSignature:
    return ModelSignature(
        inputs=tuple(_spec("input", arg) for arg in session.get_inputs()),
        outputs=tuple(_spec("output", arg) for arg in session.get_outputs()),
    )


def _spec(what: str, arg: Any) -> TensorSpec:
    datatype = _DATATYPES.get(arg.type)
    if datatype is None:
        raise RuntimeLoadError(
            f"{what} '{arg.name}' is {arg.type}, which the Open Inference Protocol cannot carry"
        )
    # A dimension is a number, a symbol, or None.
    shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in arg.shape)
    return TensorSpec(name=arg.name, datatype=datatype, shape=shape)


def freed(signature: ModelSignature, dims: Dims) -> ModelSignature:
    """The signature of a model whose shapes were fixed, with the dimensions that were free, and
    with the batch dimension free if there may be one: `FixedBatch` sees to it."""

    def free(spec: TensorSpec, known: Mapping[str, tuple[int, ...]]) -> TensorSpec:
        shape = known.get(spec.name, spec.shape)
        if len(shape) != len(spec.shape):
            shape = spec.shape
        return TensorSpec(
            name=spec.name, datatype=spec.datatype, shape=(-1, *shape[1:]) if is_batch else shape
        )

    specs = signature.inputs + signature.outputs
    sizes = {s.shape[0] if s.shape else 0 for s in specs}
    # A file that fixes it to 1 was made for one item; another size may be no batch at all.
    was_free = all(shape[:1] == (-1,) for shape in dims.inputs.values())
    is_batch = len(sizes) == 1 and (was_free or sizes == {1})
    return ModelSignature(
        inputs=tuple(free(s, dims.inputs) for s in signature.inputs),
        outputs=tuple(free(s, dims.outputs) for s in signature.outputs),
    )
