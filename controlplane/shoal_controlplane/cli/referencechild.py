"""The child process that runs or quantises a model on the CPU: `python -m … run|quantize …`.

The one module of the control plane that imports inference runtimes, and only in a process of its
own: a model that crashes its runtime hurts nobody else. Requests come on stdin, replies go to
stdout, each after a `FRAME`:

    run FILE FORMAT THREADS: a reply with the signature, then one to each request
    quantize FILE OUT ACTIVATION WEIGHT PER_CHANNEL: requests are calibration inputs, one reply
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import resource
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import numpy as np

from shoal_shared.oip import InferReply, Tensor, decode_request, encode_reply
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY, Array, datatype_of

FRAME = struct.Struct("<QQ")
"""Before each request or reply: bytes of its header, and of all of it."""

_NOT_RUN = "the model cannot be run on the CPU"
_ONNX_TYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    **{f"{u}int{n}": f"{u.upper()}INT{n}" for u in ("", "u") for n in (8, 16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in NUMPY.items() if name not in ("BF16", "BYTES")}


class Model(Protocol):
    """A loaded model."""

    signature: ModelSignature

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""


class OnnxModel:
    """A model in ONNX Runtime. `threads` is 0 for every core."""

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime

        ort: Any = onnxruntime  # Its names are not exported as type checkers want them.
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self._session = ort.InferenceSession(
            os.fspath(file), options, providers=["CPUExecutionProvider"]
        )
        self.signature = ModelSignature(
            inputs=tuple(_onnx_spec(arg) for arg in self._session.get_inputs()),
            outputs=tuple(_onnx_spec(arg) for arg in self._session.get_outputs()),
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [spec.name for spec in self.signature.outputs]
        feeds = {name: _texts(array, bytes.decode) for name, array in inputs.items()}
        arrays = self._session.run(names, feeds)
        return {n: _texts(a, str.encode) for n, a in zip(names, arrays, strict=True)}


class TfliteModel:
    """A model in ai-edge-litert, else tflite-runtime."""

    def __init__(self, file: Path, threads: int) -> None:
        package = (
            "ai_edge_litert" if importlib.util.find_spec("ai_edge_litert") else "tflite_runtime"
        )
        library = importlib.import_module(f"{package}.interpreter")
        self._interpreter = library.Interpreter(
            model_path=os.fspath(file), num_threads=threads or None
        )
        self._interpreter.allocate_tensors()
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        self.signature = ModelSignature(
            inputs=tuple(_tflite_spec(detail) for detail in self._inputs),
            outputs=tuple(_tflite_spec(detail) for detail in self._outputs),
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for detail in self._inputs:
            self._interpreter.resize_tensor_input(
                detail["index"], list(inputs[detail["name"]].shape)
            )
        self._interpreter.allocate_tensors()
        for detail in self._inputs:
            self._interpreter.set_tensor(detail["index"], inputs[detail["name"]])
        self._interpreter.invoke()
        return {d["name"]: self._interpreter.get_tensor(d["index"]) for d in self._outputs}


def run(file: Path, format_name: str, threads: int, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer every request with its outputs, or with the reason that there are none."""
    model: Model = (TfliteModel if format_name == "tflite" else OnnxModel)(file, threads)
    _write(sink, InferReply([], parameters={"signature": msgspec.to_builtins(model.signature)}))
    for inputs in _requests(source):
        try:
            outputs = model.run(inputs)
        except Exception as error:  # the runtimes raise nearly anything
            reply = InferReply([], error=f"{_NOT_RUN}: {_sentence(error)}")
        else:
            reply = InferReply([Tensor(n, datatype_of(a), a) for n, a in outputs.items()])
        _write(sink, reply)


