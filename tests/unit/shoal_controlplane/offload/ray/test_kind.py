"""A Ray target against a dashboard that says anything. What a real one does: tests/clouds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.ray import cluster as clusters
from shoal_controlplane.offload.ray import kind as ray
from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Fault,
    TargetError,
    TargetSettings,
)
from shoal_shared.oip import InferRequest
from shoal_shared.signature import ModelSignature, TensorSpec

TOKEN = "token-of-the-cluster"
SPEC = TensorSpec(name="a", datatype="FP32", shape=(-1,))
SIGNATURE = ModelSignature(inputs=(SPEC,), outputs=(SPEC,))
KEY = ("m", "1")


class Dashboard:
    """Keeps declarations as Ray does; `script` answers instead where it returns something."""

    def __init__(self) -> None:
        self.applications: dict[str, dict[str, Any]] = {}
        self.packages: set[str] = set()
        self.calls: list[str] = []
        self.script: Callable[[str, str], bytes | None] = lambda _method, _path: None
        self.after_change: Callable[[], object] = lambda: None
        self.hangs = False
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            fields = dict(
                line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
            )
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            self.calls.append(f"{method} {path}")
            if self.hangs:
                await reader.read()
                return
            answer = self.script(method, path)
            if answer is None:
                if fields.get("authorization") != f"bearer {TOKEN}":
                    answer = http(403, b"no: " + fields.get("authorization", "").encode())
                else:
                    answer = self.answer(method, path, body)
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def answer(self, method: str, path: str, body: bytes) -> bytes:
        if path.startswith("/api/v0/nodes?"):
            nodes = [{"state": "ALIVE", "resources_total": {"CPU": 4.0}}, {"state": "DEAD"}]
            return http(200, json.dumps({"data": {"result": {"result": nodes}}}).encode())
        if path == "/api/version":
            return http(200, b'{"ray_version": "2.60.0"}')
        if path.startswith("/api/packages/"):
            known = path in self.packages
            if method == "PUT":
                self.packages.add(path)
            return http(200 if known or method == "PUT" else 404, b"")
        if path.startswith("/api/serve/applications/"):
            if method == "PUT":
                declared = json.loads(body)["applications"]
                self.applications = {a["name"]: a for a in declared}
                self.after_change()
                return http(200, b"")
            states = {
                name: {"status": "RUNNING", "deployed_app_config": declared}
                for name, declared in self.applications.items()
            }
            state = {"applications": states, "controller_info": {"node_id": "n"}}
            return http(200, json.dumps(state).encode())
        return http(404, b"")


def http(status: int, body: bytes) -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    ).encode() + body


@pytest_asyncio.fixture
async def dashboard() -> AsyncIterator[Dashboard]:
    running = Dashboard()
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    yield running
    server.close()


@pytest_asyncio.fixture
async def target(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[CloudTarget]:
    monkeypatch.setenv("SHOAL_TEST_RAY_TOKEN", TOKEN)
    opened = ray.open_target(settings(dashboard.port))
    yield opened
    await opened.close()


@pytest.fixture
def model(tmp_path: Path) -> CloudModel:
    path = tmp_path / "m"
    path.write_bytes(b"0123")
    return CloudModel(*KEY, "onnx", path, "sha256:0", "http://cp/0", SIGNATURE, max_batch=1)


def settings(port: int, credential: str = "env:SHOAL_TEST_RAY_TOKEN") -> TargetSettings:
    address = f"http://127.0.0.1:{port}"
    return TargetSettings("ray", "ray", {"address": address, "serve_url": address}, credential)


async def fault_of(call: Awaitable[object]) -> TargetError:
    async with asyncio.timeout(10):
        with pytest.raises(TargetError) as caught:
            await call
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


async def test_what_others_declared_stays(
    dashboard: Dashboard, target: CloudTarget, model: CloudModel
) -> None:
    theirs = {"name": "theirs", "import_path": "x:y"}
    dashboard.applications = {"theirs": theirs}
    await target.deploy(model)
    assert dashboard.applications == {"theirs": theirs}
    await target.scale(KEY, 2)
    assert dashboard.applications["theirs"] == theirs
    (deployment,) = dashboard.applications["shoal:m:1"]["deployments"]
    assert deployment["num_replicas"] == 2
    await target.scale(KEY, 0)
    assert dashboard.applications == {"theirs": theirs}
    assert (await target.health(KEY)).wanted == 0
    await target.remove(KEY)
    assert (await fault_of(target.health(KEY))).fault is Fault.NOT_DEPLOYED


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        (http(200, b'{"authentication_mode": "token"}'), "token"),
        (http(404, b"an old Ray"), "disabled"),
    ],
)
async def test_whether_the_cluster_demands_its_token_is_told(
    dashboard: Dashboard, target: CloudTarget, mode: bytes, told: str
) -> None:
    dashboard.script = lambda _, path: mode if path == "/api/authentication_mode" else None
    facts = (await target.describe()).facts
    assert facts["authentication"] == told
    assert (facts["ray"], facts["nodes"], facts["cpus"]) == ("2.60.0", 1, 4.0)


async def test_the_code_travels_once(
    dashboard: Dashboard, target: CloudTarget, model: CloudModel
) -> None:
    await target.deploy(model)
    for replicas in (1, 0, 2):
        await target.scale(KEY, replicas)
    (package,) = dashboard.packages
    assert dashboard.calls.count(f"PUT {package}") == 1
    env = dashboard.applications["shoal:m:1"]["runtime_env"]
    assert env == {"py_modules": [package.replace("/api/packages/gcs/", "gcs://")]}


async def test_other_contents_replace_what_is_there(
    dashboard: Dashboard, target: CloudTarget, model: CloudModel
) -> None:
    await target.deploy(model)
    await target.scale(KEY, 3)
    await target.deploy(dataclasses.replace(model, digest="sha256:1"))
    declared = dashboard.applications["shoal:m:1"]
    assert declared["args"]["digest"] == "sha256:1"
    assert declared["deployments"][0]["num_replicas"] == 3


async def test_nothing_changes_where_nothing_must(
    dashboard: Dashboard, target: CloudTarget, model: CloudModel
) -> None:
    await target.deploy(model)
    await target.scale(KEY, 1)
    dashboard.calls.clear()
    await target.deploy(model)
    await target.scale(KEY, 1)
    await target.remove(("other", "1"))
    assert not [call for call in dashboard.calls if call.startswith("PUT")]


async def test_an_application_of_another_is_never_touched(
    dashboard: Dashboard, target: CloudTarget, model: CloudModel
) -> None:
    theirs = {"name": "shoal:m:1", "import_path": "x:y"}
    dashboard.applications = {"shoal:m:1": theirs}
    assert (await fault_of(target.deploy(model))).fault is Fault.CONFLICT
    assert (await fault_of(target.health(KEY))).fault is Fault.CONFLICT
    await target.remove(KEY)
    assert dashboard.applications == {"shoal:m:1": theirs}


async def test_a_change_by_somebody_else_at_the_same_time_is_told(
    dashboard: Dashboard, target: CloudTarget, model: CloudModel
) -> None:
    await target.deploy(model)
    theirs = {"name": "theirs", "import_path": "x:y"}
    for change in (
        lambda: dashboard.applications.update(theirs=theirs),
        lambda: dashboard.applications.pop("shoal:m:1"),
    ):
        dashboard.applications = {}
        dashboard.after_change = change
        assert (await fault_of(target.scale(KEY, 1))).fault is Fault.CONFLICT


async def test_two_changes_at_once_both_count(
    dashboard: Dashboard, target: CloudTarget, model: CloudModel
) -> None:
    models = [dataclasses.replace(model, version=str(v)) for v in range(4)]
    for one in models:
        await target.deploy(one)
    await asyncio.gather(*(target.scale(one.key, 1) for one in models))
    assert set(dashboard.applications) == {f"shoal:m:{v}" for v in range(4)}


async def test_what_can_never_run_is_refused(target: CloudTarget, model: CloudModel) -> None:
    brain = TensorSpec(name="b", datatype="BF16", shape=(-1,))
    for change in (
        {"format": "tflite"},
        {"signature": ModelSignature(inputs=(brain,), outputs=(SPEC,))},
    ):
        call = target.deploy(dataclasses.replace(model, **change))  # type: ignore[arg-type]
        assert (await fault_of(call)).fault is Fault.UNSUPPORTED


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (http(401, b""), Fault.CREDENTIALS),
        (http(403, TOKEN.encode()), Fault.CREDENTIALS),
        (http(404, b"no such page"), Fault.UNREACHABLE),
        (http(409, b""), Fault.CONFLICT),
        (http(429, b""), Fault.THROTTLED),
        (http(500, b"Traceback (most recent call last):\n  x\nKeyError: 1"), Fault.BROKEN),
        (http(501, b""), Fault.BROKEN),
        (http(503, b"later"), Fault.UNREACHABLE),
        (http(302, b""), Fault.BROKEN),
        (http(200, b""), Fault.BROKEN),
        (http(200, b"<html>"), Fault.BROKEN),
        (http(200, b"[]"), Fault.BROKEN),
        (http(200, b"[" * 100_000), Fault.BROKEN),
        (http(200, b'{"applications": {"shoal:m:1": {"deployments": [1]}}}'), Fault.BROKEN),
        (http(200, b"\xff\xfe"), Fault.BROKEN),
        (b"SSH-2.0-OpenSSH\r\n", Fault.UNREACHABLE),
        (b"", Fault.UNREACHABLE),
        (b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\n{", Fault.UNREACHABLE),
    ],
)
async def test_bad_answers_are_told(
    dashboard: Dashboard, target: CloudTarget, model: CloudModel, answer: bytes, fault: Fault
) -> None:
    dashboard.script = lambda _method, _path: answer
    for ask in (lambda: target.deploy(model), target.describe, lambda: target.remove(KEY)):
        assert (await fault_of(ask())).fault is fault


async def test_more_than_can_be_read_is_told(
    dashboard: Dashboard, target: CloudTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "MAX_ANSWER", 100)
    dashboard.script = lambda _method, _path: http(200, b" " * 101)
    assert (await fault_of(target.health(KEY))).fault is Fault.BROKEN


async def test_silence_ends_in_time(
    dashboard: Dashboard,
    target: CloudTarget,
    model: CloudModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dashboard.hangs = True
    monkeypatch.setattr(clusters, "TIMEOUT_S", 0.02)
    for ask in (target.describe, lambda: target.deploy(model), lambda: target.health(KEY)):
        assert (await fault_of(ask())).fault is Fault.TIMEOUT


async def test_an_inference_ends_within_its_own_time(
    dashboard: Dashboard, target: CloudTarget
) -> None:
    dashboard.hangs = True
    assert (await fault_of(target.infer(KEY, InferRequest([]), 0.02))).fault is Fault.TIMEOUT


async def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch, model: CloudModel) -> None:
    monkeypatch.setenv("SHOAL_TEST_RAY_TOKEN", TOKEN)
    target = ray.open_target(settings(1))
    assert (await fault_of(target.deploy(model))).fault is Fault.UNREACHABLE
    await target.close()


async def test_a_wrong_token_is_not_repeated(
    dashboard: Dashboard, target: CloudTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_TEST_RAY_TOKEN", "wrong-token")
    error = await fault_of(target.describe())
    assert error.fault is Fault.CREDENTIALS
    assert "wrong-token" not in str(error)


@pytest.mark.parametrize("token", ["line\nbreak", "naïve", "nul\0"])
async def test_a_token_that_no_header_can_carry(
    target: CloudTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    path = tmp_path / "token"
    path.write_text(token)
    path.chmod(0o600)
    target = ray.open_target(settings(1, f"file:{path}"))
    error = await fault_of(target.describe())
    assert error.fault is Fault.CREDENTIALS
    assert token not in str(error)
    await target.close()


async def test_no_token_is_told(dashboard: Dashboard) -> None:
    target = ray.open_target(settings(dashboard.port, ""))
    assert (await fault_of(target.describe())).fault is Fault.CREDENTIALS
    await target.close()


def test_certificates_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    for name in (path, tmp_path / "missing.pem"):
        options = {**settings(1).options, "ca_file": str(name)}
        with pytest.raises(InvalidError, match="ca_file"):
            ray.open_target(TargetSettings("ray", "ray", options))
