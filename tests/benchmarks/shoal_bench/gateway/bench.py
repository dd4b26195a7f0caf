"""The benchmark `gateway`: the whole way of a request, beside other model servers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal_bench.figures import Figure, Result, Table, Target, figure, number
from shoal_bench.gateway.measure import FailedError, Measured, bare_ms, measure, serves
from shoal_bench.gateway.servers import NotInstalledError, Server, peers
from shoal_bench.gateway.shoal import Shoal
from shoal_bench.gateway.workload import (
    EFFICIENTNET,
    SMALL,
    Workload,
    make_workloads,
    prepare_models,
)
from shoal_bench.processes import NotStartedError

CLIENTS = (1, 16)
SHOAL, ON_MOSQUITTO, RAY = "Shoal", "Shoal on Mosquitto", "Ray Serve"
BUILD = Path(__file__).resolve().parents[4] / "build"
ADDED_MS, BEST_PEER, RAY_SERVE = 0.8, 1.5, 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long; the whole must end within `limit_s`."""

    runs: int
    warm_up_s: float
    seconds: float
    limit_s: float


FULL = Plan(runs=3, warm_up_s=0.4, seconds=1.8, limit_s=570.0)
QUICK = Plan(runs=1, warm_up_s=0.3, seconds=0.7, limit_s=120.0)

Cell = tuple[str, int]
"""A workload's name and a number of clients."""

Run = dict[Cell, Measured]
"""One start of one server."""


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """Measure everything, the servers in turn, each started anew in every round."""
    result = Result("gateway", quick=quick)
    models = prepare_models(BUILD / "bench" / "models")
    workloads = make_workloads(models, (SMALL, EFFICIENTNET))
    servers: list[Server] = []
    versions = []
    candidates: list[Server] = [
        Shoal(embedded=True),
        Shoal(embedded=False),
        *peers(BUILD / "bench-envs"),
    ]
    for server in candidates:
        say(f"gateway: preparing {server.name}")
        try:
            versions.append(server.prepare())
            servers.append(server)
        except NotInstalledError as error:
            result.notes.append(f"Left out, because it cannot be installed here: {error}.")
    plan = QUICK if quick else FULL
    rounds, bare = measure_rounds(servers, workloads, models, plan, result.notes, say)
    result.notes[:0] = _notes(plan, versions, len(rounds))
    add_findings(result, rounds, bare, workloads)
    return result


def measure_rounds(
    servers: Sequence[Server],
    workloads: Sequence[Workload],
    models: Mapping[str, Path],
    plan: Plan,
    notes: list[str],
    say: Callable[[str], None],
) -> tuple[list[dict[str, Run]], dict[str, list[float]]]:
    """Rounds of runs by server name, and the bare calls' medians in ms by model."""
    rounds: list[dict[str, Run]] = []
    bare: dict[str, list[float]] = {name: [] for name in models}
    until = time.monotonic() + plan.limit_s
    longest = 0.0
    for number_ in range(plan.runs):
        start = time.monotonic()
        if start + longest > until:
            notes.append(f"Cut short after {number_} of {plan.runs} rounds, for lack of time.")
            break
        for name, path in models.items():
            bare[name].append(bare_ms(path, plan.seconds))
        runs: dict[str, Run] = {}
        # Each round in another order, so that no server always follows the same one.
        for server in (*servers[number_ % len(servers) :], *servers[: number_ % len(servers)]):
            say(f"gateway: round {number_ + 1} of {plan.runs}, {server.name}")
            try:
                runs[server.name] = _run_server(server, workloads, models, plan, notes)
            except NotStartedError as error:
                notes.append(f"{server.name} did not start in round {number_ + 1}: {error}.")
        rounds.append(runs)
        longest = max(longest, time.monotonic() - start)
    return rounds, bare


def _run_server(
    server: Server,
    workloads: Sequence[Workload],
    models: Mapping[str, Path],
    plan: Plan,
    notes: list[str],
) -> Run:
    spoken = [workload for workload in workloads if server.binary or not workload.binary]
    logs = BUILD / "bench" / "logs"
    running = server.start(models, logs, lambda port: serves(spoken, port))
    found: Run = {}
    try:
        for workload in spoken:
            for clients in CLIENTS:
                try:
                    found[workload.name, clients] = measure(
                        workload, running.port, clients, plan.warm_up_s, plan.seconds
                    )
                except FailedError as error:
                    notes.append(f"{server.name}, {workload.name}, {clients} clients: {error}.")
    finally:
        running.stop()
    return found


