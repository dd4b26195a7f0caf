"""Open Inference Protocol v2 over HTTP: a raw ASGI application on the hot path.

Source: Open Inference Protocol v2 (REST) and Triton's HTTP extensions: binary tensor data,
classification, model configuration, model repository, statistics.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
import structlog

from shoal_controlplane.errors import DomainError, InvalidError, NotFoundError
from shoal_controlplane.gateway import description
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.service import Gateway
from shoal_shared import oip
from shoal_shared.names import checked_name
from shoal_shared.oip import InferReply, InferRequest, OipError
from shoal_shared.tensors import Buffer, TensorError

log = structlog.get_logger("gateway")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DEFAULT_MAX_BODY = 64 * 1024 * 1024
COMPRESS_FROM = 64 * 1024
"""Smaller answers cost more time to pack than they save on the way."""

TIMEOUT_HEADER = b"shoal-timeout-ms"
PRIORITY_HEADER = b"shoal-priority"
CLIENT_HEADER = b"shoal-client"

_MODEL = re.compile(
    r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>[a-z]+))?"
)
_REPOSITORY = re.compile(r"/v2/repository/models/(?P<name>[^/]+)/(?P<verb>load|unload)")
_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")


class Answer:
    """A finished response: JSON by default."""

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, status: int, body: list[Buffer], headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers if headers is not None else [_JSON]


class InferenceApp:
    """ASGI application for everything under `/v2`."""

    def __init__(self, gateway: Gateway, *, max_body: int = DEFAULT_MAX_BODY) -> None:
        self._gateway = gateway
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            answer = await self._route(scope, headers, receive)
        except GatewayError as error:
            answer = _error(error.status.value, str(error), error.retry_after_s)
        except _ClientGoneError:
            return
        except Exception:
            log.exception("request failed", path=scope["path"])
            answer = _error(500, "the gateway failed on this request; its log says why")
        length = sum(len(part) for part in answer.body)
        answer.headers.append((b"content-length", str(length).encode()))
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
        )
        body = bytes(answer.body[0]) if len(answer.body) == 1 else b"".join(answer.body)
        await send({"type": "http.response.body", "body": body})

    async def _route(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Answer:
        path, method = scope["path"], scope["method"]
        match = _MODEL.fullmatch(path)
        if match is not None:
            name, version, verb = match["name"], match["version"] or "", match["verb"]
            if verb == "infer":
                if method != "POST":
                    return _wrong_method(path, "POST")
                return await self._infer(name, version, scope, headers, receive)
            if method != "GET":
                return _wrong_method(path, "GET")
            if name == "stats" and not version and verb is None:
                return _json({"model_stats": self._all_statistics()})
            return self._about_model(name, version, verb)
        if path in ("/v2", "/v2/"):
            return _json(description.server_metadata())
        if path in ("/v2/health/live", "/v2/health/ready"):
            return Answer(200, [b""], [])
        if path == "/v2/repository/index":
            return _json(await self._gateway.repository.index())
        match = _REPOSITORY.fullmatch(path)
        if match is not None:
            if method != "POST":
                return _wrong_method(path, "POST")
            await _read_body(headers, receive, self._max_body)
            return await self._repository(match["name"], match["verb"])
        if "sharedmemory" in path or path.startswith(("/v2/trace", "/v2/logging")):
            return _error(501, f"{path[:200]} is not offered here")
        return _error(404, f"there is nothing at {path[:200]}")

    def _about_model(self, name: str, version: str, verb: str | None) -> Answer:
        gateway = self._gateway
        model = gateway.model(name, version)
        if verb is None:
            return _json(description.metadata(model, gateway.table.versions(name)))
        if verb == "ready":
            if model.ready:
                return Answer(200, [b""], [])
            return _error(503, f"no device serves {model.name}:{model.version} now")
        if verb == "config":
            return _json(description.config(model))
        if verb == "stats":
            versions = [version] if version else gateway.table.versions(name)
            stats = [gateway.statistics.snapshot(name, v) for v in versions]
            return _json({"model_stats": stats})
        return _error(404, f"models have no {verb!r}: try ready, config, stats or infer")

    def _all_statistics(self) -> list[dict[str, Any]]:
        gateway = self._gateway
        return [gateway.statistics.snapshot(m.name, m.version) for m in gateway.table.all()]

    async def _repository(self, name: str, verb: str) -> Answer:
        repository = self._gateway.repository
        try:
            await (repository.load(name) if verb == "load" else repository.unload(name))
        except NotFoundError as error:
            return _error(404, str(error))
        except InvalidError as error:
            return _error(400, str(error))
        except DomainError as error:
            return _error(503, str(error))
        return Answer(200, [b""], [])

    async def _infer(
        self,
        name: str,
        version: str,
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
    ) -> Answer:
        body = await _read_body(headers, receive, self._max_body)
        encoding = headers.get(b"content-encoding")
        if encoding:
            body = _decompressed(body, encoding, self._max_body)
        try:
            length = _header_length(headers)
            request = oip.decode_request(body, length)
            timeout_s = _timeout(headers)
            client = _client(headers, scope)
        except ValueError as error:
            raise GatewayError(GatewayStatus.INVALID, str(error)) from None
        priority = headers.get(PRIORITY_HEADER)
        reply = await self._gateway.infer(
            request,
            name,
            version,
            timeout_s,
            priority=None if priority is None else priority.decode("latin-1"),
            client=client,
        )
        answer = _infer_answer(request, reply)
        return _compressed(answer, headers.get(b"accept-encoding", b""))


class _ClientGoneError(Exception):
    """Nobody is left to answer."""


def _infer_answer(request: InferRequest, reply: InferReply) -> Answer:
    """Encode outputs as the request says: per output, else for all."""
    default = bool(request.parameters.get("binary_data_output", False))
    binary = [default] * len(reply.outputs)
    for i, wanted in enumerate(request.outputs):
        if wanted.binary is not None:
            binary[i] = wanted.binary
    try:
        buffers, header_length = oip.encode_reply(reply, binary)
    except TensorError as error:
        raise GatewayError(GatewayStatus.INVALID, str(error)) from None
    if header_length is None:
        return Answer(200, buffers)
    headers = [
        (b"content-type", b"application/octet-stream"),
        (oip.HEADER_LENGTH.lower().encode(), str(header_length).encode()),
    ]
    return Answer(200, buffers, headers)


async def _read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    too_large = GatewayError(
        GatewayStatus.TOO_LARGE, f"the body is larger than the limit of {limit} bytes"
    )
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise too_large
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise _ClientGoneError
        part: bytes = event.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
        if not event.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _decompressed(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Undo gzip or deflate (zlib), but never unpack more than `limit` bytes."""
    kinds = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS, b"identity": 0}
    bits = kinds.get(encoding.strip().lower())
    if bits is None:
        raise GatewayError(
            GatewayStatus.INVALID, "Content-Encoding must be gzip, deflate or identity"
        )
    if not bits:
        return body
    unpacker = zlib.decompressobj(bits)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise GatewayError(GatewayStatus.INVALID, "the body is not what it claims") from None
    if len(plain) > limit:
        raise GatewayError(
            GatewayStatus.TOO_LARGE, f"the unpacked body is larger than the limit of {limit} bytes"
        )
    if not unpacker.eof:
        raise GatewayError(GatewayStatus.INVALID, "the compressed body is cut off")
    if unpacker.unused_data:
        raise GatewayError(GatewayStatus.INVALID, "bytes follow the end of the compressed body")
    return plain


