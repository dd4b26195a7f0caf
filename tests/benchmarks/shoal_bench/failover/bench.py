"""The benchmark `failover`: kill -9 of a device that computes a stage, under load."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal_bench.failover.load import DRAIN_S, Load
from shoal_bench.figures import Result, Table, Target, figure, number
from shoal_bench.netfleet import (
    Board,
    Network,
    Plane,
    broker,
    control_plane,
    start_agent,
    stop_all,
    wait_for,
    workplace,
)
from shoal_bench.pipeline.models import Model, prepare_models
from shoal_bench.processes import NotStartedError, Service

MODEL = "residual"
CLIENTS = 8
WITH_PLAN_MS = 500.0
WITHOUT_PLAN_MS = 2000.0

_FACTOR = 6.0
_BOARDS = 3
_MBIT = 100.0
_WARM_S = 3.0
_AFTER_S = 6.0
_READY_S = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Boards with memory for spare stages, or for one stage each and no more."""

    name: str
    memory_mib: int
    limit_ms: float
    precomputed: bool


SCENARIOS = (
    Scenario("with the precomputed plan", 512, WITH_PLAN_MS, precomputed=True),
    Scenario("without one", 80, WITHOUT_PLAN_MS, precomputed=False),
)


@dataclass(slots=True)
class Kill:
    """One kill under load."""

    device: str
    stage: int
    back_ms: float
    silence_ms: float
    answered: int
    lost: list[str] = field(default_factory=list)
    before: float = 0.0
    after: float = 0.0
    slowest_ms: float = 0.0


def run(*, quick: bool = False, say: Say = print) -> Result:
    """Kill devices again and again: about 8 minutes, 2 if `quick`. Raises `NoNetworkError`."""
    result = Result("failover", quick=quick)
    rounds = 2 if quick else 8
    with Network() as network, workplace() as folder:
        model = prepare_models(folder / "models")[MODEL]
        for scenario in SCENARIOS:
            kills = []
            for number in range(rounds):
                say(f"failover: {scenario.name}, kill {number + 1} of {rounds}")
                place = folder / f"{scenario.memory_mib}-{number}"
                place.mkdir()
                kills.append(_one(network, scenario, model, place, number))
            _add(result, scenario, kills)
    result.notes += _notes()
    return result


def _one(network: Network, scenario: Scenario, model: Model, folder: Path, number: int) -> Kill:
    """A fleet and a control plane from scratch, and one kill."""
    boards = [
        Board(f"board-{n + 1}", _FACTOR, scenario.memory_mib, _MBIT, _MBIT) for n in range(_BOARDS)
    ]
    agents: dict[str, Service] = {}
    with broker(folder), control_plane(folder) as plane:
        try:
            for board in boards:
                agents[board.name] = start_agent(network, board, folder)
            _wait_online(plane, boards)
            plane.must("model", "push", str(model.path), "--name", MODEL)
            plane.must("deployment", "create", MODEL, "--shards", "2", "--no-wait")
            victim, stage = _victim(plane, scenario, number)
            return _kill(plane, model, agents[victim], victim, stage)
        finally:
            stop_all(list(agents.values()))
            network.detach_all()


def _kill(plane: Plane, model: Model, agent: Service, victim: str, stage: int) -> Kill:
    with Load(plane.port, model, CLIENTS) as load:
        began = time.monotonic()
        time.sleep(_WARM_S)
        agent.process.kill()
        killed = time.monotonic()
        time.sleep(_AFTER_S)
        ended = time.monotonic()
    outcomes = load.outcomes
    back_s = outcomes.back_after(killed)
    return Kill(
        device=victim,
        stage=stage,
        back_ms=back_s * 1e3,
        silence_ms=outcomes.longest_silence(killed) * 1e3,
        answered=len(outcomes.answered),
        lost=outcomes.lost,
        before=outcomes.rate(began + _WARM_S / 3, killed),
        after=outcomes.rate(killed + back_s, ended),
        slowest_ms=max(outcomes.took_s, default=0.0) * 1e3,
    )