def add_findings(
    result: Result,
    rounds: Sequence[dict[str, Run]],
    bare: Mapping[str, Sequence[float]],
    workloads: Sequence[Workload],
) -> None:
    """Figures and tables from the rounds. A server counts where it has every run of a cell."""
    names = list(dict.fromkeys(name for runs in rounds for name in runs))
    for workload in workloads:
        for clients in CLIENTS:
            cell = (workload.name, clients)
            found = {
                name: [runs[name][cell] for runs in rounds if cell in runs.get(name, {})]
                for name in names
            }
            found = {name: runs for name, runs in found.items() if len(runs) == len(rounds) > 0}
            for own in (name for name in (SHOAL, ON_MOSQUITTO) if name in found):
                result.figures += _figures(workload, clients, own, found, bare)
            result.tables.append(_table(f"{workload.name}, {clients} client(s)", found))
    columns = ("model", "p50 ms")
    rows = tuple((name, number(statistics.median(times))) for name, times in bare.items() if times)
    result.tables.append(Table("A bare ONNX Runtime call", columns, rows))


def _figures(
    workload: Workload,
    clients: int,
    own: str,
    found: Mapping[str, Sequence[Measured]],
    bare: Mapping[str, Sequence[float]],
) -> list[Figure]:
    """Shoal's rate, on the broker that `own` names, beside the best peer's and Ray Serve's, and
    what it adds to a bare call."""
    name = f"{workload.name}, {clients} client(s)"
    if own == ON_MOSQUITTO:
        name += ", on Mosquitto"
    peers_ = [name for name in found if name not in (SHOAL, ON_MOSQUITTO)]
    rates = {name: [run.per_second for run in runs] for name, runs in found.items()}
    best = max(peers_, key=lambda name: statistics.median(rates[name]), default=None)
    goal = workload.model == SMALL and clients == max(CLIENTS)
    against = [(best, Target(BEST_PEER, at_least=True) if goal else None)] if best else []
    if goal and RAY in rates:
        against.append((RAY, Target(RAY_SERVE, at_least=True)))
    figures = [
        figure(
            name,
            "/s",
            rates[own],
            peer=peer,
            peer_runs=rates[peer],
            more_is_better=True,
            target=target,
        )
        for peer, target in against
    ]
    if workload.model == SMALL and clients == 1:
        added = {
            name: [run.p50_ms - base for run, base in zip(runs, bare[SMALL], strict=True)]
            for name, runs in found.items()
        }
        best = min(peers_, key=lambda name: statistics.median(added[name]), default=None)
        figures.append(
            figure(
                f"p50 added to a bare call, {name}",
                "ms",
                added[own],
                peer=best,
                peer_runs=added[best] if best else (),
                target=Target(ADDED_MS, of_ratio=False),
            )
        )
    return figures


def _table(title: str, found: Mapping[str, Sequence[Measured]]) -> Table:
    rows = []
    for name, runs in found.items():
        rates = [run.per_second for run in runs]
        rows.append(
            (
                name,
                number(statistics.median(rates)),
                number(min(rates)),
                number(statistics.median(run.p50_ms for run in runs)),
                number(statistics.median(run.p99_ms for run in runs)),
                number(max(run.p99_ms for run in runs)),
            )
        )
    columns = ("server", "answers/s", "worst run", "p50 ms", "p99 ms", "worst p99")
    return Table(title, columns, tuple(rows))


def _notes(plan: Plan, versions: Sequence[str], rounds: int) -> list[str]:
    return [
        f"{rounds} round(s); in each every server is started anew, warmed up for "
        f"{plan.warm_up_s:g} s and measured for {plan.seconds:g} s in each place, one after the "
        "other in a changing order. Ratios are those within a round.",
        f"Compared: {', '.join(versions)}. All serve the same ONNX files with the same version "
        "and session options of ONNX Runtime (threads for every core, no spinning), one worker, "
        "without access logs, on the cores that the client uses too. LitServe and Ray Serve have "
        "a small handler that reads and writes the same bodies; MLServer speaks no binary tensors "
        "over HTTP.",
        "The client is one process with keep-alive connections in a closed loop. Eight different "
        "bodies take turns; answers given during the measurement must equal ONNX Runtime's within "
        "1e-5.",
        "Shoal's requests go over HTTP to the control plane, over the MQTT broker to an agent in "
        "a process of its own, and back the same way. 'Shoal' is `shoal serve` with its embedded "
        "broker. Its agent batches what waits together. MLServer's and LitServe's own batching "
        "are off: tried with the small model, they made both slower at one client and neither "
        "clearly faster at 16.",
    ]