def _header_length(headers: dict[bytes, bytes]) -> int | None:
    value = headers.get(oip.HEADER_LENGTH.lower().encode())
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise OipError(f"{oip.HEADER_LENGTH} must be a number of bytes")
    return int(value)


def _timeout(headers: dict[bytes, bytes]) -> float | None:
    value = headers.get(TIMEOUT_HEADER)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 9 or int(value) == 0:
        raise OipError("Shoal-Timeout-Ms must be a positive number of milliseconds")
    return int(value) / 1e3


def _client(headers: dict[bytes, bytes], scope: Scope) -> str:
    """Who asks: as the header says, else the peer's address."""
    value = headers.get(CLIENT_HEADER)
    if value is None:
        peer = scope.get("client")
        return str(peer[0]) if peer else ""
    return checked_name(value.decode("latin-1"), "the name in Shoal-Client")


def _compressed(answer: Answer, accepted: bytes) -> Answer:
    """Pack a large answer with an encoding that the client asked for."""
    if not accepted or sum(len(part) for part in answer.body) < COMPRESS_FROM:
        return answer
    names = {name for name, q in _weights(accepted) if q > 0}
    for name, bits in ((b"gzip", 16 + zlib.MAX_WBITS), (b"deflate", zlib.MAX_WBITS)):
        if name in names:
            packer = zlib.compressobj(1, zlib.DEFLATED, bits)
            packed = b"".join([*(packer.compress(part) for part in answer.body), packer.flush()])
            headers = [*answer.headers, (b"content-encoding", name)]
            return Answer(answer.status, [packed], headers)
    return answer


def _weights(accepted: bytes) -> list[tuple[bytes, float]]:
    out: list[tuple[bytes, float]] = []
    for part in accepted.lower().split(b","):
        name, _, q = part.partition(b";q=")
        try:
            out.append((name.strip(), float(q) if q else 1.0))
        except ValueError:
            continue
    return out


def _wrong_method(path: str, allowed: str) -> Answer:
    answer = _error(405, f"use {allowed} for {path[:200]}")
    answer.headers.append((b"allow", allowed.encode()))
    return answer


def _json(value: Any) -> Answer:
    return Answer(200, [_encode(value)])


def _error(status: int, message: str, retry_after_s: float | None = None) -> Answer:
    headers = [_JSON]
    if retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after_s))).encode()))
    return Answer(status, [_encode({"error": message})], headers)
