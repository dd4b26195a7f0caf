"""The worker's server: Open Inference Protocol v2 over HTTP, JSON and binary tensors.

Source: Open Inference Protocol v2 (REST), "Binary Tensor Data Extension".
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from typing import Any

import jax
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shoal_controlplane.offload.tpu.worker.batcher import Batcher, BusyError
from shoal_controlplane.offload.tpu.worker.errors import ModelError, RequestError
from shoal_controlplane.offload.tpu.worker.reader import Array
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, OipError, RequestedOutput, Tensor
from shoal_shared.signature import TensorSpec
from shoal_shared.tensors import TensorError

MAX_BODY = 256 * 1024 * 1024

_log = logging.getLogger("shoal.tpu")


class RefusedError(Exception):
    """An answer other than 200; the text is one plain sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Worker:
    """What the server serves: one version of one model, once `batcher` is set, until it is
    told to stop. `failed` is called when the device no longer works."""

    def __init__(self, name: str, version: str, token: str, failed: Callable[[str], None]) -> None:
        self.name = name
        self.version = version
        self.batcher: Batcher | None = None
        self.stopping = False
        self._token = token.encode()
        self._failed = failed

    @property
    def ready(self) -> bool:
        return self.batcher is not None and not self.stopping

    def app(self) -> Starlette:
        """The routes. Only whether the worker lives and is ready is told without the token."""
        routes = [
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._health_ready),
            Route("/v2", self._guarded(self._server)),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(model, self._guarded(self._model)),
                Route(f"{model}/ready", self._guarded(self._model_ready)),
                Route(f"{model}/infer", self._guarded(self._infer), methods=["POST"]),
            ]
        return Starlette(routes=routes)

    def _guarded(self, answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            try:
                self._check_token(request)
                self._check_name(request)
                response: Response = await answer(request)
            except RefusedError as refused:
                headers = {"retry-after": "1"} if refused.status in (429, 503) else None
                return JSONResponse({"error": str(refused)}, refused.status, headers)
            return response

        return guarded

    def _check_token(self, request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # Compared byte by byte even where it is too short: how long it takes tells nothing.
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
        if self._token and not (right and kind.lower() == "bearer"):
            raise RefusedError(401, "this worker demands its bearer token")

    def _check_name(self, request: Request) -> None:
        name = request.path_params.get("name", self.name)
        version = request.path_params.get("version", self.version)
        if (name, version) != (self.name, self.version):
            raise RefusedError(404, f"there is no model {name[:80]}:{version[:40]} here")

    async def _live(self, request: Request) -> Response:
        return Response(status_code=200)

    async def _health_ready(self, request: Request) -> Response:
        return Response(status_code=200 if self.ready else 503)

    async def _server(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": "shoal-tpu-worker",
                "version": jax.__version__,
                "extensions": ["binary_tensor_data"],
            }
        )

    async def _model(self, request: Request) -> Response:
        signature = self._there().model.signature
        return JSONResponse(
            {
                "name": self.name,
                "versions": [self.version],
                "platform": f"jax_{jax.default_backend()}",
                "inputs": [_told(spec) for spec in signature.inputs],
                "outputs": [_told(spec) for spec in signature.outputs],
            }
        )

    async def _model_ready(self, request: Request) -> Response:
        self._there()
        return Response(status_code=200)

    async def _infer(self, request: Request) -> Response:
        batcher = self._there()
        body = await _body(request)
        try:
            asked = oip.decode_request(body, _header_length(request))
            inputs, wanted = self._fitting(batcher, asked)
            found = await batcher.infer(inputs)
            return _reply(self.name, self.version, asked, found, batcher, wanted)
        except (OipError, RequestError, ModelError, TensorError) as error:
            raise RefusedError(400, str(error)) from None
        except BusyError as error:
            raise RefusedError(429, str(error)) from None
        except jax.errors.JaxRuntimeError as error:
            raise self._device_failed(error) from None

    def _there(self) -> Batcher:
        if self.stopping:
            raise RefusedError(503, "this worker is stopping")
        if self.batcher is None:
            raise RefusedError(503, "the model is being compiled")
        return self.batcher

    def _device_failed(self, error: jax.errors.JaxRuntimeError) -> RefusedError:
        said = (str(error).splitlines() or [""])[0][:200]
        if said.startswith("RESOURCE_EXHAUSTED"):
            return RefusedError(500, f"the device lacks memory for this request: {said}")
        # A device that was taken away does not come back to this process.
        self._failed(f"the device failed: {said}")
        return RefusedError(503, f"the device failed: {said}")

    def _fitting(
        self, batcher: Batcher, asked: InferRequest
    ) -> tuple[dict[str, Array], list[RequestedOutput]]:
        """Inputs by name with the types that the model has, and the outputs to send."""
        signature = batcher.model.signature
        types = {spec.name: spec.datatype for spec in signature.inputs}
        inputs: dict[str, Array] = {}
        for tensor in asked.inputs:
            wanted = types.get(tensor.name, tensor.datatype)
            if tensor.datatype != wanted:
                raise RequestError(
                    f"input '{tensor.name}' is {tensor.datatype} instead of {wanted}"
                )
            if tensor.name in inputs:
                raise RequestError(f"input '{tensor.name}' is there twice")
            inputs[tensor.name] = tensor.data
        names = [spec.name for spec in signature.outputs]
        outputs = asked.outputs or [RequestedOutput(name) for name in names]
        for output in outputs:
            if output.name not in names:
                raise RequestError(f"the model has no output '{output.name[:80]}'")
            if output.classification:
                raise RequestError("this worker does not classify")
        return inputs, outputs


def _told(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


async def _body(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MAX_BODY:
                raise RefusedError(413, f"the request has more than {MAX_BODY} bytes")
            parts.append(part)
    except ClientDisconnect:
        raise RefusedError(400, "the request broke off") from None
    return b"".join(parts)


def _header_length(request: Request) -> int | None:
    text = request.headers.get(oip.HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise OipError(f"{oip.HEADER_LENGTH} is no number")
    return int(text)


def _reply(
    name: str,
    version: str,
    asked: InferRequest,
    found: list[Array],
    batcher: Batcher,
    wanted: list[RequestedOutput],
) -> Response:
    specs = batcher.model.signature.outputs
    arrays = {
        spec.name: Tensor(spec.name, spec.datatype, array)
        for spec, array in zip(specs, found, strict=True)
    }
    all_binary = asked.parameters.get("binary_data_output") is True
    binary = [all_binary if output.binary is None else output.binary for output in wanted]
    reply = InferReply([arrays[output.name] for output in wanted], name, version, asked.id)
    buffers, length = oip.encode_reply(reply, binary)
    if length is None:
        return Response(b"".join(buffers), media_type="application/json")
    return Response(
        b"".join(buffers),
        headers={oip.HEADER_LENGTH: str(length)},
        media_type="application/octet-stream",
    )
