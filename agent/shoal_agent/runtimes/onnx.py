"""ONNX Runtime behind the runtime protocol. The library is imported on the first load."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal_agent.runtimes.base import (
    LoadedModel,
    RuntimeInputError,
    RuntimeLoadError,
    RuntimeRunError,
)
from shoal_agent.runtimes.common import sentence, thread_count
from shoal_shared.messages import RuntimeInfo
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import Array

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
_FATAL_ONLY = 4
_OPTIMISATION = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


def installed_distributions() -> dict[str, str]:
    """Those of `DISTRIBUTIONS` that are installed, with their versions. Imports none of them."""
    found: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class OnnxRuntime:
    """Loads ONNX models.

    Options of a model: `providers`, a list of names or [name, {option: value}] pairs, most
    preferred first (default: those given here); `intra_op_threads` (see `thread_count`);
    `spinning` (default false: waiting threads would burn the cores that the event loop and
    other processes need); `graph_optimization`: none, basic, extended or all (default).
    """

    def __init__(self, providers: Sequence[Any] = ("CPUExecutionProvider",)) -> None:
        self._providers = tuple(providers)
        name, version = next(iter(installed_distributions().items()), ("onnxruntime", "unknown"))
        self._info = RuntimeInfo(
            name="onnxruntime", version=version, formats=("onnx",), providers=DISTRIBUTIONS[name]
        )

    @staticmethod
    def is_installed() -> bool:
        """Whether the library is there; does not import it."""
        return importlib.util.find_spec("onnxruntime") is not None

    @property
    def info(self) -> RuntimeInfo:
        return self._info

    def load(self, path: Path, options: Mapping[str, Any]) -> LoadedModel:
        """Load an ONNX file; blocking. Raises `RuntimeLoadError`."""
        try:
            ort: Any = importlib.import_module("onnxruntime")
        except Exception as error:
            # Its native library fails in many ways: a missing .so, a wrong numpy.
            raise RuntimeLoadError(
                f"ONNX Runtime is installed but cannot be imported: {sentence(error)}"
            ) from error
        providers = _checked_providers(options.get("providers", self._providers), ort)
        session_options = _session_options(options, ort)
        try:
            session = ort.InferenceSession(
                os.fspath(path), sess_options=session_options, providers=providers
            )
        except Exception as error:
            # Its exceptions share no base class.
            raise RuntimeLoadError(
                f"ONNX Runtime {ort.__version__} cannot load the model: {sentence(error)}"
            ) from error
        session.disable_fallback()
        return _OnnxModel(session, _signature(session), ort.OrtValue)


class _OnnxModel:
    def __init__(self, session: Any, signature: ModelSignature, ort_value: Any) -> None:
        self._session: Any = session
        self._signature = signature
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
        return tuple(self._session.get_providers())

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


def _checked_providers(wanted: Any, ort: Any) -> list[Any]:
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not wanted:
        raise RuntimeLoadError("option 'providers' must be a list of execution providers")
    available = ort.get_available_providers()
    providers: list[Any] = []
    for item in wanted:
        pair = isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2
        name, settings = item if pair else (item, {})
        if not isinstance(name, str) or not isinstance(settings, Mapping):
            raise RuntimeLoadError(
                "option 'providers' must hold names or pairs of a name and its options"
            )
        if name not in available:
            raise RuntimeLoadError(
                f"execution provider '{name[:80]}' is not available; this ONNX Runtime has "
                f"{', '.join(available)}"
            )
        providers.append((name, {str(k): str(v) for k, v in settings.items()}))
    return providers


def _session_options(options: Mapping[str, Any], ort: Any) -> Any:
    threads = thread_count(options)
    level = options.get("graph_optimization", "all")
    if not isinstance(level, str) or level not in _OPTIMISATION:
        raise RuntimeLoadError(
            f"option 'graph_optimization' must be one of {', '.join(_OPTIMISATION)}"
        )
    spinning = options.get("spinning", False)
    if not isinstance(spinning, bool):
        raise RuntimeLoadError("option 'spinning' must be true or false")
    out = ort.SessionOptions()
    # What goes wrong reaches the caller as an exception; the log would say it again.
    out.log_severity_level = _FATAL_ONLY
    out.intra_op_num_threads = threads
    out.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _OPTIMISATION[level])
    out.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return out


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
