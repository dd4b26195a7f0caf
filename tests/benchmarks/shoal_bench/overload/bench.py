"""The benchmark `overload`: goodput where more comes than the devices can do."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from shoal_bench.figures import Result, Table, Target, figure, number
from shoal_bench.overload.gateway import SimulatedGateway
from shoal_bench.overload.refusal import refusal_ms
from shoal_bench.router.bench import percentile
from shoal_bench.router.policies import JoinShortestQueue, PowerOfTwo
from shoal_bench.router.scenario import (
    FLEET_MS,
    PHASE_MS,
    SLOW_FACTOR,
    SLOW_SHARE,
    Scenario,
    draw,
    effective_load,
)
from shoal_bench.router.simulation import HOP_MS, WARM_UP_SHARE, Policy, Simulation
from shoal_controlplane.gateway.admission import Priority, Way

LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
GOAL_LOAD = 3.0
SLO_MS = 100.0
SECONDS = 4.0
MIX = {Priority.INTERACTIVE: 0.1, Priority.STANDARD: 0.6, Priority.BULK: 0.3}
CLIENTS = {"greedy": 0.8, "modest": 0.15, "small": 0.05}

SHOAL = "Shoal"
PEERS: dict[str, tuple[type[PowerOfTwo] | type[JoinShortestQueue], float]] = {
    "power of two": (PowerOfTwo, 3600e3),
    "JSQ": (JoinShortestQueue, 3600e3),
    "power of two, devices drop what is late": (PowerOfTwo, SLO_MS),
    "JSQ, devices drop what is late": (JoinShortestQueue, SLO_MS),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation; `load` is relative to what slow phases leave of the capacity."""

    policy: str
    load: float
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answers within the SLO a second, and the 99th percentile in ms of what was answered."""

    goodput: float
    p99: float
    refused: float


def _scenario(load: float, seed: int, seconds: float) -> Scenario:
    nominal = load / effective_load(1.0)
    rate = nominal * sum(1e3 / ms for ms in FLEET_MS)
    return draw(nominal, seed, int(rate * seconds))


def run_job(job: Job) -> Outcome:
    """Run one simulation; the same job has the same outcome."""
    scenario = _scenario(job.load, job.seed, job.seconds)
    if job.policy == SHOAL:
        simulation = Simulation(scenario)
        gateway = SimulatedGateway(simulation, SLO_MS, job.seed)
        gateway.watch(scenario.arrivals[-1])
        return _outcome(simulation.run([gateway]), scenario)
    make, deadline_ms = PEERS[job.policy]
    simulation = Simulation(scenario, deadline_ms=deadline_ms)
    policy: Policy = make(simulation.devices, random.Random(f"{job.seed}/peer"))
    return _outcome(simulation.run([policy]), scenario)


def _outcome(sojourn: Sequence[float], scenario: Scenario) -> Outcome:
    seconds = (scenario.arrivals[-1] - scenario.arrivals[-len(sojourn)]) / 1e3
    answered = sorted(ms for ms in sojourn if ms < 3600e3)
    good = sum(ms <= SLO_MS for ms in answered)
    return Outcome(good / seconds, percentile(answered, 0.99), 1 - len(answered) / len(sojourn))


def served_shares(seed: int, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """At the goal's load: the share of its requests that each priority, and, in a second run, each
    client had admitted."""
    scenario = _scenario(GOAL_LOAD, seed, seconds)
    rng = random.Random(f"{seed}/who")
    count = len(scenario.arrivals)
    ranks = rng.choices(list(MIX), weights=list(MIX.values()), k=count)
    names = rng.choices(list(CLIENTS), weights=list(CLIENTS.values()), k=count)
    first, second = Simulation(scenario), Simulation(scenario)
    mixed = SimulatedGateway(first, SLO_MS, seed, priorities=ranks)
    shared = SimulatedGateway(second, SLO_MS, seed, clients=names)
    for simulation, gateway in ((first, mixed), (second, shared)):
        gateway.watch(scenario.arrivals[-1])
        simulation.run([gateway])
    return (
        _admitted([rank.name.lower() for rank in ranks], mixed.taken.way),
        _admitted(names, shared.taken.way),
    )


def _admitted(groups: Sequence[str], ways: Sequence[Way]) -> dict[str, float]:
    asked: dict[str, int] = {}
    taken: dict[str, int] = {}
    for group, way in list(zip(groups, ways, strict=True))[int(WARM_UP_SHARE * len(ways)) :]:
        asked[group] = asked.get(group, 0) + 1
        taken[group] = taken.get(group, 0) + (way is Way.EDGE)
    return {group: taken[group] / count for group, count in asked.items()}


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """Simulate everything, then measure refusals: about three minutes on two idle cores, half a
    minute if `quick`."""
    seeds, seconds = (2, 2.0) if quick else (5, SECONDS)
    result = Result("overload", quick=quick, notes=_notes(seeds, seconds))
    found: dict[str, dict[float, list[Outcome]]] = {}
    with ProcessPoolExecutor() as pool:
        for policy in (SHOAL, *PEERS):
            say(f"overload: {policy}")
            jobs = [Job(policy, load, seed, seconds) for load in LOADS for seed in range(seeds)]
            outcomes = list(pool.map(run_job, jobs))
            found[policy] = {
                load: outcomes[i * seeds : (i + 1) * seeds] for i, load in enumerate(LOADS)
            }
        say("overload: priorities and clients")
        shares = list(pool.map(served_shares, range(seeds), [seconds] * seeds))
    _add(result, found)
    _add_shares(result, [first for first, _ in shares], "Admitted at load 3 by priority", MIX)
    _add_shares(result, [second for _, second in shares], "Admitted at load 3 by client", CLIENTS)
    say("overload: refusals through the HTTP application")
    times = sorted(refusal_ms(300 if quick else 2000))
    result.figures.append(
        figure(
            "a refusal with a picture of 602 kB, p99",
            "ms",
            [percentile(times, 0.99)],
            target=Target(5.0, of_ratio=False),
        )
    )
    row = tuple(number(percentile(times, share)) for share in (0.5, 0.99, 1.0))
    title = "Refusal through the HTTP application, real time"
    result.tables.append(Table(title, ("median ms", "p99 ms", "most ms"), (row,)))
    return result


def _retained(found: dict[float, list[Outcome]]) -> list[float]:
    """Goodput at the goal's load over the best at any load, seed by seed, in percent."""
    seeds = range(len(found[GOAL_LOAD]))
    best = [max(outcomes[seed].goodput for outcomes in found.values()) for seed in seeds]
    return [100 * found[GOAL_LOAD][seed].goodput / best[seed] for seed in seeds]


