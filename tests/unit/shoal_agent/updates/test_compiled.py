"""Devices with folders of their own, and a server that keeps what they share."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal_agent.updates import codeserver
from shoal_agent.updates.bundle import pack
from shoal_agent.updates.compiled import SharedCompiledCode
from shoal_shared.compiled import CompileKey

MODEL = "sha256:" + "a" * 64
KEY = CompileKey(
    digest=MODEL,
    target="qualcomm-soc57",
    provider_set="qnn-htp",
    runtime="onnxruntime 1.32.0",
    driver="qnn 2.30",
    settings="0" * 64,
)
FILES = {"model_ctx.onnx": b"context" * 1000, "parts/one.bin": b"\x07" * 70_000}


class Handler(BaseHTTPRequestHandler):
    """The control plane's artifacts and compiled code, in memory."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(b"")

    def do_PUT(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        path = self.path.removeprefix("/artifacts/")
        self.server.seen.append(f"{self.command} {path.split('/')[0]}")
        for words, fault in self.server.faults:
            if f"{self.command} {path}".startswith(words):
                fault(self)
                return
        kind, name = path.split("/")
        if kind == "sha256":
            self.artifact(name, body)
        else:
            self.compiled(*name.partition("?")[::2], body)

    def artifact(self, name: str, body: bytes) -> None:
        if self.command == "PUT":
            good = hashlib.sha256(body).hexdigest() == name
            self.server.artifacts.setdefault(f"sha256:{name}", body)
            self.reply(201 if good else 422)
        elif f"sha256:{name}" in self.server.artifacts:
            self.reply(200, self.server.artifacts[f"sha256:{name}"])
        else:
            self.reply(404)

    def compiled(self, name: str, query: str, body: bytes) -> None:
        shared = self.server.shared
        if self.command == "PUT":
            document = json.loads(body)
            assert document["digest"] in self.server.artifacts
            assert msgspec.convert(document["key"], CompileKey).hex == name
            if query == "replace=true":
                shared[name] = document
            shared.setdefault(name, document)
        if name in shared:
            self.reply(200, json.dumps(shared[name]).encode())
        else:
            self.reply(404, b'{"detail": "nothing"}')

    def reply(self, status: int, body: bytes = b"{}") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.artifacts: dict[str, bytes] = {}
        self.shared: dict[str, dict[str, Any]] = {}
        self.seen: list[str] = []
        self.faults: list[tuple[str, Callable[[Handler], None]]] = []
        self.stalled = threading.Event()
        self.release = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Clients that leave are part of the tests."""

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


class Device:
    """One device; `pauses` are those between its attempts to upload."""

    def __init__(self, folder: Path, server: Server | str, name: str = "d") -> None:
        self.folder = folder / name / "compiled"
        self.pauses: list[float] = []

        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        self.code = SharedCompiledCode(
            self.folder,
            server if isinstance(server, str) else server.url,
            name,
            rng=random.Random(1),
            sleep=sleep,
            margin_bytes=0,
        )

    async def obtain(self, key: CompileKey = KEY) -> tuple[dict[str, bytes], str]:
        path, origin = await self.code.obtain(key)
        assert path is not None
        assert path.is_dir()
        return contents(path), origin

    async def compile(
        self, key: CompileKey = KEY, files: dict[str, bytes] = FILES, *, share: bool = True
    ) -> None:
        path, origin = await self.code.obtain(key)
        assert path is not None
        assert (contents(path), origin) == ({}, "")
        for name, data in files.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(data)
        await self.code.offer(key)
        if share:
            await self.uploaded()

    async def uploaded(self) -> None:
        await asyncio.gather(*self.code._uploads.values())

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {"transit"}

    def is_tidy(self) -> bool:
        """Whether there are no bundles and no half-made folders."""
        transit = self.folder / "transit" / "sha256"
        in_transit = list(transit.iterdir()) if transit.exists() else []
        return self.names() <= {KEY.hex, f"{KEY.hex}.json"} and not in_transit


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def share(server: Server, bundle: bytes, **more: object) -> str:
    """Put something under the key that no agent would."""
    digest = f"sha256:{hashlib.sha256(bundle).hexdigest()}"
    server.artifacts[digest] = bundle
    entry = {"key": msgspec.to_builtins(KEY), "digest": digest, "size": len(bundle), **more}
    server.shared[KEY.hex] = entry
    return digest


async def test_a_sibling_downloads_what_the_first_device_compiled(
    server: Server, tmp_path: Path
) -> None:
    first, second = Device(tmp_path, server, "first"), Device(tmp_path, server, "second")
    await first.compile()
    assert await first.obtain() == (FILES, "here")
    assert server.shared[KEY.hex]["device"] == "first"
    assert await second.obtain() == (FILES, "shared")
    server.seen.clear()
    again = Device(tmp_path, server, "second")
    assert await again.obtain() == (FILES, "shared")
    assert await Device(tmp_path, server, "first").obtain() == (FILES, "here")
    assert server.seen == []
    assert first.is_tidy()
    assert second.is_tidy()


@pytest.mark.parametrize("field", ["digest", "target", "provider_set", "runtime", "driver"])
async def test_another_key_is_compiled_for_itself(
    server: Server, tmp_path: Path, field: str
) -> None:
    await Device(tmp_path, server, "first").compile()
    other = msgspec.structs.replace(KEY, **{field: "sha256:" + "b" * 64})
    assert await Device(tmp_path, server, "second").obtain(other) == ({}, "")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda path: (path / "model_ctx.onnx").write_bytes(b"CONTEXT" * 1000),
        lambda path: (path / "model_ctx.onnx").write_bytes(b"short"),
        lambda path: (path / "model_ctx.onnx").unlink(),
        lambda path: (path / "more.bin").write_bytes(b""),
        lambda path: ((path / "parts/one.bin").unlink(), (path / "parts/one.bin").mkdir()),
        lambda path: (path / "link").symlink_to("/etc/passwd"),
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
    ],
)
async def test_what_was_changed_on_disk_is_not_used(
    tmp_path: Path, tamper: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(tmp_path, "")
    await device.compile()
    assert await device.obtain() == (FILES, "here")
    tamper(device.folder / KEY.hex)
    assert await device.obtain() == ({}, "")
    assert "compiled code for qnn-htp on qualcomm-soc57 was changed on disk" in caplog.text
    assert not (device.folder / KEY.hex).is_symlink()
    await device.compile()
    assert await device.obtain() == (FILES, "here")


async def test_changed_code_comes_back_from_the_server(server: Server, tmp_path: Path) -> None:
    device = Device(tmp_path, server)
    await device.compile()
    (device.folder / KEY.hex / "model_ctx.onnx").write_bytes(b"evil")
    assert await device.obtain() == (FILES, "shared")


@pytest.mark.parametrize("manifest", [b"", b"{", b'{"key": 1}', b"[" * 100_000, b"\xff"])
async def test_code_without_a_manifest_is_not_used(tmp_path: Path, manifest: bytes) -> None:
    device = Device(tmp_path, "")
    await device.compile()
    (device.folder / f"{KEY.hex}.json").write_bytes(manifest)
    assert await device.obtain() == ({}, "")


async def test_what_nobody_vouched_for_before_a_power_cut_is_not_used(tmp_path: Path) -> None:
    device = Device(tmp_path, "")
    path, _ = await device.code.obtain(KEY)
    assert path is not None
    (path / "half").write_bytes(b"x")
    assert await Device(tmp_path, "").obtain() == ({}, "")


async def test_a_bundle_that_was_changed_on_the_server_is_replaced(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await Device(tmp_path, server, "first").compile()
    digest = server.shared[KEY.hex]["digest"]
    bundle = bytearray(server.artifacts[digest])
    bundle[600] ^= 1
    server.artifacts[digest] = bytes(bundle)
    second = Device(tmp_path, server, "second")
    assert await second.obtain() == ({}, "")
    assert "shared code is bad: compiling anew" in caplog.text
    assert second.is_tidy()
    mine = {"model_ctx.onnx": b"mine"}
    await second.compile(files=mine)
    assert server.shared[KEY.hex]["device"] == "second"
    assert await Device(tmp_path, server, "third").obtain() == (mine, "shared")


async def test_a_bundle_that_climbs_out_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/aaaaaa").write_bytes(b"evil")
    pack(tmp_path / "source", tmp_path / "bundle")
    evil = (tmp_path / "bundle").read_bytes().replace(b"aaaaaa", b"../../")
    for bundle in (evil, b"", bytes(1024), b"no tar at all" * 100):
        share(server, bundle)
        device = Device(tmp_path, server)
        assert await device.obtain() == ({}, "")
        assert device.is_tidy()


@pytest.mark.parametrize(
    "entry",
    [
        {"key": {**msgspec.to_builtins(KEY), "driver": "qnn 2.31"}},
        {"digest": "sha256:../../etc/passwd"},
        {"digest": "sha256:" + "0" * 64},
        {"size": 0},
        {"size": 10**15},
        {"size": 512},
        {"size": "many"},
        {"key": None},
    ],
)
async def test_an_entry_that_cannot_be_right_is_not_used(
    server: Server, tmp_path: Path, entry: dict[str, Any]
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").write_bytes(b"x")
    pack(tmp_path / "source", tmp_path / "bundle")
    share(server, (tmp_path / "bundle").read_bytes(), **entry)
    device = Device(tmp_path, server)
    assert await device.obtain() == ({}, "")
    assert device.is_tidy()


async def test_rejected_code_is_not_downloaded_again_and_gets_replaced(
    server: Server, tmp_path: Path
) -> None:
    await Device(tmp_path, server, "first").compile()
    second = Device(tmp_path, server, "second")
    assert await second.obtain() == (FILES, "shared")
    await second.code.reject(KEY, "golden outputs differ")
    second = Device(tmp_path, server, "second")
    mine = {"model_ctx.onnx": b"mine"}
    await second.compile(files=mine)
    assert await second.obtain() == (mine, "here")
    assert await Device(tmp_path, server, "third").obtain() == (mine, "shared")


async def test_what_another_device_shared_first_stays(server: Server, tmp_path: Path) -> None:
    server.faults = [("GET compiled", lambda h: h.reply(503))]
    second = Device(tmp_path, server, "second")
    await second.compile(files={"f": b"mine"})
    server.faults = []
    await Device(tmp_path, server, "first").compile()
    bundles = dict(server.artifacts)
    again = Device(tmp_path, server, "second")
    assert await again.obtain() == ({"f": b"mine"}, "here")
    await again.uploaded()
    assert server.artifacts == bundles
    assert server.shared[KEY.hex]["device"] == "first"


async def test_without_a_server_a_device_compiles_at_once_and_shares_later(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = Device(tmp_path, "http://127.0.0.1:1")
    await alone.compile()
    assert len(alone.pauses) == 4
    assert "compiled code is not shared" in caplog.text
    assert alone.is_tidy()
    later = Device(tmp_path, server)
    assert await later.obtain() == (FILES, "here")
    await later.uploaded()
    assert server.shared[KEY.hex]["device"] == "d"
    server.seen.clear()
    assert await later.obtain() == (FILES, "here")
    assert (later.code._uploads, server.seen) == ({}, [])


def cut_off(handler: Handler) -> None:
    handler.close_connection = True


async def test_an_upload_that_breaks_off_is_tried_again(server: Server, tmp_path: Path) -> None:
    broken = [("PUT sha256", cut_off)]
    server.faults = broken
    device = Device(tmp_path, server)
    waiting = device.code._sleep

    async def mend(seconds: float) -> None:
        await waiting(seconds)
        if len(device.pauses) == 2:
            server.faults = []

    device.code._sleep = mend
    await device.compile()
    assert server.seen.count("PUT sha256") == 3
    assert await Device(tmp_path, server, "second").obtain() == (FILES, "shared")


async def test_a_refusal_is_not_tried_again(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = b'{"detail": "The artifact is larger than 5 bytes."}'
    server.faults = [("PUT sha256", lambda h: h.reply(413, refusal))]
    device = Device(tmp_path, server)
    await device.compile()
    assert device.pauses == []
    reason = next(r.fields["reason"] for r in caplog.records if "not shared" in r.message)
    assert "larger than 5 bytes" in str(reason)
    assert await device.obtain() == (FILES, "here")


@pytest.mark.parametrize(
    "fault",
    [
        lambda h: h.reply(500),
        lambda h: h.reply(200, b"<html>"),
        lambda h: h.reply(200, b"[" * 60_000),
        lambda h: h.reply(200, b"{}" * 100_000),
        lambda h: h.wfile.write(b"nonsense\r\n\r\n"),
        cut_off,
    ],
)
async def test_a_server_that_answers_nonsense_is_as_good_as_none(
    server: Server, tmp_path: Path, fault: Callable[[Handler], None]
) -> None:
    server.faults = [("GET compiled", fault)]
    assert await Device(tmp_path, server).obtain() == ({}, "")


async def test_a_server_that_does_not_answer_does_not_hold_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codeserver, "LOOKUP_S", 0.05)
    server.faults = [("GET compiled", stall)]
    assert await Device(tmp_path, server).obtain() == ({}, "")


def stall(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(20 * 1024))
    handler.end_headers()
    handler.wfile.write(bytes(1024))
    handler.server.stalled.set()
    handler.server.release.wait(30)


async def test_a_cancelled_download_leaves_nothing(server: Server, tmp_path: Path) -> None:
    share(server, bytes(20 * 1024))
    server.faults = [("GET sha256", stall)]
    device = Device(tmp_path, server)
    task = asyncio.create_task(device.code.obtain(KEY))
    await asyncio.to_thread(server.stalled.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert device.is_tidy()
    assert contents(device.folder / KEY.hex) == {}


async def test_closing_ends_an_upload(server: Server, tmp_path: Path) -> None:
    server.faults = [("PUT sha256", stall)]
    device = Device(tmp_path, server)
    await device.compile(share=False)
    await asyncio.to_thread(server.stalled.wait, 10)
    await asyncio.wait_for(device.code.close(), 10)
    assert device.is_tidy()
    assert server.shared == {}


async def test_without_room_nothing_is_downloaded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Device(tmp_path, server, "first").compile()
    second = Device(tmp_path, server, "second")
    monkeypatch.setattr(second.code._transit, "_free_bytes", lambda _: 100_000)
    server.seen.clear()
    assert await second.obtain() == ({}, "")
    assert "GET sha256" not in server.seen
    monkeypatch.undo()
    assert await second.obtain() == (FILES, "shared")


@pytest.mark.parametrize(
    "key",
    [
        msgspec.structs.replace(KEY, target=""),
        msgspec.structs.replace(KEY, driver="x" * 201),
    ],
)
async def test_code_for_who_knows_what_stays_on_the_device(
    server: Server, tmp_path: Path, key: CompileKey
) -> None:
    device = Device(tmp_path, server)
    await device.compile(key)
    assert await device.obtain(key) == (FILES, "here")
    assert server.seen == []


async def test_a_folder_that_cannot_be_made_gives_none(tmp_path: Path) -> None:
    device = Device(tmp_path, "")
    device.folder.parent.mkdir()
    device.folder.write_bytes(b"a file is in the way")
    assert await device.code.obtain(KEY) == (None, "")
    await device.code.offer(KEY)
    await device.code.reject(KEY, "bad")
    await device.code.collect([])


async def test_nothing_compiled_is_nothing_to_share(server: Server, tmp_path: Path) -> None:
    device = Device(tmp_path, server)
    await device.obtain()
    await device.code.offer(KEY)
    assert device.code._uploads == {}
    assert await device.obtain() == ({}, "")


async def test_collecting_keeps_what_models_need(server: Server, tmp_path: Path) -> None:
    other = msgspec.structs.replace(KEY, digest="sha256:" + "b" * 64)
    older = msgspec.structs.replace(KEY, runtime="onnxruntime 1.31.0")
    for key in (older, other):
        await Device(tmp_path, server).compile(key)
    device = Device(tmp_path, server)
    await device.compile()
    (device.folder / ".unpack-x").mkdir()
    (device.folder / f"{KEY.hex}.bundle").write_bytes(b"left over")
    await device.code.collect({MODEL, other.digest})
    assert device.names() == {k.hex + end for k in (KEY, other) for end in ("", ".json")}
    await device.code.collect({MODEL})
    assert device.names() == {KEY.hex, f"{KEY.hex}.json"}
    assert await device.obtain() == (FILES, "here")
    await device.code.collect(())
    assert device.names() == set()


async def test_collecting_ends_the_upload_of_what_goes(server: Server, tmp_path: Path) -> None:
    server.faults = [("PUT sha256", stall)]
    device = Device(tmp_path, server)
    await device.compile(share=False)
    await asyncio.to_thread(server.stalled.wait, 10)
    await device.code.collect({MODEL})
    assert f"{KEY.hex}.bundle" in device.names()
    await asyncio.wait_for(device.code.collect(()), 10)
    assert device.names() == set()
