"""Open Inference Protocol v2 over HTTP, as a client: keep-alive, binary tensors, checked answers.

All kinds of targets answer through it. Servers are outside: every answer is bounded in size and
time and checked against the model's signature before anyone sees it. No error repeats a header
that was sent: credentials travel there.

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
MAX_REFUSAL = 64 * 1024
MAX_SENTENCE = 300
_SECRET = 6
"""Characters from which on a word of a header may be a secret."""
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
        content = b"".join(buffers)
        status, told, body = await self._exchange("POST", f"{url}/infer", content, sent, timeout_s)
        if status != httpx.codes.OK:
            raise _refusal(url, status, told, body, sent)
        return _checked(url, told, body, names, signature)

    async def ready(
        self, url: str, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> bool:
        """Whether the model at `url` says that it is ready. Raises `TargetError` where the server
        cannot be reached or refuses the credentials."""
        sent = dict(headers or {})
        status, told, body = await self._exchange("GET", f"{url}/ready", b"", sent, timeout_s)
        if _FAULTS.get(status) is Fault.CREDENTIALS:
            raise _refusal(url, status, told, body, sent)
        return status == httpx.codes.OK

    async def close(self) -> None:
        """End all sessions."""
        await self._http.aclose()

    async def _exchange(
        self, method: str, url: str, content: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of the answer, which ends within `timeout_s`."""
        # Compressed, an answer of any size would be a small one.
        sent = {**headers, "accept-encoding": "identity"}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(
                    method, url, content=content, headers=sent, timeout=None
                ) as answer,
            ):
                return answer.status_code, answer.headers, await _body(url, answer)
        except TimeoutError:
            raise TargetError(
                Fault.TIMEOUT, f"{_host(url)} did not answer within {timeout_s * 1e3:.0f} ms"
            ) from None
        except httpx.InvalidURL as error:
            raise TargetError(Fault.UNREACHABLE, f"{_host(url)} is no address: {error}") from None
        except (httpx.LocalProtocolError, UnicodeError):
            # The text of the error has the header.
            raise TargetError(
                Fault.CREDENTIALS,
                f"the credential for {_host(url)} has characters that no header can carry",
            ) from None
        except httpx.HTTPError as error:
            said = _printable(str(error), headers) or type(error).__name__
            raise TargetError(
                Fault.UNREACHABLE, f"{_host(url)} cannot be reached: {said}"
            ) from None


async def _body(url: str, answer: httpx.Response) -> bytes:
    """The body as it was sent. What is too long of a refusal is left unread."""
    encoding = answer.headers.get("content-encoding", "identity")
    good = answer.status_code == httpx.codes.OK
    if good and encoding != "identity":
        raise TargetError(Fault.BROKEN, f"{_host(url)} sends what it was not asked for: {encoding}")
    parts: list[bytes] = []
    size = 0
    async for part in answer.aiter_raw():
        size += len(part)
        parts.append(part)
        if size > MAX_REFUSAL and not good:
            break
        if size > MAX_REPLY:
            raise TargetError(Fault.BROKEN, f"{_host(url)} sends more than {MAX_REPLY} bytes")
    return b"".join(parts)


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


def _refusal(
    url: str, status: int, told: httpx.Headers, body: bytes, sent: Mapping[str, str]
) -> TargetError:
    fault = _FAULTS.get(status, Fault.BROKEN)
    retry = told.get("retry-after", "")
    retry_after_s = float(retry) if retry.isdecimal() and len(retry) < 6 else None
    said = "" if fault is Fault.CREDENTIALS else _printable(body[: 4 * MAX_SENTENCE], sent)
    return TargetError(
        fault, f"{_host(url)} answered {status}{': ' if said else ''}{said}", retry_after_s
    )


def _printable(said: str | bytes, sent: Mapping[str, str]) -> str:
    """What a server said, as one short line without the words of the headers that were sent."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    text = " ".join(text.split())
    for value in sent.values():
        for word in value.split():
            if len(word) >= _SECRET:
                text = text.replace(word, "…")
    return "".join(c for c in text if c.isprintable())[:MAX_SENTENCE]


def _host(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "the target"
    return f"{parsed.host}:{parsed.port}" if parsed.port else parsed.host
