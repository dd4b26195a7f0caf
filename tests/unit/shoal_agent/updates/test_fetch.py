from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shoal_agent.updates import fetch as fetch_module
from shoal_agent.updates.fetch import Download, FetchError, HttpArtifacts
from shoal_agent.updates.store import ArtifactStore

DATA = bytes(random.Random(5).randbytes(700_000))
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
SIZE = len(DATA)
PATH = f"/artifacts/sha256/{DIGEST[7:]}"

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says; by default as a good server."""

    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        answers = self.server.answers
        (answers.pop(0) if answers else Handler.good)(self)

    def good(self, data: bytes = DATA, announce: int | None = None) -> None:
        if self.path != self.server.expected_path:
            self.send_error(404)
            return
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        size = len(data) - begin if announce is None else announce
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(data[begin:])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.ranges: list[str | None] = []
        self.expected_path = PATH
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


class Disk:
    free = 10**9

    def __call__(self, _: Path) -> int:
        return self.free


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def store(tmp_path: Path, disk: Disk) -> ArtifactStore:
    store = ArtifactStore(tmp_path, free_bytes=disk)
    store.prepare()
    return store


def download(server: Server, store: ArtifactStore, **more: int) -> Path:
    return Download(server.url, store, DIGEST, SIZE, margin_bytes=1000, **more).run()


def test_an_artifact_is_downloaded_and_verified(server: Server, store: ArtifactStore) -> None:
    path = download(server, store)
    assert path.read_bytes() == DATA
    assert store.verify(DIGEST, SIZE)
    assert server.ranges == [None]


def test_a_server_below_a_path_is_asked_there(server: Server, store: ArtifactStore) -> None:
    server.expected_path = "/shoal" + PATH
    assert Download(server.url + "/shoal/", store, DIGEST, SIZE).run().exists()


def test_no_proxy_is_asked(
    server: Server, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert download(server, store).exists()


def broken_off(handler: Handler) -> None:
    handler.good(DATA[:400_000], announce=SIZE)
    handler.close_connection = True


def test_a_broken_download_goes_on_where_it_was(server: Server, store: ArtifactStore) -> None:
    server.answers = [broken_off]
    with pytest.raises(FetchError) as caught:
        download(server, store)
    assert caught.value.transient
    assert store.part_path(DIGEST).stat().st_size == 400_000
    assert not store.path(DIGEST).exists()
    assert download(server, store).read_bytes() == DATA
    assert server.ranges == [None, "bytes=400000-"]


def test_a_complete_part_needs_no_server(server: Server, store: ArtifactStore) -> None:
    store.part_path(DIGEST).write_bytes(DATA)
    assert download(server, store).read_bytes() == DATA
    assert server.ranges == []


def test_a_server_that_cannot_resume_sends_all(server: Server, store: ArtifactStore) -> None:
    store.part_path(DIGEST).write_bytes(DATA[:1000])

    def whole(handler: Handler) -> None:
        del handler.headers["Range"]
        handler.good()

    server.answers = [whole]
    assert download(server, store).read_bytes() == DATA


@pytest.mark.parametrize("part", [DATA + b"x", b"y" * SIZE, DATA[:10] + b"\0" * 90])
def test_a_damaged_part_does_not_stay(server: Server, store: ArtifactStore, part: bytes) -> None:
    store.part_path(DIGEST).write_bytes(part)
    try:
        path = download(server, store)
    except FetchError as error:
        assert "digest" in str(error)
        assert not store.part_path(DIGEST).exists()
        path = download(server, store)
    assert path.read_bytes() == DATA


def refuse(status: int) -> Answer:
    return lambda handler: handler.send_error(status)


def another_range(handler: Handler) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 7-{SIZE - 1}/{SIZE}")
    handler.end_headers()


def too_much(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(DATA + b"more")


@pytest.mark.parametrize(
    ("answer", "words", "transient"),
    [
        (refuse(404), "does not have the artifact", False),
        (refuse(403), "status 403", False),
        (refuse(503), "status 503", True),
        (refuse(416), "refused to resume", True),
        (lambda h: h.good(DATA[:-1] + b"!"), "announced digest", False),
        (lambda h: h.good(DATA + b"more"), "another size", False),
        (lambda h: h.good(DATA[:100]), "another size", False),
        (too_much, "more than the announced", False),
        (another_range, "another range", False),
        (lambda h: h.wfile.write(b"nonsense\r\n\r\n"), "BadStatusLine", True),
    ],
)
def test_a_bad_answer_is_refused_in_a_sentence_and_nothing_is_kept(
    server: Server, store: ArtifactStore, answer: Answer, words: str, transient: bool
) -> None:
    if answer is another_range:
        store.part_path(DIGEST).write_bytes(DATA[:1000])
    server.answers = [answer]
    with pytest.raises(FetchError, match=words) as caught:
        download(server, store)
    assert caught.value.transient is transient
    assert "\n" not in str(caught.value)
    assert not store.path(DIGEST).exists()
    assert download(server, store).read_bytes() == DATA


def test_an_unreachable_server_is_named(store: ArtifactStore) -> None:
    with pytest.raises(FetchError, match=r"from http://127.0.0.1:1 failed") as caught:
        Download("http://127.0.0.1:1", store, DIGEST, SIZE).run()
    assert caught.value.transient


def test_no_byte_is_asked_for_without_room(
    server: Server, store: ArtifactStore, disk: Disk
) -> None:
    disk.free = SIZE + 999
    with pytest.raises(FetchError, match="not enough room on the disk") as caught:
        download(server, store)
    assert not caught.value.transient
    assert server.ranges == []
    assert not store.part_path(DIGEST).exists()
    disk.free = SIZE + 1000
    assert download(server, store).exists()


def test_what_no_goal_needs_makes_room(server: Server, store: ArtifactStore, disk: Disk) -> None:
    spare, kept = (f"sha256:{c * 64}" for c in "ab")
    for digest in (spare, kept):
        store.path(digest).write_bytes(b"x")
    disk.free = 0
    with pytest.raises(FetchError, match="room"):
        Download(server.url, store, DIGEST, SIZE, {kept}).run()
    assert not store.path(spare).exists()
    assert store.path(kept).exists()


def test_a_disk_that_fills_up_on_the_way_gets_its_bytes_back(
    server: Server, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchError, match="the disk is full") as caught:
        download(server, store)
    assert not caught.value.transient
    assert list(store.path(DIGEST).parent.iterdir()) == []


def test_a_store_that_cannot_be_written_is_named(
    server: Server, store: ArtifactStore, tmp_path: Path
) -> None:
    store.part_path(DIGEST).mkdir()
    with pytest.raises(FetchError, match="store cannot be written"):
        download(server, store)


async def test_a_transient_failure_is_tried_again(
    server: Server, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(fetch_module.asyncio, "sleep", sleep)
    artifacts = HttpArtifacts(server.url, store, rng=random.Random(1))
    server.answers = [broken_off, refuse(503)]
    path = await artifacts.obtain(DIGEST, SIZE, ())
    assert path.read_bytes() == DATA
    assert len(pauses) == 2
    assert artifacts.has(DIGEST, SIZE)
    server.answers = [refuse(503)] * 10
    with pytest.raises(FetchError, match="503"):
        await artifacts.obtain("sha256:" + "0" * 64, SIZE, ())


async def test_a_definite_failure_is_not_tried_again(server: Server, store: ArtifactStore) -> None:
    artifacts = HttpArtifacts(server.url, store, rng=random.Random(1))
    with pytest.raises(FetchError, match="does not have"):
        await artifacts.obtain("sha256:" + "0" * 64, SIZE, ())
    assert len(server.ranges) == 1


async def test_a_verified_artifact_needs_no_server(server: Server, store: ArtifactStore) -> None:
    download(server, store)
    artifacts = HttpArtifacts("http://127.0.0.1:1", store, rng=random.Random(1))
    assert (await artifacts.obtain(DIGEST, SIZE, ())).read_bytes() == DATA


async def test_cancelling_ends_the_download_and_leaves_a_part(
    server: Server, store: ArtifactStore
) -> None:
    waiting = threading.Event()

    def stall(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(SIZE))
        handler.end_headers()
        handler.wfile.write(DATA[:300_000])
        waiting.set()
        handler.server.release.wait(30)

    server.answers = [stall]
    artifacts = HttpArtifacts(server.url, store, rng=random.Random(1))
    task = asyncio.create_task(artifacts.obtain(DIGEST, SIZE, ()))
    await asyncio.to_thread(waiting.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert not store.path(DIGEST).exists()
    server.release.set()
    assert (await artifacts.obtain(DIGEST, SIZE, ())).read_bytes() == DATA


async def test_collecting_removes_what_is_not_kept(store: ArtifactStore) -> None:
    store.path(DIGEST).write_bytes(DATA)
    artifacts = HttpArtifacts("http://127.0.0.1:1", store, rng=random.Random(1))
    await artifacts.collect({DIGEST})
    assert store.path(DIGEST).exists()
    await artifacts.collect(())
    assert not store.path(DIGEST).exists()
