"""The same through the real control plane: `shoal deployment create --shards auto`, and HTTP."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal_bench.failover.load import Load
from shoal_bench.figures import Figure, Table, Target, figure, number
from shoal_bench.netfleet import (
    Board,
    Network,
    Plane,
    broker,
    control_plane,
    start_agent,
    stop_all,
    wait_for,
)
from shoal_bench.pipeline.cases import SMALL_MIB
from shoal_bench.pipeline.models import LARGE, Model
from shoal_bench.processes import NotStartedError

MODELS = ("residual", "ppocr-rec", LARGE)
BOARDS = (
    Board("near-1", 8.0, SMALL_MIB, 100, 100),
    Board("near-2", 12.0, SMALL_MIB, 100, 100),
    Board("far-1", 10.0, SMALL_MIB, 20, 20),
    Board("near-3", 16.0, SMALL_MIB, 100, 100),
)
CLIENTS = 12
_READY_S = 240.0
_REFUSED_S = 10.0

Say = Callable[[str], None]


@dataclass(slots=True)
class Served:
    """One model: answers a second on one device (None where it fits none, and then why),
    sharded, and as the control plane's plan says."""

    model: str
    single: float | None
    refused: str
    sharded: float
    planned: float
    stages: str
    lost: int


@dataclass(slots=True)
class EndToEnd:
    """What the control plane's own plans reach."""

    served: list[Served] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def figures(self) -> list[Figure]:
        both = [s for s in self.served if s.single is not None]
        if not both:
            return []
        return [
            figure(
                f"`--shards auto` over HTTP, {', '.join(s.model for s in both)}",
                "answers/s",
                [s.sharded for s in both],
                peer="one device",
                peer_runs=[s.single for s in both if s.single is not None],
                more_is_better=True,
                target=Target(0.98, at_least=True),
            )
        ]

    def tables(self) -> list[Table]:
        rows = [
            (
                s.model,
                s.stages,
                number(s.planned),
                number(s.sharded),
                number(s.single) if s.single is not None else s.refused,
                str(s.lost),
            )
            for s in self.served
        ]
        rows += [(model, why, "-", "-", "-", "-") for model, why in self.failed.items()]
        columns = ("model", "stages", "planned", "executed", "on the best single device", "lost")
        title = (
            f"Through the control plane, `shoal deployment create --shards auto`, {CLIENTS} "
            "clients over HTTP, answers a second"
        )
        return [Table(title, columns, tuple(rows))]


def end_to_end(
    network: Network, models: dict[str, Model], folder: Path, seconds: float, say: Say
) -> EndToEnd:
    """Deploy each model on one device and sharded, and load it through the gateway."""
    folder.mkdir()
    found = EndToEnd()
    agents = []
    with broker(folder), control_plane(folder) as plane:
        try:
            agents = [start_agent(network, board, folder) for board in BOARDS]
            wait_for(lambda: _online(plane), _READY_S, "every board being online")
            for name in MODELS:
                try:
                    found.served.append(_serve(plane, models[name], seconds))
                except NotStartedError as error:
                    say(f"pipeline: {name} through the control plane: {error}")
                    found.failed[name] = str(error)[:300]
                    plane.shoal(
                        "deployment",
                        "delete",
                        name,
                    )
        finally:
            stop_all(agents)
    network.detach_all()
    return found


def _serve(plane: Plane, model: Model, seconds: float) -> Served:
    name = model.name
    plane.must("model", "push", str(model.path), "--name", name)
    single, refused = _single(plane, model, seconds)
    shapes = [f"{key}={'x'.join(map(str, shape))}" for key, shape in model.shapes.items()]
    hints = [part for shape in shapes for part in ("--shape", shape)]
    plane.must("deployment", "create", name, "--shards", "auto", *hints, "--no-wait")
    wait_for(lambda: _get(plane, f"plans/{name}").get("state") == "ready", _READY_S, "the plan")
    plan = _get(plane, f"plans/{name}")
    rate, lost = _rate(plane, model, seconds)
    plane.must(
        "deployment",
        "delete",
        name,
    )
    stages = " | ".join(
        f"{stage['first']}-{stage['last']} on {', '.join(stage['devices'])}"
        for stage in plan["stages"]
    )
    planned = float(plan["predicted"]["throughput_per_s"])
    return Served(name, single, refused, rate, planned, stages, lost)


def _single(plane: Plane, model: Model, seconds: float) -> tuple[float | None, str]:
    """Answers a second on the fastest device alone, or None and why not."""
    name = model.name
    fastest = min(BOARDS, key=lambda board: board.factor)
    plane.must("device", "label", fastest.name, "speed=fastest")
    plane.must("deployment", "create", name, "--select", "speed=fastest", "--no-wait")
    patience = _REFUSED_S if name == LARGE else _READY_S
    try:
        wait_for(
            lambda: _get(plane, f"deployments/{name}").get("state") == "ready", patience, "ready"
        )
        rate: float | None = _rate(plane, model, seconds)[0]
        refused = ""
    except NotStartedError:
        deployment = _get(plane, f"deployments/{name}")
        rate, refused = None, str(deployment.get("reason") or deployment.get("state"))
    plane.must(
        "deployment",
        "delete",
        name,
    )
    return rate, refused


def _rate(plane: Plane, model: Model, seconds: float) -> tuple[float, int]:
    """Answers a second once it flows, and how many requests were lost."""
    with Load(plane.port, model, CLIENTS) as load:
        wait_for(
            lambda: len(load.outcomes.answered) >= CLIENTS or bool(load.outcomes.lost),
            60,
            "answers",
        )
        since = time.monotonic()
        time.sleep(seconds)
        until = time.monotonic()
    if load.outcomes.lost and not load.outcomes.answered:
        raise NotStartedError(load.outcomes.lost[0])
    return load.outcomes.rate(since, until), len(load.outcomes.lost)


def _online(plane: Plane) -> bool:
    items = _get(plane, "devices").get("items", [])
    online = {item["id"] for item in items if item["condition"] == "online"}
    return online >= {board.name for board in BOARDS}


def _get(plane: Plane, path: str) -> dict[str, Any]:
    """A document of the API; empty where it has none."""
    try:
        with urllib.request.urlopen(f"{plane.url}/api/v1/{path}", timeout=10) as answer:
            document: dict[str, Any] = json.load(answer)
    except OSError:
        return {}
    return document
