"""The page in a real browser: what it says about a fleet, and when it does not know."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from support.loopback import serving
from support.processes import need

from shoal_controlplane.dashboard.routes import routes

HOSTILE = "<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Text by element id, and the tags there are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self._inside: list[str] = []
        self.texts: dict[str, str] = {}
        self.tags: list[str] = []
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        name = dict(attrs).get("id") or (tag if tag == "body" else "")
        self.attributes[name] = dict(attrs)
        if tag not in ("meta", "link", "img", "input", "br"):
            self._inside.append(name)

    def handle_endtag(self, tag: str) -> None:
        if self._inside:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        for name in set(self._inside):
            self.texts[name] = self.texts.get(name, "") + data


def device(name: str, condition: str = "online", **more: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    document = {
        "id": name,
        "condition": condition,
        "board": {"family": "jetson", "model": "Orin Nano", "soc": "T234", "simulated": True},
        "cores": 6,
        "memory_bytes": 8 << 30,
        "disk_free_bytes": 1 << 30,
        "accelerators": [],
        "runtimes": [],
        "toolkits": {},
        "power_mode": "",
        "labels": {},
        "notes": [],
        "agent_version": "0.1.0",
        "cordoned": False,
        "first_seen": now,
        "last_seen": now,
        "goal": 1,
        "goal_seen": 1,
        "telemetry": {
            "seq": 1,
            "uptime_s": 5.0,
            "cpu_load": 0.37,
            "memory_used_bytes": 1 << 30,
            "disk_free_bytes": 1 << 30,
            "temperature_c": None,
            "throttled": False,
            "power_w": None,
            "accelerator_load": None,
            "accelerator_memory_used_bytes": None,
            "models": {"m:1": [5, 0, 11]},
        },
        "replicas": [
            {
                "deployment": "m",
                "model": "m",
                "version": "1",
                "state": "ready",
                "reason": "",
                "providers": ["CPUExecutionProvider"],
                "memory_bytes": 1,
                "profile": None,
                "variant": "reference",
                "runtime": "onnxruntime 1.32.0 cpu",
                "placement": {"accelerated": 0.0, "proof": "graph", "nodes": {}},
                "golden_error": None,
                "compiled": "",
                "load_s": 0.25,
                "notes": [],
                "fallback": False,
            }
        ],
        "revision": 1,
    }
    return {**document, **more}


def fleet(
    devices: list[dict[str, Any]],
    readyz: tuple[int, str] = (200, "ready"),
    plans: tuple[dict[str, Any], ...] = (),
    targets: tuple[dict[str, Any], ...] = (),
    **deployed: Any,
) -> FastAPI:
    app = FastAPI()
    app.include_router(routes())
    first = devices[0]["replicas"][0]
    names = ("state", "reason", "providers", "variant", "placement", "notes", "fallback")
    placement = {"device": devices[0]["id"], **{name: first[name] for name in names}}
    deployment = {
        "name": "m",
        "model": "m",
        "version": "1",
        "replicas": 2,
        "all": False,
        "select": {},
        "slo_ms": None,
        "state": "degraded",
        "reason": "b: the device is offline",
        "wanted": 2,
        "ready": 1,
        "require_accelerator": False,
        "shards": "auto" if plans else None,
        "objective": "throughput",
        "shapes": {},
        "offload": [],
        "saturation": None,
        "placements": [placement],
        "created_at": datetime.now(UTC).isoformat(),
        "revision": 1,
        **deployed,
    }
    event = {
        "id": 7,
        "time": datetime.now(UTC).isoformat(),
        "kind": "device.online",
        "subject": "a",
        "message": f"a is online {HOSTILE}",
        "data": {},
    }
    lists = {
        "devices": devices,
        "deployments": [deployment],
        "models": [],
        "plans": list(plans),
        "targets": list(targets),
    }

    @app.get("/api/v1/events")
    async def events(request: Request) -> Response:
        if "text/event-stream" not in request.headers["accept"]:
            return JSONResponse({"items": [event], "next_cursor": None})
        later = json.dumps({**event, "id": 8, "kind": "device.changed", "message": "a changed"})
        frames = [b": heartbeat\n\n", f"id: 8\nevent: device.changed\ndata: {later}\n\n".encode()]
        return StreamingResponse(iter(frames), media_type="text/event-stream")

    @app.get("/api/v1/{noun}")
    async def items(noun: str) -> dict[str, Any]:
        return {"items": lists[noun], "next_cursor": None}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        return JSONResponse({"status": readyz[1]}, readyz[0])

    return app


def stage(index: int, *parts: tuple[str, str], **more: Any) -> dict[str, Any]:
    document = {
        "index": index,
        "first": 4 * index,
        "last": 4 * index + 4,
        "segments": f"conv{index} … relu{index}",
        "devices": [device for device, _ in parts],
        "board": "jetson/Orin Nano",
        "memory_bytes": 45 << 20,
        "compute_ms": 12.0 + index,
        "measured": True,
        "in_bytes": 602_112,
        "out_bytes": 76_800,
        "parts": [{"device": device, "state": state} for device, state in parts],
    }
    return {**document, **more}


def plan(*stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The plan of deployment m."""
    document = {
        "name": "m",
        "model": "m",
        "version": "1",
        "objective": "throughput",
        "state": "ready",
        "reason": "",
        "since": datetime.now(UTC).isoformat(),
        "epoch": 3,
        "stages": list(stages),
        "links": [],
        "spares": [{"device": "b", "stages": [0]}],
        "fallbacks": [
            {"lost": "a", "epoch": 4, "devices": [["b"], ["b"]], "throughput_per_s": 40.0}
        ],
        "predicted": {
            "throughput_per_s": 83.1,
            "latency_ms": 31.2,
            "bottleneck": "stage 0 on a (12.0 ms)",
        },
        "single": {"device": "b", "throughput_per_s": 49.0, "latency_ms": 20.4},
        "credits": 8,
        "compression": "",
    }
    return {**document, **more}


