"""The methods of `inference.GRPCInferenceService` on top of the gateway."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn, TypedDict

import grpc
import structlog

from shoal_controlplane.errors import (
    ConflictError,
    DomainError,
    InvalidError,
    NotFoundError,
    PreconditionError,
    TooLargeError,
    UnavailableError,
)
from shoal_controlplane.gateway import description
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.grpc.convert import (
    FINAL_RESPONSE,
    parameters_of,
    parse,
    request_of,
    response_of,
    set_parameter,
)
from shoal_controlplane.gateway.grpc.descriptor import SERVICE, message_class
from shoal_controlplane.gateway.service import Gateway
from shoal_shared.names import checked_name

STREAM_METHOD: Final = "ModelStreamInfer"
PRIORITY_KEY: Final = "shoal-priority"
CLIENT_KEY: Final = "shoal-client"
MAX_IN_FLIGHT: Final = 256
"""Requests of one stream that are answered at a time; further ones wait unread."""

_GATEWAY_CODES: Final = {
    GatewayStatus.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    GatewayStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    GatewayStatus.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    GatewayStatus.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    GatewayStatus.INTERNAL: grpc.StatusCode.INTERNAL,
    GatewayStatus.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    GatewayStatus.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    GatewayStatus.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_DOMAIN_CODES: Final = {
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    ConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}
_FAILED: Final = "the gateway failed on this request; its log says why"

log = structlog.get_logger("gateway")

_rpc: Any = grpc  # its functions carry no types
Context = Any
Answer = Callable[[Any, Context], Awaitable[Any]]


class Servicer(grpc.GenericRpcHandler):
    """Finds the handler of a method. Messages arrive as bytes and are parsed here, so that
    broken and oversized ones get an answer of ours."""

    def __init__(self, gateway: Gateway, max_bytes: int) -> None:
        self._gateway = gateway
        self._max_bytes = max_bytes
        answers: dict[str, Answer] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
        }
        self._handlers = {name: self._unary(name, answer) for name, answer in answers.items()}
        self._handlers[STREAM_METHOD] = _rpc.stream_stream_rpc_method_handler(
            self._stream, response_serializer=_serialize
        )

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, None outside of our service (gRPC answers UNIMPLEMENTED)."""
        service, _, method = handler_call_details.method[1:].rpartition("/")
        if service != SERVICE:
            return None
        return self._handlers.get(method) or _refusal(method)

    def _unary(self, name: str, answer: Answer) -> Any:
        async def handle(data: bytes, context: Context) -> Any:
            try:
                return await answer(parse(f"{name}Request", data, self._max_bytes), context)
            except (GatewayError, DomainError) as error:
                await _abort(context, error)
            except Exception:
                log.exception("request failed", method=name)
                await context.abort(grpc.StatusCode.INTERNAL, _FAILED)

        return _rpc.unary_unary_rpc_method_handler(handle, response_serializer=_serialize)

    async def _server_live(self, request: Any, context: Context) -> Any:
        return message_class("ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, context: Context) -> Any:
        return message_class("ServerReadyResponse")(ready=True)

    async def _server_metadata(self, request: Any, context: Context) -> Any:
        return message_class("ServerMetadataResponse")(**description.server_metadata())

    async def _model_ready(self, request: Any, context: Context) -> Any:
        model = self._gateway.table.find(request.name, request.version)
        return message_class("ModelReadyResponse")(ready=model is not None and model.ready)

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        model = self._gateway.model(request.name, request.version)
        versions = self._gateway.table.versions(model.name)
        return message_class("ModelMetadataResponse")(**description.metadata(model, versions))

    async def _model_config(self, request: Any, context: Context) -> Any:
        model = self._gateway.model(request.name, request.version)
        return message_class("ModelConfigResponse")(config=description.config(model))

    async def _model_statistics(self, request: Any, context: Context) -> Any:
        table, statistics = self._gateway.table, self._gateway.statistics
        if request.name:
            model = self._gateway.model(request.name, request.version)
            versions = [request.version] if request.version else table.versions(model.name)
            wanted = [(model.name, version) for version in versions]
        else:
            wanted = [(model.name, model.version) for model in table.all()]
        return message_class("ModelStatisticsResponse")(
            model_stats=[statistics.snapshot(*key) for key in wanted]
        )

    async def _model_infer(self, request: Any, context: Context) -> Any:
        reply = await self._gateway.infer(
            request_of(request),
            request.model_name,
            request.model_version,
            context.time_remaining(),
            **_caller(context),
        )
        return response_of(reply)

    async def _repository_index(self, request: Any, context: Context) -> Any:
        _reject_repository_name(request)
        response = message_class("RepositoryIndexResponse")()
        for entry in await self._gateway.repository.index():
            if not request.ready or entry["state"] == "READY":
                response.models.add(**entry)
        return response

    async def _repository_load(self, request: Any, context: Context) -> Any:
        _reject_repository_name(request)
        if request.parameters:
            raise GatewayError(
                GatewayStatus.UNSUPPORTED,
                "a model is loaded as it was pushed: config and files cannot be given here",
            )
        await self._gateway.repository.load(request.model_name)
        return message_class("RepositoryModelLoadResponse")()

    async def _repository_unload(self, request: Any, context: Context) -> Any:
        _reject_repository_name(request)
        parameters = parameters_of(request.parameters)
        # Triton's clients always send it; there are no dependents here, so both values do.
        parameters.pop("unload_dependents", None)
        if parameters:
            raise GatewayError(
                GatewayStatus.UNSUPPORTED, f"unloading knows no parameter '{min(parameters)}'"
            )
        await self._gateway.repository.unload(request.model_name)
        return message_class("RepositoryModelUnloadResponse")()

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer a stream's requests concurrently, in their order; an error ends only its own
        request."""
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(MAX_IN_FLIGHT)
        unanswered: set[asyncio.Task[Any]] = set()

        async def read() -> None:
            async for data in requests:
                answer = asyncio.create_task(self._stream_one(data, context))
                unanswered.add(answer)
                answer.add_done_callback(unanswered.discard)
                await answers.put(answer)
            await answers.put(None)

        reader = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                await context.write(await answer)
        finally:
            reader.cancel()
            for left in unanswered:
                left.cancel()

    async def _stream_one(self, data: bytes, context: Context) -> Any:
        response = message_class("ModelStreamInferResponse")()
        request_id = ""
        try:
            request = parse("ModelInferRequest", data, self._max_bytes)
            request_id = request.id
            response.infer_response.CopyFrom(await self._model_infer(request, context))
        except GatewayError as error:
            response.error_message = str(error)
            response.infer_response.id = request_id
        except Exception:
            log.exception("request failed", method=STREAM_METHOD)
            response.error_message = _FAILED
            response.infer_response.id = request_id
        # A model of ours answers once; clients of decoupled models wait for this mark.
        set_parameter(response.infer_response, FINAL_RESPONSE, True)
        return response


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


class _Caller(TypedDict):
    priority: str | None
    client: str


def _caller(context: Context) -> _Caller:
    """How much a call's requests matter, and who makes it: as its metadata says, else the peer's
    address without the port, which differs by connection."""
    found = {str(key): value for key, value in context.invocation_metadata() or ()}
    priority, client = found.get(PRIORITY_KEY), found.get(CLIENT_KEY)
    if client is None:
        kind, _, address = str(context.peer()).partition(":")
        client = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind
    else:
        try:
            checked_name(str(client), "the name in shoal-client")
        except ValueError as error:
            raise GatewayError(GatewayStatus.INVALID, str(error)) from None
    return {"priority": None if priority is None else str(priority), "client": str(client)}


def _refusal(method: str) -> Any:
    async def handle(data: bytes, context: Context) -> None:
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{method[:100]} is not offered: "
            "there is no shared memory, tracing or log setting over gRPC",
        )

    return _rpc.unary_unary_rpc_method_handler(handle)


def _reject_repository_name(request: Any) -> None:
    if request.repository_name:
        raise GatewayError(
            GatewayStatus.UNSUPPORTED, "there is one model repository, and it has no name"
        )


async def _abort(context: Context, error: GatewayError | DomainError) -> NoReturn:
    metadata: tuple[tuple[str, str], ...] = ()
    if isinstance(error, DomainError):
        codes = (code for kind, code in _DOMAIN_CODES.items() if isinstance(error, kind))
        code = next(codes, grpc.StatusCode.INTERNAL)
    else:
        code = _GATEWAY_CODES[error.status]
        if error.retry_after_s is not None:
            # The second is gRPC's own: its clients obey it where their retry policy lets them.
            metadata = (
                ("retry-after", str(max(1, math.ceil(error.retry_after_s)))),
                ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))),
            )
    await context.abort(code, str(error), metadata)
    raise AssertionError("abort returned")
