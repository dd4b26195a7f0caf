"""The client against a real server on the loopback interface that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from shoal_controlplane.offload import oipclient
from shoal_controlplane.offload.oipclient import OipClient
from shoal_controlplane.offload.target import Fault, TargetError
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, RequestedOutput, Tensor
from shoal_shared.signature import ModelSignature, TensorSpec

SECRET = "s3cr3t-token-of-azure"
SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(
        TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="n", datatype="INT64", shape=(-1,)),
    ),
)
Y = np.array([[1.5, -2.0]], np.float32)
N = np.array([7], np.int64)
Handler = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """A request that came, and the connection it came by."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter

    async def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        told = {"content-length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        self.writer.write(f"HTTP/1.1 {status} Told\r\n{head}\r\n".encode() + body)
        await self.writer.drain()

    async def reply(self, *outputs: Tensor, binary: bool = True) -> None:
        reply = InferReply(list(outputs), "m", "1")
        buffers, length = oip.encode_reply(reply, [binary] * len(outputs))
        headers = {oip.HEADER_LENGTH: str(length)} if length is not None else {}
        await self.send(200, b"".join(buffers), headers)


@dataclass
class Server:
    """Answers each request by `handler`."""

    url: str = ""
    handler: Handler | None = None
    seen: list[Exchange] = field(default_factory=list)
    connections: int = 0


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                exchange = Exchange(method, path, headers, body, writer)
                server.seen.append(exchange)
                assert server.handler is not None
                await server.handler(exchange)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/v2/models/m"
    yield server
    listening.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def client() -> AsyncIterator[OipClient]:
    client = OipClient()
    yield client
    await client.close()


def request(*outputs: str) -> InferRequest:
    return InferRequest(
        [Tensor("x", "FP32", np.ones((1, 2), np.float32))],
        [RequestedOutput(name) for name in outputs],
        "edge-name",
        "9",
        parameters={"timeout": 1000, "priority": 1},
    )


async def fault(
    client: OipClient, server: Server, timeout_s: float = 5.0, secret: str = SECRET
) -> TargetError:
    with pytest.raises(TargetError) as caught:
        async with asyncio.timeout(10):
            await client.infer(
                server.url,
                request(),
                SIGNATURE,
                timeout_s,
                {"authorization": f"Bearer {secret}"},
            )
    text = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert secret.strip() not in text
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return caught.value


async def test_a_request_and_its_answer(client: OipClient, server: Server) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply(Tensor("n", "INT64", N), Tensor("y", "FP32", Y))

    server.handler = handler
    for _ in range(3):
        reply = await client.infer(server.url, request(), SIGNATURE, 5, {"x-deployment": "blue"})
    assert [t.name for t in reply.outputs] == ["y", "n"]
    np.testing.assert_array_equal(reply.outputs[0].data, Y)
    np.testing.assert_array_equal(reply.outputs[1].data, N)
    assert server.connections == 1
    seen = server.seen[-1]
    assert (seen.method, seen.path) == ("POST", "/v2/models/m/infer")
    assert seen.headers["x-deployment"] == "blue"
    assert seen.headers["accept-encoding"] == "identity"
    length = int(seen.headers[oip.HEADER_LENGTH.lower()])
    header = json.loads(seen.body[:length])
    # Names and deadlines are the edge's own.
    assert "model_name" not in header
    assert header["parameters"] == {"priority": 1}
    assert oip.decode_request(seen.body, length).inputs[0].data.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("binary", [True, False])
async def test_only_what_was_asked_for(client: OipClient, server: Server, binary: bool) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply(Tensor("y", "FP32", Y), Tensor("n", "INT64", N), binary=binary)

    server.handler = handler
    reply = await client.infer(server.url, request("n"), SIGNATURE, 5)
    assert [t.name for t in reply.outputs] == ["n"]


@pytest.mark.parametrize(
    ("outputs", "word"),
    [
        ([Tensor("y", "FP32", Y)], "'n' is missing"),
        ([Tensor("z", "FP32", Y), Tensor("n", "INT64", N)], "'y' is missing"),
        ([Tensor("y", "FP64", Y.astype(np.float64)), Tensor("n", "INT64", N)], "FP64 instead"),
        ([Tensor("y", "FP32", Y[0]), Tensor("n", "INT64", N)], "shape"),
        ([Tensor("y", "FP32", np.ones((1, 3), np.float32)), Tensor("n", "INT64", N)], "shape"),
        ([], "missing"),
    ],
)
async def test_wrong_names_types_and_shapes(
    client: OipClient, server: Server, outputs: list[Tensor], word: str
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply(*outputs)

    server.handler = handler
    error = await fault(client, server)
    assert error.fault is Fault.BROKEN
    assert word in str(error)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"<html>welcome</html>", {}),
        (b"null", {}),
        (b"[" * 100_000, {}),
        (b'{"outputs": 3}', {}),
        (b"\xff\xfe\x00", {}),
        (b"{}", {oip.HEADER_LENGTH: "99999999"}),
        (b"{}", {oip.HEADER_LENGTH: "-1"}),
        (b"{}", {oip.HEADER_LENGTH: "9" * 5000}),
        (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1]}]}', {}),
        (
            b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,99999999999],'
            b'"parameters":{"binary_data_size":8}}]}',
            {oip.HEADER_LENGTH: "100"},
        ),
    ],
)
async def test_what_is_no_reply(
    client: OipClient, server: Server, body: bytes, headers: dict[str, str]
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.send(200, body, headers)

    server.handler = handler
    assert (await fault(client, server)).fault is Fault.BROKEN


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Fault.INVALID),
        (401, Fault.CREDENTIALS),
        (403, Fault.CREDENTIALS),
        (404, Fault.NOT_DEPLOYED),
        (408, Fault.TIMEOUT),
        (409, Fault.CONFLICT),
        (413, Fault.INVALID),
        (418, Fault.BROKEN),
        (424, Fault.BROKEN),
        (429, Fault.THROTTLED),
        (500, Fault.BROKEN),
        (502, Fault.UNREACHABLE),
        (503, Fault.NOT_DEPLOYED),
        (504, Fault.TIMEOUT),
    ],
)
async def test_refusals(client: OipClient, server: Server, status: int, expected: Fault) -> None:
    async def handler(exchange: Exchange) -> None:
        # It repeats what it was sent, on several lines.
        said = f"no:\n{exchange.headers['authorization']}\r\n\x1b[2Jbecause"
        await exchange.send(status, said.encode())

    server.handler = handler
    error = await fault(client, server)
    assert error.fault is expected
    assert str(status) in str(error)
    assert "\x1b" not in str(error)
    assert error.retry_after_s is None
    if expected is not Fault.CREDENTIALS:
        assert "because" in str(error)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("9" * 30, None),
        ("-1", None),
    ],
)
async def test_when_to_come_back(
    client: OipClient, server: Server, told: str, expected: float | None
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.send(429, b"slow down", {"retry-after": told})

    server.handler = handler
    error = await fault(client, server)
    assert error.retry_after_s == expected


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(client: OipClient, server: Server, status: int) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.send(status, b"", {"location": f"{server.url}/elsewhere"})

    server.handler = handler
    assert (await fault(client, server)).fault is Fault.BROKEN
    assert len(server.seen) == 1


async def test_it_sends_byte_by_byte(client: OipClient, server: Server) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(1000):
            exchange.writer.write(b"x")
            await exchange.writer.drain()
            await asyncio.sleep(0.01)

    server.handler = handler
    error = await fault(client, server, timeout_s=0.08)
    assert error.fault is Fault.TIMEOUT
    assert "80 ms" in str(error)


async def test_it_never_answers(client: OipClient, server: Server) -> None:
    async def handler(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    server.handler = handler
    assert (await fault(client, server, timeout_s=0.05)).fault is Fault.TIMEOUT


async def test_it_does_not_end_its_headers(client: OipClient, server: Server) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1_000_000):
            exchange.writer.write(b"x-%d: y\r\n" % number)
            await exchange.writer.drain()

    server.handler = handler
    assert (await fault(client, server)).fault is Fault.UNREACHABLE


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
    ],
)
async def test_it_breaks_off_or_talks_something_else(
    client: OipClient, server: Server, sent: bytes
) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.writer.write(sent)
        await exchange.writer.drain()
        exchange.writer.close()

    server.handler = handler
    assert (await fault(client, server)).fault is Fault.UNREACHABLE


