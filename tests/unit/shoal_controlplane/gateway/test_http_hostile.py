"""What clients get wrong over HTTP, by mistake or on purpose."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from structlog.testing import capture_logs
from support import asgi
from support.gateway import World, model

from shoal_controlplane.gateway.http import InferenceApp

LIMIT = 10_000
INFER = "/v2/models/cat/infer"
REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
BODY = json.dumps(REQUEST).encode()


class Site:
    def __init__(self) -> None:
        self.world = World("d1")
        self.world.table.publish([model(replicas=self.world.replicas)])
        self.world.link.on_sent = self.world.link.answer
        self.app = InferenceApp(self.world.gateway, max_body=LIMIT)

    async def send(
        self, body: Any = BODY, path: str = INFER, method: str = "POST", **headers: str
    ) -> asgi.Response:
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        response = await asgi.call(self.app, method, path, body, named)
        assert response is not None
        return response


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.mark.parametrize("length", [str(LIMIT + 1), "9" * 18, "9" * 5000])
async def test_a_declared_body_over_the_limit_is_not_read(site: Site, length: str) -> None:
    response = await site.send(b"", content_length=length)
    assert response.status == 413
    assert response.error == f"the body is larger than the limit of {LIMIT} bytes"


async def test_a_body_over_the_limit_in_chunks(site: Site) -> None:
    response = await site.send([b" " * 1000] * 11)
    assert response.status == 413
    assert (await site.send([b" " * (LIMIT - len(BODY)), BODY])).status == 200
    response = await site.send([b" " * LIMIT, b"x"], content_length="5")
    assert response.status == 413


async def test_a_client_that_leaves_gets_no_answer(site: Site) -> None:
    assert await asgi.call(site.app, "POST", INFER, BODY, disconnect=True) is None
    assert site.world.link.sent == []


@pytest.mark.parametrize("encoding", ["gzip", "GZip", " gzip ", "deflate", "identity"])
async def test_packed_bodies(site: Site, encoding: str) -> None:
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.strip().lower(), bytes)
    assert (await site.send(pack(BODY), content_encoding=encoding)).status == 200


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_a_bomb_is_not_unpacked(site: Site, pack: Any) -> None:
    encoding = "gzip" if pack is gzip.compress else "deflate"
    bomb = pack(b" " * (LIMIT * 500))
    assert len(bomb) < LIMIT
    response = await site.send(bomb, content_encoding=encoding)
    assert response.status == 413
    assert response.error == f"the unpacked body is larger than the limit of {LIMIT} bytes"


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
async def test_the_limit_of_unpacked_bodies_is_exact(site: Site, size: int) -> None:
    padded = BODY + b" " * (size - len(BODY))
    response = await site.send(gzip.compress(padded), content_encoding="gzip")
    assert response.status == (200 if size == LIMIT else 413)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cut off"),
        (gzip.compress(BODY, mtime=0)[:-9], "cut off"),
        (gzip.compress(BODY, mtime=0)[:-1], "cut off"),
        (gzip.compress(BODY, mtime=0)[:5], "cut off"),
        (BODY, "not what it claims"),
        (zlib.compress(BODY), "not what it claims"),
        (gzip.compress(BODY, mtime=0)[:10] + b"\xff" * 40, "not what it claims"),
        (gzip.compress(BODY, mtime=0) + b"more", "bytes follow the end"),
        (gzip.compress(BODY, mtime=0) + gzip.compress(BODY, mtime=0), "bytes follow the end"),
    ],
)
async def test_packed_bodies_that_are_damaged(site: Site, body: bytes, message: str) -> None:
    response = await site.send(body, content_encoding="gzip")
    assert response.status == 400
    assert message in response.error
    assert site.world.link.sent == []


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "x" * 1000, "identity;q=0"])
async def test_unknown_encodings(site: Site, encoding: str) -> None:
    response = await site.send(content_encoding=encoding)
    assert response.status == 400
    assert response.error == "Content-Encoding must be gzip, deflate or identity"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "must be a number of bytes"),
        ("-1", "must be a number of bytes"),
        ("1.5", "must be a number of bytes"),
        ("0x10", "must be a number of bytes"),
        ("ten", "must be a number of bytes"),
        ("9" * 13, "must be a number of bytes"),
        ("9" * 5000, "must be a number of bytes"),
        ("99999", "is 99999, but the body has"),
        ("10", "not a valid inference request"),
        ("0", "not a valid inference request"),
    ],
)
async def test_header_lengths(site: Site, value: str, message: str) -> None:
    response = await site.send(inference_header_content_length=value)
    assert response.status == 400
    assert message in response.error


@pytest.mark.parametrize("value", ["", "0", "-5", "1e3", "soon", "9" * 10])
async def test_timeouts_that_cannot_be(site: Site, value: str) -> None:
    response = await site.send(shoal_timeout_ms=value)
    assert response.status == 400
    assert response.error == "Shoal-Timeout-Ms must be a positive number of milliseconds"


@pytest.mark.parametrize("timeout", ["1", 1.5, True, -1, None, [1]])
async def test_timeout_parameters_that_cannot_be(site: Site, timeout: Any) -> None:
    response = await site.send(json.dumps(REQUEST | {"parameters": {"timeout": timeout}}).encode())
    if timeout is None:
        assert response.status == 200
        return
    assert response.status == 400
    assert response.error == "the parameter 'timeout' must be a number of microseconds"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "input 'x' is missing"),
        ({"inputs": REQUEST["inputs"] * 2}, "an input is given more than once"),
        ({"outputs": [{"name": "z"}]}, "the model has no output 'z'"),
        ({"outputs": [{"name": "y"}] * 2}, "asked for more than once"),
        ({"id": 7}, "Expected `str | null`"),
    ],
)
async def test_requests_that_do_not_fit(site: Site, change: Any, message: str) -> None:
    response = await site.send(json.dumps(REQUEST | change).encode())
    assert response.status == 400
    assert message in response.error
    assert site.world.link.sent == []


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", INFER, 405, "POST"),
        ("PUT", INFER, 405, "POST"),
        ("POST", "/v2/models/cat", 405, "GET"),
        ("DELETE", "/v2/models/cat/config", 405, "GET"),
        ("GET", "/v2/repository/models/cat/load", 405, "POST"),
        ("GET", "/v2/models/dog", 404, None),
        ("GET", "/v2/models/cat/versions/9", 404, None),
        ("POST", "/v2/models/dog/infer", 404, None),
        ("GET", "/v2/models/cat/fly", 404, None),
        ("GET", "/v2/models/", 404, None),
        ("GET", "/v2/models/a/b/c", 404, None),
        ("GET", "/v2/models/../../etc/passwd", 404, None),
        ("GET", "/v2/" + "x" * 10_000, 404, None),
        ("GET", "/v2/models/" + "x" * 10_000, 404, None),
        ("GET", "/v2/systemsharedmemory/status", 501, None),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501, None),
        ("GET", "/v2/trace/setting", 501, None),
        ("GET", "/v2/logging", 501, None),
    ],
)
async def test_what_is_not_there(
    site: Site, method: str, path: str, status: int, allowed: str | None
) -> None:
    response = await site.send(path=path, method=method)
    assert response.status == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers.get("allow") == allowed
    assert 0 < len(response.error) < 400


async def test_a_request_that_cannot_meet_its_deadline(site: Site) -> None:
    response = await site.send(shoal_timeout_ms="1")
    assert response.status == 429
    assert response.headers["retry-after"] == "1"
    assert "no device can answer within" in response.error


async def test_the_broker_is_away(site: Site) -> None:
    site.world.link.connected = False
    response = await site.send()
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert response.error == "the broker cannot be reached"


async def test_a_bug_is_answered_without_its_traceback(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(site.world.router, "pick", fail)
    with capture_logs() as logs:
        response = await site.send()
    assert response.status == 500
    assert "secret" not in response.error
    assert [entry["event"] for entry in logs] == ["request failed"]
    assert logs[0]["exc_info"]
    assert site.world.dispatcher.in_flight == 0
