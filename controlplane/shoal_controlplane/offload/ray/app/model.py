"""An ONNX model on a replica: fetched, checked against its digest and signature, and run."""

from __future__ import annotations

import hashlib
import http.client
import importlib
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from shoal_controlplane.offload.ray.app.arguments import Arguments
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.signature import ModelSignature, shape_fits
from shoal_shared.tensors import Array

FETCH_TIMEOUT_S = 900.0
_SILENCE_S = 60.0
_CHUNK = 1 << 20
_SHOWN = len("sha256:") + 12
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
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
DATATYPES = frozenset(_DATATYPES.values())
"""What a replica can take in and give out. No BF16, which numpy cannot hold."""


class StartError(RuntimeError):
    """The model cannot be served; the text is one plain sentence."""


class InputError(ValueError):
    """A request does not fit the model; the text is one plain sentence."""


class RunError(RuntimeError):
    """The model failed on a request; the text is one plain sentence."""


def fetch(url: str, digest: str, size: int, into: Path) -> None:
    """Write the bytes behind `url` to `into`. Raises `StartError` unless they are those of
    `digest`. Blocking."""
    checksum = hashlib.sha256()
    left = size
    end = time.monotonic() + FETCH_TIMEOUT_S
    try:
        # http and https only: the control plane checks it, and other handlers read local files.
        if not url.startswith(("http://", "https://")):
            raise StartError(f"{url[:200]!r} is no address of a model")
        with (
            urllib.request.urlopen(url, timeout=_SILENCE_S) as answer,  # noqa: S310
            into.open("wb") as file,
        ):
            while chunk := answer.read(_CHUNK):
                left -= len(chunk)
                if time.monotonic() > end:
                    raise StartError(f"{url} sends the model too slowly")
                if left < 0:
                    raise StartError(f"{url} sends more than the {size} bytes of the model")
                checksum.update(chunk)
                file.write(chunk)
    except urllib.error.HTTPError as error:
        raise StartError(f"the model cannot be fetched: {url} answered {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # URLError is an OSError.
        said = " ".join(str(getattr(error, "reason", error)).split())[:200]
        raise StartError(f"the model cannot be fetched from {url}: {said}") from None
    found = f"sha256:{checksum.hexdigest()}"
    if found != digest:
        shown = f"{found[:_SHOWN]}… instead of {digest[:_SHOWN]}…"
        raise StartError(f"{url} is not the model: its digest is {shown}")


class OnnxModel:
    """A model that is loaded. `threads` of ONNX Runtime; on a GPU where `gpu`."""

    def __init__(self, path: Path, signature: ModelSignature, threads: int, gpu: bool) -> None:
        try:
            ort: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise StartError(
                f"ONNX Runtime cannot be imported on this Ray node ({error}): install it there, "
                "or name it in the target's option pip"
            ) from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait must not burn the CPUs of other replicas.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        if gpu:
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise StartError(
                    "ONNX Runtime on this Ray node has no CUDA provider: install onnxruntime-gpu"
                )
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            raise StartError(f"ONNX Runtime cannot load the model: {_sentence(error)}") from None
        _check_signature(self._session, signature)
        self._signature = signature

    def run(self, request: InferRequest) -> InferReply:
        """Answer a request; blocking. Raises `InputError` and `RunError`."""
        feeds = self._feeds(request)
        asked = [output.name for output in request.outputs]
        datatypes = {spec.name: spec.datatype for spec in self._signature.outputs}
        for output in request.outputs:
            if output.name not in datatypes:
                raise InputError(f"the model has no output '{output.name}'")
            if output.classification:
                raise InputError("classification is not supported")
        if len(set(asked)) != len(asked):
            raise InputError("an output is asked for twice")
        names = asked or list(datatypes)
        try:
            arrays = self._session.run(names, feeds)
        except Exception as error:
            raise RunError(f"the model failed: {_sentence(error)}") from None
        outputs = [
            Tensor(name, datatypes[name], _from_text(array) if array.dtype == object else array)
            for name, array in zip(names, arrays, strict=True)
        ]
        return InferReply(outputs, id=request.id)

    def _feeds(self, request: InferRequest) -> dict[str, Array]:
        given = {tensor.name: tensor for tensor in request.inputs}
        if len(given) != len(request.inputs):
            raise InputError("an input is given twice")
        specs = {spec.name: spec for spec in self._signature.inputs}
        for name in given:
            if name not in specs:
                raise InputError(f"the model has no input '{name}'")
        feeds: dict[str, Array] = {}
        for name, spec in specs.items():
            tensor = given.get(name)
            if tensor is None:
                raise InputError(f"input '{name}' is missing")
            if tensor.datatype != spec.datatype:
                raise InputError(
                    f"input '{name}' is {tensor.datatype}, but the model takes {spec.datatype}"
                )
            if not shape_fits(tensor.data.shape, spec.shape):
                raise InputError(
                    f"input '{name}' has shape {list(tensor.data.shape)}, but the model takes "
                    f"{list(spec.shape)}"
                )
            feeds[name] = _to_text(name, tensor.data) if spec.datatype == "BYTES" else tensor.data
        return feeds


def load(arguments: Arguments, folder: Path) -> OnnxModel:
    """Fetch and open the model of an application, by way of a file in `folder`; blocking. Raises
    `StartError`."""
    path = folder / "model.onnx"
    fetch(arguments.url, arguments.digest, arguments.size, path)
    return OnnxModel(path, arguments.signature, arguments.threads, arguments.gpu)


def _check_signature(session: Any, signature: ModelSignature) -> None:
    for what, args, specs in (
        ("inputs", session.get_inputs(), signature.inputs),
        ("outputs", session.get_outputs(), signature.outputs),
    ):
        found = {arg.name: _DATATYPES.get(arg.type, arg.type) for arg in args}
        wanted = {spec.name: spec.datatype for spec in specs}
        if found != wanted:
            raise StartError(f"the {what} of the model are {found} instead of {wanted}")


def _to_text(name: str, array: Array) -> Array:
    out = np.empty(array.size, dtype=object)
    try:
        out[:] = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError:
        raise InputError(
            f"input '{name}' holds bytes that are not UTF-8, which ONNX strings must be"
        ) from None
    return out.reshape(array.shape)


def _from_text(array: Array) -> Array:
    out = np.empty(array.size, dtype=object)
    out[:] = [element.encode() for element in array.reshape(-1)]
    return out.reshape(array.shape)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