def target(name: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    document = {
        "name": name,
        "kind": "kserve",
        "state": state,
        "reason": "",
        "where": "Kubernetes v1.31.2 at https://10.0.0.4:443, namespace shoal",
        "facts": {"version": "v1.31.2"},
        "options": {"namespace": "shoal"},
        "credential": "file:/etc/shoal/aks",
        "price_per_replica_hour": 0.9,
        "price_per_request": 0.0,
        "cap_per_hour": 2.5,
        "left": 1.5,
        "spent": 3.25,
        "spent_last_hour": 0.75,
        "max_replicas": 3,
        "ready": 2,
        "deployments": ["m"],
        "models": [on_target("m")],
        "created_at": datetime.now(UTC).isoformat(),
        "revision": 1,
    }
    return {**document, **more}


def on_target(model: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    document = {
        "model": model,
        "version": "1",
        "state": state,
        "reason": "2 of 3 ready",
        "ready": 2,
        "wanted": 3,
        "pinned": None,
        "placed": False,
        "deployments": ["m"],
        "mean_ms": 41.0,
        "p95_ms": 80.5,
        "concurrent": 4.0,
        "items_per_s": 60.0,
        "price_per_request": 0.000004,
        "in_flight": 1,
        "requests": 1204,
        "items": 1204,
        "failures": 3,
    }
    return {**document, **more}


def saturation(level: str, **more: Any) -> dict[str, Any]:
    document = {
        "level": level,
        "since": datetime.now(UTC).isoformat(),
        "rho": 1.31,
        "items_per_s": 410.0,
        "edge": 0.75,
        "spilled": {"aks-west": 0.22},
        "shed": 0.03,
        "sentence": f"{level} since 12:03:10: rho 1.31; spilling 22 % to aks-west, shedding 3 %",
    }
    return {**document, **more}


@pytest.fixture(scope="module")
def chromium() -> str:
    return need("chromium", "apt install chromium")


@pytest.fixture
def show(chromium: str, tmp_path: Path) -> Callable[..., Page]:
    """The page over an application, after some seconds of the browser's own time."""

    def run(app: FastAPI, fragment: str = "", *, awaited: str = "") -> Page:
        with serving(app) as url:
            page = dump(f"{url}/{fragment}", 2500)
            # The browser's time passes faster than a busy machine answers.
            for budget_ms in (5000, 10_000):
                if awaited not in page:
                    page = dump(f"{url}/{fragment}", budget_ms)
        return Page(page)

    def dump(url: str, budget_ms: int) -> str:
        done = subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--virtual-time-budget={budget_ms}",
                "--dump-dom",
                url,
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        return done.stdout

    return run


def test_a_fleet_is_shown_as_it_is(show):
    page = show(fleet([device("a"), device("b", "offline")]), awaited="a changed")
    assert page.texts["pulse-text"] == "Up to date"
    assert "hidden" in page.attributes["banner"]
    rows = page.texts["device-rows"]
    assert "Orin Nano" in rows and "simulated" in rows
    # Load and queue of a device that is away are no news, and its model does not serve.
    assert rows.count("37 %") == 1
    assert rows.count("11") == 1
    assert rows.count("m:1offline") == 1
    assert "1 online, 1 offline" in page.texts["overview"]
    assert "1 of 2" in page.texts["deployment-rows"]
    assert "b: the device is offline" in page.texts["deployment-rows"]
    assert page.texts["event-rows"].index("a changed") < page.texts["event-rows"].index(
        "a is online"
    )


def test_where_a_model_runs_and_that_it_fell_back_is_in_plain_sight(show):
    base = device("a")
    gpu = {"kind": "gpu", "name": "Orin", "memory_bytes": 0, "precisions": ["fp16", "int8"],
           "compute_capability": "8.7", "transfer_bytes_per_s": None}  # fmt: skip
    fallen = {
        **base["replicas"][0],
        "fallback": True,
        "notes": ["cann: libascendcl.so not found: install CANN 8.x"],
    }
    proven = {
        **base["replicas"][0],
        "model": "n",
        "variant": "int8",
        "placement": {
            "accelerated": 90 / 97,
            "proof": "graph",
            "nodes": {"QNNExecutionProvider": 90, "CPUExecutionProvider": 7},
        },
        "golden_error": 0.0032,
        "compiled": "shared",
    }
    listed = {
        **base["replicas"][0],
        "model": "o",
        "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "placement": {"accelerated": 1.0, "proof": "listed", "nodes": {}},
    }
    shown = {
        **base,
        "accelerators": [gpu],
        "toolkits": {"cuda": "12.6"},
        "power_mode": "MAXN",
        "replicas": [fallen, proven, listed],
    }
    page = show(fleet([shown]), "#device/a", awaited="install CANN")
    assert "m:1on the CPU" in page.texts["device-rows"]
    assert "aon the CPU" in page.texts["deployment-rows"]
    drawer = page.texts["drawer-body"]
    assert "It runs on the CPU although the device has an accelerator." in drawer
    assert drawer.count("although the device has") == 1
    assert "cann: libascendcl.so not found: install CANN 8.x" in drawer
    assert "CPU only" in drawer and "CUDA, not proven" in drawer
    assert "92 % QNN (90 of 97 nodes)" in drawer and "0.0032" in drawer
    assert "Orin (gpu): fp16, int8, compute capability 8.7" in drawer
    assert "cuda 12.6" in drawer and "MAXN" in drawer


def test_a_sharded_deployment_is_shown_as_its_pipeline(show):
    stages = (stage(0, ("a", "ready"), ("c", "loading")), stage(1, ("b", "ready")))
    devices = [device("a"), device("b"), device("c")]
    rows = show(fleet(devices, plans=(plan(*stages),)), awaited="epoch 3").texts["deployment-rows"]
    assert "a12.0 mscloading→b13.0 ms" in rows
    assert "2 stages · epoch 3 · 83 answers a second predicted · 1.7x b alone" in rows
    assert "ready to lose a · b holds stage 0 as well" in rows


def test_a_plan_that_is_not_made_yet_is_shown_with_its_state(show):
    unmade = plan(state="measuring", epoch=0, predicted=None, single=None, fallbacks=[], spares=[])
    app = fleet([device("a")], plans=({**unmade, "name": "other"}, unmade))
    page = show(app, awaited="no stages yet")
    assert "measuring no stages yet" in page.texts["deployment-rows"]


def test_targets_are_shown_with_what_is_on_them_and_what_they_cost(show):
    cold = on_target("n", "cold", ready=0, wanted=0, reason="", mean_ms=None, p95_ms=None)
    fixed = on_target("o", "warming", ready=0, wanted=1, pinned=1, p95_ms=200.0)
    targets = (
        target("aks-west", models=[on_target("m"), cold, fixed]),
        target("azure", "over_budget", reason="its budget is spent", where="", models=[], ready=0),
        target("ray", "connecting", cap_per_hour=None, spent_last_hour=0.0, models=[], ready=0),
        target("tpu", "failed", reason="credentials are refused: 401", cap_per_hour=0.0),
    )
    page = show(fleet([device("a")], targets=targets), awaited="aks-west")
    rows = page.texts["target-rows"]
    assert "aks-westKubernetes v1.31.2 at https://10.0.0.4:443, namespace shoalkserveready" in rows
    assert "m:12 of 3n:1coldo:1warming, 0 of 1, fixed" in rows
    assert "2 of 4" in rows and "80.5 ms to 200 ms" in rows and "0.75 of 2.50" in rows
    assert "over budget" in rows and "its budget is spent" in rows
    assert "0, no cap" in rows and "credentials are refused: 401" in rows
    assert "hidden" in page.attributes["targets-empty"]


def test_without_targets_the_page_says_what_that_means(show):
    page = show(fleet([device("a")]), awaited="shoal target add")
    assert "requests are refused" in page.texts["targets-empty"]
    assert page.texts.get("target-rows", "") == ""


def test_how_full_the_devices_of_a_deployment_are_is_said_where_it_matters(show):
    full = fleet([device("a")], offload=["aks-west"], saturation=saturation("saturated"))
    rows = show(full, awaited="spilling").texts["deployment-rows"]
    assert "degradedsaturated" in rows
    assert "b: the device is offlinesaturated since 12:03:10: rho 1.31; spilling 22 %" in rows
    assert "may offload to aks-west" in rows
    calm = saturation("calm", spilled={}, shed=0.0, edge=1.0)
    rows = show(fleet([device("a")], saturation=calm), awaited="offline").texts["deployment-rows"]
    assert "rho" not in rows and "calm" not in rows


def test_what_devices_say_never_becomes_markup(show):
    hostile = plan(stage(0, (HOSTILE, HOSTILE), segments=HOSTILE))
    devices = [device("a", labels={HOSTILE: HOSTILE}, notes=[HOSTILE])]
    targets = (target("aks", HOSTILE, where=HOSTILE, reason=HOSTILE, models=[on_target(HOSTILE)]),)
    app = fleet(devices, plans=(hostile,), targets=targets, saturation=saturation(HOSTILE))
    page = show(app, "#device/a")
    assert page.texts["deployment-rows"].count(HOSTILE) == 4
    assert page.texts["target-rows"].count(HOSTILE) == 4
    assert page.tags.count("img") == 1  # the page's own
    assert f"{HOSTILE}={HOSTILE}" in page.texts["device-rows"]
    assert HOSTILE in page.texts["event-rows"]
    assert HOSTILE in page.texts["drawer-body"]
    assert page.texts["drawer-title"] == "a"
    assert "open" in page.attributes["drawer"]


def test_an_error_of_the_control_plane_is_told_and_an_unknown_fleet_is_not_called_empty(show):
    app = FastAPI()
    app.include_router(routes())

    @app.get("/{path:path}")
    async def broken(path: str) -> JSONResponse:
        return JSONResponse({"detail": "The database is away."}, 500)

    page = show(app)
    assert "The database is away." in page.texts["banner-text"]
    assert "hidden" not in page.attributes["banner"]
    assert page.texts["pulse-text"] == "Out of date"
    assert page.texts["devices-empty"] == "Not known"
    assert page.texts.get("overview", "") == ""


def test_a_control_plane_without_a_broker_is_not_called_up_to_date(show):
    page = show(fleet([device("a")], (503, "no session with the broker")))
    assert page.texts["pulse-text"] == "Not ready"
    assert "no session with the broker" in page.texts["banner-text"]


def test_a_fleet_that_can_no_longer_be_read_is_marked_as_old(show):
    app = fleet([device("a")])
    asked: list[str] = []

    @app.middleware("http")
    async def lose(request: Request, call_next: Any) -> Response:
        if request.url.path == "/api/v1/devices":
            asked.append(request.url.path)
            if len(asked) > 1:
                return Response("lost", 502)
        return await call_next(request)

    page = show(app)  # The event of the stream makes it ask again.
    assert len(asked) > 1
    assert "status 502" in page.texts["banner-text"]
    assert "You see the fleet as it was at" in page.texts["banner-text"]
    assert "Orin Nano" in page.texts["device-rows"]
    assert page.attributes["body"]["class"] == "stale"
