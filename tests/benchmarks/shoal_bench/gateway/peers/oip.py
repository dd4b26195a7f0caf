"""The Open Inference Protocol for servers that do not speak it: one body in, one body out.

Enough for FP32 tensors, in JSON and with the binary extension. Runs in the environments of the
peers, so it imports nothing of Shoal's.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
import orjson

HEADER_LENGTH = "inference-header-content-length"


class OnnxModel:
    """An ONNX file on the CPU, with the session options that Shoal's agent uses."""

    def __init__(self, name: str, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.name = name
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [output.name for output in self.session.get_outputs()]

    def answer(self, body: bytes, header_length: int | None) -> tuple[bytes, int | None]:
        """The answer to a request, with its header's length where it is binary."""
        inputs, binary = decode(body, header_length)
        arrays = self.session.run(self.outputs, inputs)
        return encode(self.name, dict(zip(self.outputs, arrays, strict=True)), binary=binary)


def decode(body: bytes, header_length: int | None) -> tuple[dict[str, np.ndarray], bool]:
    """A request's inputs, and whether it wants its outputs as binary."""
    request: dict[str, Any] = orjson.loads(body if header_length is None else body[:header_length])
    at = header_length or 0
    inputs = {}
    for tensor in request["inputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(tensor["data"], np.float32)
        else:
            array = np.frombuffer(body, np.float32, size // 4, at)
            at += size
        inputs[tensor["name"]] = array.reshape(tensor["shape"])
    return inputs, bool(request.get("parameters", {}).get("binary_data_output"))


def encode(model: str, arrays: dict[str, np.ndarray], *, binary: bool) -> tuple[bytes, int | None]:
    """The answer's body, with the length of its header if it is binary."""
    outputs: list[dict[str, Any]] = []
    blobs = []
    for name, array in arrays.items():
        tensor = {"name": name, "datatype": "FP32", "shape": array.shape}
        if binary:
            blobs.append(np.ascontiguousarray(array).tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = np.ascontiguousarray(array).ravel()
        outputs.append(tensor)
    answer = {"model_name": model, "outputs": outputs}
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *blobs]), len(header)) if binary else (header, None)