@pytest.mark.parametrize("status", [200, 500])
async def test_a_body_without_end(
    client: OipClient, server: Server, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oipclient, "MAX_REPLY", 1_000_000)

    async def handler(exchange: Exchange) -> None:
        exchange.writer.write(
            f"HTTP/1.1 {status} Told\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        while True:
            exchange.writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await exchange.writer.drain()

    server.handler = handler
    error = await fault(client, server)
    assert error.fault is Fault.BROKEN
    if status == 200:
        assert "more than 1000000 bytes" in str(error)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_a_compressed_answer_is_not_unpacked(
    client: OipClient, server: Server, encoding: str
) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)

    async def handler(exchange: Exchange) -> None:
        await exchange.send(200, bomb, {"content-encoding": encoding})

    server.handler = handler
    error = await fault(client, server)
    assert error.fault is Fault.BROKEN
    assert encoding in str(error)


async def test_a_compressed_refusal_is_not_unpacked(client: OipClient, server: Server) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)

    async def handler(exchange: Exchange) -> None:
        await exchange.send(500, bomb, {"content-encoding": "gzip"})

    server.handler = handler
    assert "0" * 50 not in str(await fault(client, server))


@pytest.mark.parametrize(
    "url",
    [
        "http://no-such-host.invalid/v2/models/m",
        "http://127.0.0.1:1/v2/models/m",
        "http://[::1/v2/models/m",
        "http://\x00/v2",
        "gopher://x/v2/models/m",
        "/v2/models/m",
    ],
)
async def test_addresses_that_lead_nowhere(client: OipClient, url: str) -> None:
    assert (await fault(client, Server(url))).fault is Fault.UNREACHABLE
    with pytest.raises(TargetError):
        await client.ready(url, 5.0)


