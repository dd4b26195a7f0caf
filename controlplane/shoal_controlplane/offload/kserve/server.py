"""What a replica runs in a cluster: one ONNX model on KServe's own model server.

    SHOAL_SERVER_TOKEN=… python -m shoal_controlplane.offload.kserve.server \\
        --name NAME (--url URL | --path FILE) --digest sha256:… --host 0.0.0.0

It fetches the model, checks its digest, and listens only once the model is loaded. Who asks must
show the token, save for the probes of health; without a token it listens on the loopback interface
only. On SIGTERM it says that it is not ready, answers on until the cluster has noticed, and ends.

Needs the packages `kserve` and `onnxruntime`, and nothing of the control plane's but this file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TOKEN_VARIABLE = "SHOAL_SERVER_TOKEN"  # noqa: S105 - a name
MAX_MODEL = 2 * 1024**3  # what ONNX's protobuf can hold
MAX_REQUEST = 256 * 1024 * 1024
FETCH_S = 60.0
GRACE_S = 30
_CHUNK = 1024 * 1024
_OPEN = re.compile(r"/v2/health/(live|ready)|/v2/models/[^/]+/ready")
_READY = re.compile(r"/v2/health/ready|/v2/models/[^/]+/ready")
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ServerError(Exception):
    """It cannot serve; the text is one plain sentence."""


class Gate:
    """In front of KServe's application: who may ask, how much, and whether to ask here at all."""

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode() if token else b""
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as in ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"]
        given = headers.get(b"authorization", b"")
        length = headers.get(b"content-length", b"")
        if self.draining and _READY.fullmatch(path):
            await _refuse(send, 503, "this replica is going away")
        elif (
            self._expected
            and not _OPEN.fullmatch(path)
            and not hmac.compare_digest(given, self._expected)
        ):
            await _refuse(send, 401, "show the token of this model: Authorization: Bearer …")
        elif b"transfer-encoding" in headers:
            await _refuse(send, 411, "say how long the request is: Content-Length")
        elif length and (not length.isdigit() or int(length) > MAX_REQUEST):
            await _refuse(send, 413, f"a request may have {MAX_REQUEST} bytes")
        else:
            await self._app(scope, receive, send)


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def fetch(url: str, limit: int = MAX_MODEL, timeout_s: float = FETCH_S) -> bytes:
    """The bytes behind an http or https address. Raises `ServerError`."""
    if not url.startswith(("http://", "https://")):
        raise ServerError("the model's address must start with http:// or https://")
    parts: list[bytes] = []
    size = 0
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - checked
            while part := answer.read(_CHUNK):
                size += len(part)
                if size > limit:
                    raise ServerError(f"the model has more than {limit} bytes")
                parts.append(part)
    except urllib.error.HTTPError as error:
        raise ServerError(f"the model cannot be fetched: {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServerError(f"the model cannot be fetched: {reason}") from None
    return b"".join(parts)


def read(path: Path) -> bytes:
    """The bytes of a file, or of the only file in a folder. Raises `ServerError`."""
    try:
        if path.is_dir():
            files = [f for f in sorted(path.iterdir()) if f.is_file() and f.name[0] != "."]
            if len(files) != 1:
                raise ServerError(f"{path} has {len(files)} files instead of one model")
            path = files[0]
        return path.read_bytes()
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None


def check_digest(content: bytes, digest: str) -> None:
    """Raises `ServerError` unless `digest` (`sha256:…`) is that of `content`."""
    found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if digest and not hmac.compare_digest(found.encode(), digest.encode()):
        raise ServerError(f"the model has digest {found} instead of {digest}")


def check_listener(host: str, token: str) -> None:
    """Raises `ServerError` where others could ask without a token."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not token and not loopback:
        raise ServerError(
            f"{TOKEN_VARIABLE} is not set: without a token only a loopback address can be used, "
            f"not {host}"
        )


def serve(
    name: str,
    content: bytes,
    token: str,
    host: str,
    port: int,
    threads: int,
    drain_s: float,
    fd: int | None = None,
) -> None:
    """Serve the model until SIGTERM, on the listening socket `fd` if there is one. Raises
    `ServerError`."""
    # KServe reads the arguments of the process when it is imported.
    sys.argv = sys.argv[:1]
    from kserve import ModelRepository
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer

    model = _onnx_model(name, content, threads)
    models = ModelRepository()
    models.update(model)
    rest = RESTServer(
        "kserve.model_server:app",
        DataPlane(model_registry=models),
        ModelRepositoryExtension(model_registry=models),
        port,
        grace_period=GRACE_S,
    )
    rest.create_application()
    from kserve.model_server import app

    gate = Gate(app, token)
    config = rest.config
    config.host, config.app, config.access_log = host, gate, False
    sockets = None if fd is None else [socket.socket(fileno=fd)]
    asyncio.run(_run(config, gate, drain_s, sockets))


async def _run(
    config: Any, gate: Gate, drain_s: float, sockets: list[socket.socket] | None
) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to us: the first one starts the drain."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    server = Server(config)
    loop = asyncio.get_running_loop()

    def leave() -> None:
        server.should_exit = True

    def drain() -> None:
        if gate.draining:
            leave()
            return
        gate.draining = True
        # Until load balancers have noticed, requests still come: they are answered.
        loop.call_later(drain_s, leave)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain)
    await server.serve(sockets)


def _onnx_model(name: str, content: bytes, threads: int) -> Any:
    """A model of KServe's that ONNX Runtime runs."""
    import numpy as np
    import onnxruntime
    from kserve import InferRequest, InferResponse, Model
    from kserve.errors import InferenceError, InvalidInput
    from kserve.protocol.infer_type import InferOutput
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    there = runtime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in there]
    try:
        session: Any = runtime.InferenceSession(content, options, providers=providers)
    except (
        state.Fail,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.InvalidArgument,
        state.NotImplemented,
        RuntimeError,
    ) as error:
        text = " ".join(str(error).split())[:300]
        raise ServerError(f"ONNX Runtime cannot load the model: {text}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = [output.name for output in outputs]
    types = {i.name: _DATATYPES.get(i.type, i.type) for i in inputs}

    def described(values: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {
                "name": v.name,
                "datatype": _DATATYPES.get(v.type, v.type),
                "shape": [d if isinstance(d, int) else -1 for d in v.shape],
            }
            for v in values
        ]

    def arrays_of(request: InferRequest) -> dict[str, Any]:
        arrays = {}
        for tensor in request.inputs:
            if types.get(tensor.name) != tensor.datatype:
                raise InvalidInput(f"the model has no input {tensor.name} of {tensor.datatype}")
            try:
                array = tensor.as_numpy()
                if tensor.datatype == "BYTES":
                    flat = [v.decode() if isinstance(v, bytes) else str(v) for v in array.flat]
                    array = np.array(flat, dtype=object).reshape(array.shape)
            except (ValueError, TypeError) as error:
                raise InvalidInput(f"input {tensor.name}: {error}") from None
            arrays[tensor.name] = array
        if missing := types.keys() - arrays.keys():
            raise InvalidInput(f"input {min(missing)} is missing")
        return arrays

    def run(request: InferRequest) -> InferResponse:
        asked = {o.name: o.binary_data for o in request.request_outputs or ()}
        if unknown := asked.keys() - set(names):
            raise InvalidInput(f"the model has no output {min(unknown)}")
        wanted = list(asked) or names
        try:
            results = session.run(wanted, arrays_of(request))
        except state.InvalidArgument as error:
            raise InvalidInput(" ".join(str(error).split())[:300]) from None
        except (state.Fail, state.RuntimeException, state.EPFail, state.NotImplemented) as error:
            raise InferenceError(" ".join(str(error).split())[:300]) from None
        made = []
        for output_name, array in zip(wanted, results, strict=True):
            binary = asked.get(output_name)
            if binary is None:
                binary = bool(request.use_binary_outputs)
            datatype = next(_DATATYPES[o.type] for o in outputs if o.name == output_name)
            output = InferOutput(output_name, list(array.shape), datatype)
            output.set_data_from_numpy(array, binary_data=binary)
            made.append(output)
        return InferResponse(
            # KServe's own encoder fails without one.
            response_id=request.id or uuid.uuid4().hex,
            model_name=name,
            model_version="",  # not null, which the protocol does not have
            infer_outputs=made,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    class OnnxModel(Model):  # type: ignore[misc, unused-ignore]
        """Runs in threads: probes are answered while it computes."""

        def __init__(self) -> None:
            super().__init__(name)
            self.ready = True
            self._threads = ThreadPoolExecutor(max(2, threads), thread_name_prefix="onnx")

        async def get_input_types(self) -> list[dict[str, Any]]:
            return described(inputs)

        async def get_output_types(self) -> list[dict[str, Any]]:
            return described(outputs)

        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            if not isinstance(payload, InferRequest):
                raise InvalidInput("ask by the Open Inference Protocol v2")
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, run, payload)

    return OnnxModel()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server. Returns the exit status; what went wrong is one line."""
    parser = argparse.ArgumentParser(prog="kserve_server", allow_abbrev=False)
    parser.add_argument("--name", required=True, help="the model's name in addresses")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", help="where the model is fetched")
    source.add_argument("--path", type=Path, help="the model's file, or the folder it is in")
    parser.add_argument("--digest", default="", help="sha256:… of the model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--fd", type=int, help="a listening socket, instead of host and port")
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference")
    parser.add_argument("--drain-s", type=float, default=5.0, help="answers so long after SIGTERM")
    given = parser.parse_args(arguments)
    # Handlers that are there already keep KServe from logging each request.
    logging.basicConfig(level=logging.WARNING)
    token = os.environ.pop(TOKEN_VARIABLE, "").strip()
    try:
        if given.fd is None:
            check_listener(given.host, token)
        elif not token:
            raise ServerError(f"{TOKEN_VARIABLE} is not set: --fd needs it")
        content = fetch(given.url) if given.url else read(given.path)
        check_digest(content, given.digest)
        serve(
            given.name,
            content,
            token,
            given.host,
            given.port,
            max(1, given.threads),
            given.drain_s,
            given.fd,
        )
    except ServerError as error:
        print(f"kserve_server: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"kserve_server: {error.name} is not installed here", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