def _victim(plane: Plane, scenario: Scenario, number: int) -> tuple[str, int]:
    """A device of the plan that runs, first and last stage by turns, for whose loss a fallback is
    ready, or none, as the scenario wants. Waits until there is one."""
    found: list[tuple[str, int]] = []

    def ready() -> bool:
        plan = _plan(plane)
        if plan.get("state") != "ready":
            return False
        lost = {fallback["lost"] for fallback in plan["fallbacks"]}
        found[:] = [
            (device, stage["index"])
            for stage in plan["stages"]
            for device in stage["devices"]
            if (device in lost) == scenario.precomputed
        ]
        return bool(found)

    wait_for(ready, _READY_S, f"a plan {scenario.name}")
    # Fallbacks are loaded behind the plan that runs.
    time.sleep(_WARM_S)
    wait_for(ready, _READY_S, f"a plan {scenario.name}")
    found.sort(key=lambda pair: pair[1], reverse=number % 2 == 1)
    return found[0]


def _plan(plane: Plane) -> Mapping[str, Any]:
    """The plan that runs, as the API shows it; empty while there is none."""
    try:
        with urllib.request.urlopen(f"{plane.url}/api/v1/plans/{MODEL}", timeout=10) as answer:
            plan: Mapping[str, Any] = json.load(answer)
    except OSError:
        return {}
    return plan


def _wait_online(plane: Plane, boards: list[Board]) -> None:
    names = {board.name for board in boards}

    def online() -> bool:
        try:
            with urllib.request.urlopen(f"{plane.url}/api/v1/devices", timeout=10) as answer:
                items = json.load(answer)["items"]
        except OSError:
            return False
        return names <= {item["id"] for item in items if item["condition"] == "online"}

    wait_for(online, _READY_S, "every board being online")


def _add(result: Result, scenario: Scenario, kills: list[Kill]) -> None:
    if not kills:
        raise NotStartedError(f"{scenario.name}: nothing was killed")
    result.figures += [
        figure(
            f"answers flow again, {scenario.name}",
            "ms",
            [kill.back_ms for kill in kills],
            target=Target(scenario.limit_ms, of_ratio=False),
        ),
        figure(
            f"requests lost, {scenario.name}",
            "",
            [float(sum(len(kill.lost) for kill in kills))],
            target=Target(0, of_ratio=False),
        ),
    ]
    rows = tuple(
        (
            kill.device,
            str(kill.stage),
            number(kill.back_ms),
            number(kill.silence_ms),
            number(kill.slowest_ms),
            str(kill.answered),
            str(len(kill.lost)) + (f" ({kill.lost[0][:80]})" if kill.lost else ""),
            number(kill.before),
            number(kill.after),
        )
        for kill in kills
    )
    columns = (
        "killed",
        "stage",
        "back after ms",
        "silence ms",
        "slowest answer ms",
        "answered",
        "lost",
    )
    title = f"Each kill {scenario.name}"
    result.tables.append(Table(title, (*columns, "answers/s before", "after"), rows))


def _notes() -> list[str]:
    memory = " and ".join(f"{s.memory_mib} MiB ({s.name})" for s in SCENARIOS)
    return [
        f"{_BOARDS} boards ({_FACTOR:g} times slower than a thread of this machine, links of "
        f"{_MBIT:g} Mbit/s), a real agent each in a network namespace of its own; `shoal serve` "
        f"and Mosquitto; {MODEL} deployed with `--shards 2`. {CLIENTS} clients ask over HTTP, one "
        f"request after the other, for {_WARM_S:g} s before the kill and {_AFTER_S:g} s after it.",
        "Killed with SIGKILL is the agent's process, first and last stage by turns; time runs from "
        "the kill to the end of the longest silence at the clients that began within "
        f"{DRAIN_S:g} s; beside it stands the longest silence whenever it began. A request is "
        "lost if it was not answered with 200 and the whole model's outputs. Every kill has a "
        "fleet and a control plane of its own.",
        f"Boards have {memory}: in the latter each board has room for one stage, so that for a "
        "loss that no spare stage covers another board fetches, loads and measures the stage.",
    ]