@pytest.mark.parametrize("secret", ["abc-def\r\nx-evil: 1", "tökén-über", "abcdefgh\x00"])
async def test_a_credential_that_no_header_can_carry(
    client: OipClient, server: Server, secret: str
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply(Tensor("y", "FP32", Y), Tensor("n", "INT64", N))

    server.handler = handler
    assert (await fault(client, server, secret=secret)).fault is Fault.CREDENTIALS
    assert server.seen == []


async def test_a_cancelled_request_leaves_the_client_usable(
    client: OipClient, server: Server
) -> None:
    begun = asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        begun.set()
        await asyncio.Event().wait()

    server.handler = hang
    task = asyncio.create_task(client.infer(server.url, request(), SIGNATURE, 30))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def handler(exchange: Exchange) -> None:
        await exchange.reply(Tensor("y", "FP32", Y), Tensor("n", "INT64", N))

    server.handler = handler
    await client.infer(server.url, request(), SIGNATURE, 5)


async def test_readiness(client: OipClient, server: Server) -> None:
    told = [200]

    async def handler(exchange: Exchange) -> None:
        await exchange.send(told[0], b"{}")

    server.handler = handler
    assert await client.ready(server.url, 5.0)
    assert server.seen[-1].path == "/v2/models/m/ready"
    for told[0] in (400, 404, 500, 503):
        assert not await client.ready(server.url, 5.0)
    for told[0] in (401, 403):
        with pytest.raises(TargetError) as caught:
            await client.ready(server.url, 5.0, {"authorization": SECRET})
        assert caught.value.fault is Fault.CREDENTIALS

    async def hang(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    server.handler = hang
    with pytest.raises(TargetError) as caught:
        await client.ready(server.url, 0.05)
    assert caught.value.fault is Fault.TIMEOUT
