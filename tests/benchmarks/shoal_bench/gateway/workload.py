"""What is asked: two models, and requests whose right answers are known."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SMALL = "small"
EFFICIENTNET = "efficientnet-lite0"
HEADER_LENGTH = "Inference-Header-Content-Length"
TOLERANCE = 1e-5
_BODIES = 8

Arrays = dict[str, NDArray[Any]]


class WrongAnswerError(Exception):
    """A server's answer is not the model's."""


def write_small_model(path: Path) -> None:
    """A perceptron, FP32 [N, 16] -> 64 -> [N, 10], as ONNX."""
    rng = np.random.default_rng(1)
    weights = {
        name: numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in {"w1": (16, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)}.items()
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        list(weights.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def prepare_models(folder: Path) -> dict[str, Path]:
    """Both models' files by name. Raises `RuntimeError` if the demonstration's cannot be built."""
    small = folder / SMALL / "model.onnx"
    write_small_model(small)
    command = [sys.executable, "-m", "shoal_simulators.demo.models", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the demonstration's models cannot be built: {done.stderr.strip()}")
    return {SMALL: small, EFFICIENTNET: folder / EFFICIENTNET / "model.onnx"}


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests for one model in one encoding: bodies, headers, and the right outputs."""

    model: str
    binary: bool
    bodies: tuple[bytes, ...]
    headers: tuple[tuple[str, str], ...]
    expected: tuple[Arrays, ...]

    @property
    def name(self) -> str:
        return f"{self.model}, {'binary' if self.binary else 'JSON'}"

    def http_requests(self, host: str, port: int) -> list[bytes]:
        """Whole HTTP/1.1 requests."""
        requests = []
        for body in self.bodies:
            lines = [
                f"POST /v2/models/{self.model}/infer HTTP/1.1",
                f"Host: {host}:{port}",
                *(f"{name}: {value}" for name, value in self.headers),
                f"Content-Length: {len(body)}",
            ]
            requests.append("\r\n".join([*lines, "", ""]).encode() + body)
        return requests

    def check(self, turn: int, answer: bytes) -> None:
        """Raise `WrongAnswerError` unless an HTTP answer holds the outputs of request `turn`."""
        head, _, body = answer.partition(b"\r\n\r\n")
        given = decode_answer(head, body)
        for name, array in self.expected[turn].items():
            other = given.get(name)
            if other is None or other.shape != array.shape:
                raise WrongAnswerError(f"{self.name}: output {name!r} is missing or misshapen")
            if not np.allclose(other, array, rtol=TOLERANCE, atol=TOLERANCE):
                worst = float(np.max(np.abs(other - array)))
                raise WrongAnswerError(f"{self.name}: output {name!r} is off by {worst:.2g}")


def decode_answer(head: bytes, body: bytes) -> Arrays:
    """FP32 outputs of an OIP answer, JSON or binary. Raises `WrongAnswerError`."""
    length = None
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == HEADER_LENGTH.lower().encode():
            length = int(value)
    try:
        document = json.loads(body if length is None else body[:length])
        at, arrays = length or 0, {}
        for tensor in document["outputs"]:
            size = (tensor.get("parameters") or {}).get("binary_data_size")
            if size is None:
                array = np.array(tensor["data"], np.float32)
            else:
                array = np.frombuffer(body, np.float32, size // 4, at)
                at += size
            arrays[tensor["name"]] = array.reshape(tensor["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise WrongAnswerError(f"the answer cannot be read: {error}") from error
    return arrays


def make_workloads(models: dict[str, Path], names: Sequence[str]) -> list[Workload]:
    """JSON and binary requests for each named model, with what ONNX Runtime answers."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    workloads = []
    for name in names:
        session = onnxruntime.InferenceSession(models[name], providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        rng = np.random.default_rng(2)
        inputs = [rng.random(shape, np.float32) for _ in range(_BODIES)]
        outputs = [output.name for output in session.get_outputs()]
        expected = tuple(
            dict(zip(outputs, session.run(outputs, {given.name: array}), strict=True))
            for array in inputs
        )
        for binary in (False, True):
            bodies, headers = _encode(given.name, inputs, binary=binary)
            workloads.append(Workload(name, binary, bodies, headers, expected))
    return workloads


def _encode(
    name: str, inputs: Sequence[NDArray[Any]], *, binary: bool
) -> tuple[tuple[bytes, ...], tuple[tuple[str, str], ...]]:
    bodies, length = [], 0
    for array in inputs:
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        request: dict[str, Any] = {"inputs": [tensor]}
        blob = b""
        if binary:
            blob = array.tobytes()
            tensor["parameters"] = {"binary_data_size": len(blob)}
            request["parameters"] = {"binary_data_output": True}
        else:
            # Nine digits tell any two FP32 values apart.
            tensor["data"] = [float(f"{value:.9g}") for value in array.ravel().tolist()]
        header = json.dumps(request, separators=(",", ":")).encode()
        length = len(header)
        bodies.append(header + blob)
    if not binary:
        return tuple(bodies), (("Content-Type", "application/json"),)
    headers = (("Content-Type", "application/octet-stream"), (HEADER_LENGTH, str(length)))
    return tuple(bodies), headers
