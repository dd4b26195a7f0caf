"""A small real model for the conformance suite, and its answers by numpy.

`y` = relu(`a` W + `b`), `s` = sigmoid(`a` W + `b`); FP32, `a` [N, 8], the others [N, 4].
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from support import onnx_models

from shoal_controlplane.offload.target import CloudModel
from shoal_shared.oip import InferReply, InferRequest, RequestedOutput, Tensor
from shoal_shared.signature import ModelSignature, TensorSpec

PREFIX = "/artifacts/sha256/"
SIGNATURE = ModelSignature(
    inputs=(
        TensorSpec(name="a", datatype="FP32", shape=(-1, 8)),
        TensorSpec(name="b", datatype="FP32", shape=(-1, 4)),
    ),
    outputs=(
        TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),
        TensorSpec(name="s", datatype="FP32", shape=(-1, 4)),
    ),
)


@dataclass(frozen=True)
class Question:
    """A request and the right answers."""

    request: InferRequest
    answers: dict[str, np.ndarray[Any, Any]]

    def check(self, reply: InferReply) -> None:
        """Fail unless `reply` holds what was asked for, to 1e-5."""
        names = [output.name for output in self.request.outputs] or ["y", "s"]
        assert [tensor.name for tensor in reply.outputs] == names
        for tensor in reply.outputs:
            assert tensor.datatype == "FP32"
            expected = self.answers[tensor.name]
            assert tensor.data.shape == expected.shape
            np.testing.assert_allclose(tensor.data, expected, rtol=1e-5, atol=1e-5)


class Weights:
    """One set of weights, following from `seed`."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._w = rng.normal(size=(8, 4)).astype(np.float32)

    def save(self, folder: Path) -> tuple[Path, str]:
        """The artifact, named by its hex digest as in the store, and the digest."""
        folder.mkdir(parents=True, exist_ok=True)
        path = onnx_models.save(
            folder / "conformance.onnx",
            [
                helper.make_node("MatMul", ["a", "w"], ["m"]),
                helper.make_node("Add", ["m", "b"], ["h"]),
                helper.make_node("Relu", ["h"], ["y"]),
                helper.make_node("Sigmoid", ["h"], ["s"]),
            ],
            [
                helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 8]),
                helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 4]),
            ],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ("y", "s")],
            [numpy_helper.from_array(self._w, "w")],
        )
        name = hashlib.sha256(path.read_bytes()).hexdigest()
        return path.rename(folder / name), f"sha256:{name}"

    def question(self, items: int = 1, seed: int = 0, outputs: tuple[str, ...] = ()) -> Question:
        """A request of `items` items for `outputs`, all where none are named."""
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(items, 8)).astype(np.float32)
        b = rng.normal(size=(items, 4)).astype(np.float32)
        h = a @ self._w + b
        request = InferRequest(
            inputs=[Tensor("a", "FP32", a), Tensor("b", "FP32", b)],
            outputs=[RequestedOutput(name) for name in outputs],
        )
        return Question(request, {"y": np.maximum(h, 0), "s": 1 / (1 + np.exp(-h))})


@dataclass(frozen=True)
class Shelf:
    """Artifacts in a folder, and the address where they are served."""

    folder: Path
    address: str

    def model(
        self,
        name: str,
        weights: Weights,
        version: str = "1",
        format: str = "onnx",  # noqa: A002
    ) -> CloudModel:
        """The model that has these weights."""
        path, digest = weights.save(self.folder)
        return CloudModel(
            name=name,
            version=version,
            format=format,
            artifact=path,
            digest=digest,
            url=f"{self.address}{PREFIX}{path.name}",
            signature=SIGNATURE,
            max_batch=8,
            batches=(1, 4),
        )


@contextlib.contextmanager
def shelf(folder: Path) -> Iterator[Shelf]:
    """Serve artifacts below `folder` on the loopback interface, as the control plane does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix(PREFIX)
            path = folder / name
            if not self.path.startswith(PREFIX) or "/" in name or not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("content-type", "application/octet-stream")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing on the test's screen."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Shelf(folder, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
