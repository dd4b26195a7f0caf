"""The Serve application of one model: an ingress that speaks the Open Inference Protocol.

Below its route prefix lies the whole protocol for that model: `/v2`, `/v2/health/live`,
`/v2/health/ready`, and `/v2/models/NAME[/versions/V]` with `/ready` and `/infer`. All but the
health of the server demand the bearer token.
"""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shoal_controlplane.offload.ray.app import protocol
from shoal_controlplane.offload.ray.app.arguments import Arguments
from shoal_controlplane.offload.ray.app.model import InputError, RunError, load
from shoal_controlplane.offload.ray.app.protocol import Answer
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest

# Ray ships the ingress apart from the class: handlers are functions of this module, and find the
# replica that they run in.


async def live(_request: Request) -> Response:
    """Whether the server runs."""
    return _response(protocol.answer_json({"live": True}))


async def ready(_request: Request) -> Response:
    """Whether the model can answer: a replica that cannot gets no request."""
    return _response(protocol.answer_json({"ready": True}))


async def server(request: Request) -> Response:
    """Metadata of the server."""
    about = {"name": "shoal-ray", "extensions": ["binary_tensor_data"]}
    return _response(_refused(request) or protocol.answer_json(about))


async def metadata(request: Request) -> Response:
    """Metadata of the model."""
    return _response(_refused(request) or protocol.metadata(_replica().arguments))


async def model_ready(request: Request) -> Response:
    """Whether the model can answer."""
    about = {"name": _replica().arguments.name, "ready": True}
    return _response(_refused(request) or protocol.answer_json(about))


async def infer(request: Request) -> Response:
    """Answer an inference request."""
    refused = _refused(request)
    if refused is not None:
        return _response(refused)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > protocol.MAX_BODY:
            return _response(protocol.refusal(413, "the request is too large"))
    parsed = protocol.decoded(bytes(body), request.headers.get(oip.HEADER_LENGTH))
    if isinstance(parsed, Answer):
        return _response(parsed)
    replica = _replica()
    try:
        reply = await replica.run(parsed)
    except (InputError, RunError) as error:
        return _response(protocol.failed(error))
    return _response(protocol.encoded(parsed, reply, replica.arguments))


def _refused(request: Request) -> Answer | None:
    arguments = _replica().arguments
    if not protocol.may_ask(request.headers.get("authorization"), arguments.token_sha256):
        return protocol.refusal(401, "a bearer token is needed")
    asked = request.path_params
    known = (arguments.name, arguments.version)
    if (asked.get("name", known[0]), asked.get("version", known[1])) != known:
        return protocol.refusal(404, "there is no such model here")
    if request.headers.get(protocol.DIGEST, arguments.digest) != arguments.digest:
        # While a model is replaced, replicas of both contents answer.
        return protocol.refusal(503, "the model has another content here")
    return None


def _response(answer: Answer) -> Response:
    return Response(
        answer.body, answer.status, dict(answer.headers), media_type=answer.content_type
    )


def _replica() -> Model:
    replica: Model = serve.get_replica_context().servable_object
    return replica


_MODELS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")

api = Starlette(
    routes=[
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *(Route(model, metadata) for model in _MODELS),
        *(Route(f"{model}/ready", model_ready) for model in _MODELS),
        *(Route(f"{model}/infer", infer, methods=["POST"]) for model in _MODELS),
    ]
)


@serve.deployment(name="Model")
@serve.ingress(api)
class Model:
    """A replica: runs one request at a time, on all CPUs that it has."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = msgspec.convert(arguments, Arguments)
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            self._model = load(self.arguments, Path(folder))
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def run(self, request: InferRequest) -> InferReply:
        """Answer a request, off the event loop. One that is cancelled, as its client has gone,
        never runs if it did not start yet."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._model.run, request)


def build(arguments: dict[str, Any]) -> Any:
    """The application, for Ray, which calls it with the `args` of the declaration."""
    return Model.bind(arguments)  # type: ignore[attr-defined]
