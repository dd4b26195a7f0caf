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

from shoal_controlplane.cli import deployment, device, infer, model, plan, target
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
    app = make_app(module.register for module in (device, model, deployment, plan, target, infer))

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
        "shards": None,
        "objective": "throughput",
        "shapes": {},
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


def stage_document(index: int, *devices: str, **more: Any) -> dict[str, Any]:
    """A stage of four segments as the API shows it."""
    document = {
        "index": index,
        "first": 4 * index,
        "last": 4 * index + 4,
        "segments": f"/block{index}/conv1 … /block{index}/relu2",
        "devices": list(devices),
        "board": "jetson/Orin Nano",
        "memory_bytes": 45 << 20,
        "compute_ms": 12.0 + index,
        "measured": index == 0,
        "in_bytes": 602_112,
        "out_bytes": 76_800,
    }
    return {**document, **more}


def partition_document(*stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A way to place a model as the API shows it."""
    document = {
        "stages": list(stages),
        "throughput_per_s": 76.9,
        "latency_ms": 31.2,
        "bottleneck": "stage 1 on ascend-1 (13.0 ms)",
        "gap_percent": 0.0,
        "method": "exact",
    }
    return {**document, **more}


SINGLE = {"device": "ascend-1", "throughput_per_s": 49.0, "latency_ms": 20.4}


def plan_document(**more: Any) -> dict[str, Any]:
    """A plan of m:1 as it would be, in two stages, as the API shows it."""
    best = partition_document(stage_document(0, "jetson-1"), stage_document(1, "ascend-1"))
    document = {
        "model": "m",
        "version": "1",
        "objective": "throughput",
        "select": {},
        "shapes": {"x": [1, 3, 224, 224]},
        "segments": 8,
        "cuts": [
            {
                "segment": n,
                "after": f"/features/a/very/long/name/of/a/module/{n}/relu",
                "bytes": 76_800 + 1024 * abs(n - 4),
                "tensors": 1,
                "work": (n + 1) / 8,
                "weight_bytes": n << 20,
            }
            for n in range(7)
        ],
        "boards": [
            {
                "board": "jetson/Orin Nano",
                "devices": ["jetson-1", "jetson-2"],
                "basis": "measured",
                "memory_bytes": 4 << 30,
            },
            {
                "board": "ascend/Atlas 200I DK A2",
                "devices": ["ascend-1"],
                "basis": "estimated",
                "memory_bytes": 6 << 30,
            },
        ],
        "plan": best,
        "single": SINGLE,
        "others": [partition_document(stage_document(0, "ascend-1"), throughput_per_s=49.0)],
        "links": [
            {"from": "gateway", "to": "jetson-1", "bytes": 602_112, "ms": 6.0},
            {"from": "jetson-1", "to": "ascend-1", "bytes": 76_800, "ms": 1.77},
            {"from": "ascend-1", "to": "gateway", "bytes": 4_000, "ms": 1.0},
        ],
        "why": "2 stages: stage 1 on ascend-1 (13.0 ms) is the bottleneck.",
        "reason": "",
        "missing_bytes": 0,
    }
    return {**document, **more}


def active_document(**more: Any) -> dict[str, Any]:
    """The plan of deployment m, which runs, as the API shows it."""
    stages = [
        stage_document(
            n, *devices, parts=[{"device": device, "state": state} for device in devices]
        )
        for n, (devices, state) in enumerate(
            [(("jetson-1", "jetson-2"), "ready"), (("ascend-1",), "loading")]
        )
    ]
    document = {
        "name": "m",
        "model": "m",
        "version": "1",
        "objective": "throughput",
        "state": "loading",
        "reason": "",
        "since": "2026-01-01T00:00:00.000Z",
        "epoch": 3,
        "stages": stages,
        "links": [],
        "spares": [{"device": "ascend-1", "stages": [0]}],
        "fallbacks": [
            {
                "lost": "jetson-1",
                "epoch": 4,
                "devices": [["jetson-2"], ["ascend-1"]],
                "throughput_per_s": 70.0,
            }
        ],
        "predicted": {
            "throughput_per_s": 76.9,
            "latency_ms": 31.2,
            "bottleneck": "stage 1 on ascend-1 (13.0 ms)",
        },
        "single": SINGLE,
        "credits": 8,
        "compression": "fp16",
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
        partition = staticmethod(partition_document)
        stage = staticmethod(stage_document)
        plan = staticmethod(plan_document)
        active = staticmethod(active_document)
        on_npu = staticmethod(on_npu)
        on_cpu = staticmethod(on_cpu)

    return Documents