def _add(result: Result, found: dict[str, dict[float, list[Outcome]]]) -> None:
    retained = {policy: _retained(found[policy]) for policy in found}
    peer = max(PEERS, key=lambda policy: statistics.median(retained[policy]))
    goal = {policy: found[policy][GOAL_LOAD] for policy in found}
    fastest = min(PEERS, key=lambda policy: statistics.median(o.p99 for o in goal[policy]))
    richest = max(PEERS, key=lambda policy: statistics.median(o.goodput for o in goal[policy]))
    result.figures += [
        figure(
            f"goodput at load {GOAL_LOAD:g} of its peak",
            "%",
            retained[SHOAL],
            peer=peer,
            peer_runs=retained[peer],
            more_is_better=True,
            target=Target(90.0, at_least=True, of_ratio=False),
        ),
        figure(
            f"goodput at load {GOAL_LOAD:g}",
            "/s",
            [o.goodput for o in goal[SHOAL]],
            peer=richest,
            peer_runs=[o.goodput for o in goal[richest]],
            more_is_better=True,
        ),
        figure(
            f"p99 of what was admitted at load {GOAL_LOAD:g}",
            "ms",
            [o.p99 for o in goal[SHOAL]],
            peer=fastest,
            peer_runs=[o.p99 for o in goal[fastest]],
            target=Target(SLO_MS, of_ratio=False),
        ),
    ]
    rows = []
    for policy, by_load in found.items():
        cells = [policy]
        cells += [number(statistics.median(o.goodput for o in by_load[load])) for load in LOADS]
        p99 = [o.p99 for o in goal[policy]]
        cells += [number(statistics.median(p99)), number(max(p99))]
        rows.append(tuple(cells))
    columns = (
        "policy",
        *(f"at {load:g}" for load in LOADS),
        f"p99 ms at {GOAL_LOAD:g}",
        "worst",
    )
    result.tables.append(Table("Answers within the SLO a second, by load", columns, tuple(rows)))


def _add_shares(
    result: Result,
    runs: Sequence[dict[str, float]],
    title: str,
    asked: dict[Priority, float] | dict[str, float],
) -> None:
    rows = []
    for who, share in asked.items():
        name = who.name.lower() if isinstance(who, Priority) else who
        got = [run[name] for run in runs]
        rows.append((name, f"{share:.0%}", f"{statistics.median(got):.1%}", f"{min(got):.1%}"))
    columns = ("who", "of all requests", "admitted of its own", "worst")
    result.tables.append(Table(title, columns, tuple(rows)))


def _notes(seeds: int, seconds: float) -> list[str]:
    return [
        f"{len(FLEET_MS)} devices and their slow phases ({SLOW_FACTOR:g} times slower with "
        f"probability {SLOW_SHARE:g}, drawn anew every {PHASE_MS:g} ms) as in `router`; Poisson "
        f"arrivals for {seconds:g} s, a tenth of warm-up left out; {seeds} seeds, median and worst "
        "value. "
        "Load is relative to what slow phases leave of the capacity.",
        f"SLO {SLO_MS:g} ms, {HOP_MS:g} ms a hop, no cloud, standard priority if not said "
        "otherwise. Goodput counts answers within the SLO. Shoal is the real router, admission and "
        "saturation; its devices drop nothing, since clients would wait longer than the SLO.",
        "The peers admit everything. In their second form devices drop what is already late when "
        "its turn comes.",
        "A refusal is timed in real time through the real HTTP application and gateway, from a "
        "body in memory to the end of the answer 429, on a machine that does other things, too.",
    ]