def quantize(
    file: Path, out: Path, activation: str, weight: str, per_channel: bool, source: BinaryIO
) -> dict[str, Any]:
    """Write a model with quantised nodes; what there is to say of it.

    The configuration is the one that Qualcomm's provider wants, which others take too. Signed
    types are symmetric, as TensorRT wants them.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.execution_providers import qnn

    tools: Any = quantization
    qnn_tools: Any = qnn

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs = _requests(source)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._inputs, None)

    kinds = {"uint8": "QUInt8", "int8": "QInt8", "uint16": "QUInt16"}
    notes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            # Inference of symbolic shapes needs sympy, and helps with transformers only.
            symbolic = importlib.util.find_spec("sympy") is not None
            tools.quant_pre_process(file, prepared, skip_symbolic_shape=not symbolic)
        except Exception as error:  # it is an optimisation that not every model survives
            notes["unprepared"] = _sentence(error)
            prepared = file
        config = qnn_tools.get_qnn_qdq_config(
            prepared,
            Reader(),
            activation_type=getattr(tools.QuantType, kinds[activation]),
            weight_type=getattr(tools.QuantType, kinds[weight]),
            per_channel=per_channel,
            activation_symmetric=activation == "int8",
        )
        tools.quantize(prepared, out, config)
    return notes


def main(argv: list[str]) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries print what they like on stdout: it must not get among the frames.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    source = sys.stdin.buffer
    try:
        if argv[1] == "run":
            run(Path(argv[2]), argv[3], int(argv[4]), source, sink)
        else:
            done = quantize(Path(argv[2]), Path(argv[3]), argv[4], argv[5], argv[6] == "1", source)
            _write(sink, InferReply([], parameters=done))
    except Exception as error:  # a child of strange work: every failure is one sentence
        failed = _NOT_RUN if argv[1] == "run" else "the model cannot be quantised"
        _write(sink, InferReply([], error=f"{failed}: {_sentence(error)}"))
        return 1
    return 0


def _requests(source: BinaryIO) -> Iterator[dict[str, Array]]:
    while head := source.read(FRAME.size):
        header, length = FRAME.unpack(head)
        request = decode_request(bytearray(source.read(length)), header)
        yield {tensor.name: tensor.data for tensor in request.inputs}


def _write(sink: BinaryIO, reply: InferReply) -> None:
    buffers, header = encode_reply(reply, [True] * len(reply.outputs))
    body = b"".join(buffers)
    sink.write(FRAME.pack(len(body) if header is None else header, len(body)))
    sink.write(body)
    sink.flush()


def _onnx_spec(arg: Any) -> TensorSpec:
    kind = str(arg.type).removeprefix("tensor(").removesuffix(")")
    if kind not in _ONNX_TYPES:
        raise ValueError(f"'{arg.name}' is {arg.type}, which cannot be run here")
    # A dimension is a number, a symbol, or None.
    shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in arg.shape)
    return TensorSpec(name=arg.name, datatype=_ONNX_TYPES[kind], shape=shape)


def _tflite_spec(detail: Mapping[str, Any]) -> TensorSpec:
    name, kind = str(detail["name"]), np.dtype(detail["dtype"])
    if kind not in _NAMES:
        raise ValueError(f"'{name}' is {kind}, which cannot be run here")
    signature = detail["shape_signature"]
    shape = signature if len(signature) else detail["shape"]
    return TensorSpec(name=name, datatype=_NAMES[kind], shape=tuple(max(int(n), -1) for n in shape))


def _texts(array: Array, change: Callable[[Any], Any]) -> Array:
    """Texts as bytes, or the other way round; ONNX Runtime takes and gives texts."""
    if array.dtype != object:
        return array
    out = np.empty(array.size, dtype=object)
    out[:] = [change(element) for element in array.reshape(-1)]
    return out.reshape(array.shape)


def _sentence(error: Exception) -> str:
    """The first line of an error, without codes and C++ signatures."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    lines = text.splitlines() or [type(error).__name__]
    return "".join(c if c.isprintable() else "?" for c in lines[0])[:300].rstrip(".")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
