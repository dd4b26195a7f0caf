"""Open Inference Protocol v2 over HTTP, as a client: keep-alive, binary tensors, checked answers.

All kinds of targets answer through it. Servers are outside: every answer is bounded in size and
time and checked against the model's signature before anyone sees it.

Source: Open Inference Protocol v2 (REST), "Binary Tensor Data Extension".
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import replace

import httpx

from shoal_controlplane.offload.target import Fault, TargetError
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, OipError, RequestedOutput
from shoal_shared.signature import ModelSignature, shape_fits

MAX_REPLY = 256 * 1024 * 1024
MAX_SENTENCE = 300
_FAULTS = {
    400: Fault.INVALID,
    401: Fault.CREDENTIALS,
    403: Fault.CREDENTIALS,
    404: Fault.NOT_DEPLOYED,
    408: Fault.TIMEOUT,
    409: Fault.CONFLICT,
    413: Fault.INVALID,
    422: Fault.INVALID,
    424: Fault.BROKEN,  # Azure ML: the model's container failed
    429: Fault.THROTTLED,
    502: Fault.UNREACHABLE,
    503: Fault.NOT_DEPLOYED,
    504: Fault.TIMEOUT,
}


class OipClient:
    """Sessions with the servers of one target. `verify` as in httpx: the trust in certificates."""

    def __init__(self, *, connections: int = 256, verify: ssl.SSLContext | bool = True) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(
            limits=limits, verify=verify, follow_redirects=False, trust_env=False
        )

    async def infer(
        self,
        url: str,
        request: InferRequest,
        signature: ModelSignature,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> InferReply:
        """Answer `request` by the model at `url` (`https://host/v2/models/NAME`, with
        `/versions/V` where it has versions).

        The reply has the outputs that were asked for, all where none were, in their order.
        Raises `TargetError`. The whole exchange ends within `timeout_s`.
        """
        names = [output.name for output in request.outputs] or [
            spec.name for spec in signature.outputs
        ]
        asked = [RequestedOutput(name, binary=True) for name in names]
        parameters = {k: v for k, v in request.parameters.items() if k != "timeout"}
        wire = replace(
            request, outputs=asked, model_name="", model_version="", parameters=parameters
        )
        buffers, length = oip.encode_request(wire)
        sent = {
            "content-type": "application/octet-stream",
            oip.HEADER_LENGTH: str(length),
            **(headers or {}),
        }
        try:
            async with asyncio.timeout(timeout_s):
                status, told, body = await self._post(f"{url}/infer", b"".join(buffers), sent)
        except TimeoutError:
            raise TargetError(
                Fault.TIMEOUT, f"{_host(url)} did not answer within {timeout_s * 1e3:.0f} ms"
            ) from None
        if status != httpx.codes.OK:
            raise _refusal(url, status, told, body)
        return _checked(url, told, body, names, signature)

    async def ready(
        self, url: str, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> bool:
        """Whether the model at `url` says that it is ready. Raises `TargetError` where the server
        cannot be reached or refuses the credentials."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._http.get(f"{url}/ready", headers=dict(headers or {}))
        except TimeoutError:
            raise TargetError(Fault.TIMEOUT, f"{_host(url)} does not answer") from None
        except httpx.HTTPError as error:
            raise _broken(url, error) from None
        if _FAULTS.get(answer.status_code) is Fault.CREDENTIALS:
            raise _refusal(url, answer.status_code, answer.headers, answer.content)
        return answer.status_code == httpx.codes.OK

    async def close(self) -> None:
        """End all sessions."""
        await self._http.aclose()

    async def _post(
        self, url: str, content: bytes, headers: Mapping[str, str]
    ) -> tuple[int, httpx.Headers, bytes]:
        parts: list[bytes] = []
        size = 0
        try:
            async with self._http.stream(
                "POST", url, content=content, headers=dict(headers), timeout=None
            ) as answer:
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > MAX_REPLY:
                        raise TargetError(
                            Fault.BROKEN, f"{_host(url)} sends more than {MAX_REPLY} bytes"
                        )
                    parts.append(part)
                return answer.status_code, answer.headers, b"".join(parts)
        except httpx.InvalidURL as error:
            raise TargetError(Fault.UNREACHABLE, f"{_host(url)} is no address: {error}") from None
        except httpx.HTTPError as error:
            raise _broken(url, error) from None


def _checked(
    url: str,
    headers: httpx.Headers,
    body: bytes,
    names: list[str],
    signature: ModelSignature,
) -> InferReply:
    """The reply in `body`, if it is one to this request."""
    text = headers.get(oip.HEADER_LENGTH)
    try:
        if text is not None and not (text.isdecimal() and len(text) <= 12):
            raise OipError(f"{oip.HEADER_LENGTH} is no number")
        reply = oip.decode_reply(body, int(text) if text is not None else None)
        given = {tensor.name: tensor for tensor in reply.outputs}
        specs = {spec.name: spec for spec in signature.outputs}
        for name in names:
            tensor, spec = given.get(name), specs[name]
            if tensor is None:
                raise OipError(f"output '{name}' is missing")
            if tensor.datatype != spec.datatype:
                raise OipError(f"output '{name}' is {tensor.datatype} instead of {spec.datatype}")
            if not shape_fits(tensor.data.shape, spec.shape):
                raise OipError(
                    f"output '{name}' has shape {list(tensor.data.shape)} instead of "
                    f"{list(spec.shape)}"
                )
    except OipError as error:
        raise TargetError(
            Fault.BROKEN, f"{_host(url)} sent a reply that cannot be used: {error}"
        ) from None
    return replace(reply, outputs=[given[name] for name in names], parameters={})


def _refusal(url: str, status: int, headers: Mapping[str, str], body: bytes) -> TargetError:
    fault = _FAULTS.get(status, Fault.BROKEN if status >= 500 else Fault.INVALID)
    retry = headers.get("retry-after", "")
    retry_after_s = float(retry) if retry.isdecimal() and len(retry) < 6 else None
    # What a server says to wrong credentials may repeat them.
    said = "" if fault is Fault.CREDENTIALS else _sentence(body)
    return TargetError(fault, f"{_host(url)} answered {status}{said}", retry_after_s)


def _sentence(body: bytes) -> str:
    text = " ".join(body[: 4 * MAX_SENTENCE].decode("utf-8", "replace").split())
    printable = "".join(c for c in text if c.isprintable())[:MAX_SENTENCE]
    return f": {printable}" if printable else ""


def _broken(url: str, error: httpx.HTTPError) -> TargetError:
    said = str(error) or type(error).__name__
    return TargetError(Fault.UNREACHABLE, f"{_host(url)} cannot be reached: {said[:MAX_SENTENCE]}")


def _host(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "the target"
    return f"{parsed.host}:{parsed.port}" if parsed.port else parsed.host
