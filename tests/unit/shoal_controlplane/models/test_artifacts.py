from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from shoal_controlplane.api import problem
from shoal_controlplane.errors import InvalidError, NotFoundError, TooLargeError
from shoal_controlplane.models import artifacts
from shoal_controlplane.models.artifact_routes import artifact_routes
from shoal_controlplane.models.artifacts import ArtifactStore, StorageFullError

DATA = os.urandom(3_000_000)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def url(data: bytes) -> str:
    return f"/artifacts/sha256/{hashlib.sha256(data).hexdigest()}"


async def chunks(data: bytes, size: int = 700_001) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path, limit=4_000_000)


@pytest.fixture
async def client(store: ArtifactStore) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    problem.install(app)
    app.include_router(artifact_routes(store))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("data", [DATA, b"", b"x"], ids=["large", "empty", "one byte"])
async def test_what_is_put_is_there(store: ArtifactStore, tmp_path: Path, data: bytes) -> None:
    assert digest(data) not in store
    assert await store.put(digest(data), chunks(data))
    assert store.path(digest(data)).read_bytes() == data
    assert not await store.put(digest(data), chunks(data))
    assert len(files(tmp_path)) == 1
    await store.remove(digest(data))
    await store.remove(digest(data))
    with pytest.raises(NotFoundError):
        store.path(digest(data))


@pytest.mark.parametrize(
    "name",
    ["", "sha256:", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "a" * 64, digest(b"") + "\n"],
)
async def test_only_digests_name_artifacts(store: ArtifactStore, name: str) -> None:
    with pytest.raises(InvalidError):
        store.path(name)
    with pytest.raises(InvalidError):
        await store.put(name, chunks(b"x"))


async def test_other_bytes_than_promised_leave_nothing(
    store: ArtifactStore, tmp_path: Path
) -> None:
    with pytest.raises(InvalidError, match=digest(b"other")):
        await store.put(digest(DATA), chunks(b"other"))
    assert files(tmp_path) == []


async def test_too_many_bytes_leave_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    large = b"x" * 4_000_001
    with pytest.raises(TooLargeError, match="4000000"):
        await store.put(digest(large), chunks(large))
    assert files(tmp_path) == []


async def test_an_upload_that_breaks_off_leaves_nothing(
    store: ArtifactStore, tmp_path: Path
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA[:2_000_000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(digest(DATA), broken())
    assert files(tmp_path) == []


async def test_a_full_disk_leaves_nothing(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(StorageFullError, match="free space"):
        await store.put(digest(DATA), chunks(DATA))
    assert files(tmp_path) == []


async def test_a_full_disk_is_a_problem_of_the_server(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.tempfile, "mkstemp", full)
    answer = await client.put(url(DATA), content=DATA)
    assert answer.status_code == 503
    assert "full" in answer.json()["detail"]


def test_leftovers_of_a_crash_go_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "sha256").mkdir()
    (tmp_path / "sha256" / "tmpabc.part").write_bytes(b"half")
    (tmp_path / "sha256" / hashlib.sha256(b"").hexdigest()).write_bytes(b"")
    assert digest(b"") in ArtifactStore(tmp_path)
    assert files(tmp_path) == [hashlib.sha256(b"").hexdigest()]


async def test_put_and_get_over_http(client: httpx.AsyncClient) -> None:
    first = await client.put(url(DATA), content=DATA)
    assert (first.status_code, first.json()) == (
        201,
        {"digest": digest(DATA), "size_bytes": len(DATA)},
    )
    again = await client.put(url(DATA), content=chunks(DATA))
    assert (again.status_code, again.json()) == (200, first.json())
    answer = await client.get(url(DATA))
    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["etag"] == f'"{digest(DATA)}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    head = await client.head(url(DATA))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=2999999-", 2_999_999, 3_000_000),
        ("bytes=1000-99999999", 1000, 3_000_000),
        ("bytes=-5", 2_999_995, 3_000_000),
        ("bytes=-99999999", 0, 3_000_000),
    ],
)
async def test_a_range(client: httpx.AsyncClient, wanted: str, start: int, stop: int) -> None:
    await client.put(url(DATA), content=DATA)
    answer = await client.get(url(DATA), headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == DATA[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert answer.headers["etag"] == f'"{digest(DATA)}"'


async def test_if_range(client: httpx.AsyncClient) -> None:
    await client.put(url(DATA), content=DATA)
    for tag, status in ((f'"{digest(DATA)}"', 206), ('"other"', 200), (f'W/"{digest(DATA)}"', 200)):
        headers = {"Range": "bytes=5-", "If-Range": tag}
        answer = await client.get(url(DATA), headers=headers)
        assert answer.status_code == status
        assert answer.content == DATA[5 if status == 206 else 0 :]


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ("bytes=3000000-", 416),
        ("bytes=-0", 416),
        ("bytes=5-2", 422),
        ("bytes=0-1,5-6", 422),
        ("lines=1-2", 422),
        ("bytes=", 422),
        ("bytes=-", 422),
        ("bytes=1-2-3", 422),
        ("bytes=" + "9" * 5000 + "-", 422),
    ],
)
async def test_an_impossible_range(client: httpx.AsyncClient, wanted: str, status: int) -> None:
    await client.put(url(DATA), content=DATA)
    answer = await client.get(url(DATA), headers={"Range": wanted})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


async def test_bad_requests(client: httpx.AsyncClient, tmp_path: Path) -> None:
    assert (await client.get(url(b"missing"))).status_code == 404
    assert (await client.put(url(b"a"), content=b"b")).status_code == 422
    for path in ("..%2F..%2Fetc%2Fpasswd", "A" * 64, "a" * 63, "..", "%2e%2e%2fshoal.db"):
        for answer in (
            await client.get(f"/artifacts/sha256/{path}"),
            await client.put(f"/artifacts/sha256/{path}", content=b"x"),
        ):
            assert answer.status_code in (404, 405, 422)
    large = b"x" * 4_000_001
    assert (await client.put(url(large), content=large)).status_code == 413
    assert (await client.put(url(large), content=chunks(large))).status_code == 413
    assert files(tmp_path) == []


async def test_openapi_tells_of_bytes(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    operations = paths["/artifacts/sha256/{hex}"]
    assert set(operations["put"]["requestBody"]["content"]) == {"application/octet-stream"}
    assert set(operations["put"]["responses"]) == {"200", "201", "default"}
    assert set(operations["get"]["responses"]) == {"200", "206", "default"}
    assert set(operations) == {"get", "head", "put"}
