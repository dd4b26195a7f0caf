"""A control plane of canned answers behind a real socket, and the command against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from support.loopback import serving
from typer.testing import CliRunner

from shoal_controlplane.cli import deployment, device, infer, model
from shoal_controlplane.cli.root import make_app

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


@dataclass
class Call:
    """A request that the control plane got."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Plane:
    """Answers by "METHOD path": a document, a `Response`, or a function of the call."""

    url: str
    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        call = Call(
            request.method,
            request.url.path,
            request.query_params.multi_items(),
            dict(request.headers),
            await request.body(),
        )
        self.calls.append(call)
        found = self.answers.get(call.name)
        if callable(found) and not isinstance(found, Response):
            found = found(call)
        if isinstance(found, Response):
            return found
        if found is None:
            return problem(404, f"There is nothing at {call.path}.")
        return JSONResponse(found)

    def pages(self, path: str, items: list[Any]) -> None:
        """Answer with a list of one page."""
        self.answers[f"GET {path}"] = {"items": items, "next_cursor": None}

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.calls]


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left."""

    code: int
    out: str
    err: str


def problem(status: int, detail: str) -> Response:
    """An error as the API tells it."""
    return JSONResponse(
        {"title": "Error", "status": status, "detail": detail},
        status,
        media_type="application/problem+json",
    )


@pytest.fixture(scope="module")
def _served() -> Iterator[Plane]:
    plane = Plane("")

    async def endpoint(request: Request) -> Response:
        return await plane.answer(request)

    with serving(Starlette(routes=[Route("/{path:path}", endpoint, methods=METHODS)])) as url:
        plane.url = url
        yield plane


@pytest.fixture
def plane(_served: Plane) -> Plane:
    _served.answers.clear()
    _served.calls.clear()
    return _served


@pytest.fixture
def run() -> Callable[..., Outcome]:
    """Run the command in this process; an exception that it lets out fails the test."""
    app = make_app(module.register for module in (device, model, deployment, infer))

    def invoke(*arguments: str, env: dict[str, str] | None = None) -> Outcome:
        result = CliRunner().invoke(app, list(arguments), env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def shoal(plane: Plane, run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """The command against the canned control plane."""
    return lambda *arguments: run(*arguments, "--server", plane.url)


def device_document(name: str = "jetson-1", **more: Any) -> dict[str, Any]:
    """A device as the API shows it."""
    document = {
        "id": name,
        "condition": "online",
        "board": {"family": "jetson", "model": "Orin Nano", "soc": "T234", "simulated": True},
        "cores": 6,
        "memory_bytes": 8 << 30,
        "disk_free_bytes": 20 << 30,
        "accelerators": [
            {
                "kind": "gpu",
                "name": "Ampere",
                "memory_bytes": 0,
                "precisions": ["fp16", "int8"],
                "compute_capability": "8.7",
                "transfer_bytes_per_s": 12.0 * (1 << 30),
            }
        ],
        "runtimes": [
            {
                "name": "onnxruntime",
                "version": "1.32.0",
                "formats": ["onnx"],
                "providers": ["CPUExecutionProvider"],
            }
        ],
        "toolkits": {"cuda": "12.6", "tensorrt": "10.3"},
        "power_mode": "15W",
        "labels": {"site": "berlin"},
        "notes": ["simulated: computed on this machine"],
        "agent_version": "0.1.0",
        "cordoned": False,
        "first_seen": "2026-01-01T00:00:00.000Z",
        "last_seen": "2026-01-02T00:00:00.000Z",
        "goal": 4,
        "goal_seen": 3,
        "telemetry": {
            "seq": 5,
            "uptime_s": 25.0,
            "cpu_load": 0.37,
            "memory_used_bytes": 3 << 30,
            "disk_free_bytes": 20 << 30,
            "temperature_c": 71.4,
            "throttled": True,
            "power_w": None,
            "accelerator_load": 0.5,
            "accelerator_memory_used_bytes": 1 << 30,
            "models": {"m:1": [120, 2, 13]},
        },
        "replicas": [
            {
                "deployment": "m",
                "model": "m",
                "version": "1",
                "state": "ready",
                "reason": "",
                "providers": ["CPUExecutionProvider"],
                "memory_bytes": 48 << 20,
                "variant": "reference",
                "runtime": "onnxruntime 1.32.0 cpu",
                "placement": {"accelerated": 0.0, "proof": "graph", "nodes": {}},
                "golden_error": None,
                "compiled": "",
                "load_s": 0.25,
                "notes": [],
                "fallback": False,
                "profile": {
                    "samples": [[1, 8.3], [2, 14.2]],
                    "intercept_ms": 2.4,
                    "slope_ms": 5.9,
                    "knee": 4,
                },
            }
        ],
        "revision": 1,
    }
    return {**document, **more}


def version_document(name: str = "m", version: str = "1", **more: Any) -> dict[str, Any]:
    """A version of a model as the API shows it: FP32 `x` [any, 3] to `y` [any, 3]."""
    document = {
        "name": name,
        "version": version,
        "digest": "sha256:" + "a" * 64,
        "size_bytes": 18_600_000,
        "format": "onnx",
        "platform": "onnxruntime_onnx",
        "signature": {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        },
        "max_batch": 64,
        "opset": 17,
        "parameters": 4_652_008,
        "card": None,
        "created_at": "2026-01-01T00:00:00Z",
        "revision": 1,
    }
    return {**document, **more}


def deployment_document(state: str = "ready", **more: Any) -> dict[str, Any]:
    """A deployment as the API shows it."""
    document = {
        "name": "m",
        "model": "m",
        "version": "1",
        "replicas": 2,
        "all": False,
        "select": {"site": "berlin"},
        "slo_ms": 50.0,
        "max_batch": None,
        "options": {},
        "require_accelerator": False,
        "state": state,
        "reason": "" if state == "ready" else "b: loading",
        "wanted": 2,
        "ready": 2 if state == "ready" else 1,
        "placements": [
            {
                "device": "a",
                "state": "ready",
                "reason": "",
                "providers": ["CPUExecutionProvider"],
                "profile": {"samples": [], "intercept_ms": 2.4, "slope_ms": 5.9, "knee": 4},
                "variant": "reference",
                "runtime": "onnxruntime 1.32.0 cpu",
                "placement": {"accelerated": 0.0, "proof": "graph", "nodes": {}},
                "golden_error": None,
                "compiled": "",
                "load_s": 0.25,
                "notes": [],
                "fallback": False,
            },
            {
                "device": "b",
                "state": state if state in ("ready", "failed") else "loading",
                "reason": "",
                "providers": [],
                "profile": None,
                "variant": "",
                "runtime": "",
                "placement": None,
                "golden_error": None,
                "compiled": "",
                "load_s": 0.0,
                "notes": [],
                "fallback": False,
            },
        ],
        "created_at": "2026-01-01T00:00:00.000Z",
        "revision": 1,
    }
    return {**document, **more}


def on_npu(**more: Any) -> dict[str, Any]:
    """What a replica that is placed on an accelerator adds to the above."""
    serving = {
        "variant": "int8",
        "runtime": "onnxruntime 1.32.0 qnn-htp",
        "providers": ["QNNExecutionProvider", "CPUExecutionProvider"],
        "placement": {
            "accelerated": 1.0,
            "proof": "graph",
            "nodes": {"QNNExecutionProvider": 97},
        },
        "golden_error": 0.0032,
        "compiled": "shared",
        "load_s": 0.04,
    }
    return {**serving, **more}


def on_cpu(**more: Any) -> dict[str, Any]:
    """What a replica that fell back to the CPU adds to the above."""
    note = "cat:1 cann: libascendcl.so not found: install CANN 8.x"
    return {"notes": [note], "fallback": True, **more}


def measured_document(**more: Any) -> dict[str, Any]:
    """A measurement as the API shows it."""
    document = {
        "variant": "int8",
        "board": "snapdragon/QCS8550",
        "runtime": "onnxruntime 1.32.0 qnn-htp",
        "profile": {"samples": [], "intercept_ms": 1.0, "slope_ms": 3.0, "knee": 2},
        "memory_bytes": 20 << 20,
        "accelerated": 1.0,
        "updated_at": "2026-01-01T00:00:00.000Z",
    }
    return {**document, **more}


@pytest.fixture
def documents() -> Any:
    """Builders of what the API shows."""

    class Documents:
        device = staticmethod(device_document)
        version = staticmethod(version_document)
        deployment = staticmethod(deployment_document)
        problem = staticmethod(problem)
        measured = staticmethod(measured_document)
        on_npu = staticmethod(on_npu)
        on_cpu = staticmethod(on_cpu)

    return Documents
