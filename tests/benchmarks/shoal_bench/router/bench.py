"""The benchmark `router`: p99 and goodput of the real router beside other policies."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from shoal_bench.figures import Result, Table, Target, figure, number
from shoal_bench.router.policies import (
    JoinShortestQueue,
    Omniscient,
    PowerOfTwo,
    RoundRobin,
    Shoal,
    Weighted,
    WeightedLeastRequest,
)
from shoal_bench.router.prequal import Prequal
from shoal_bench.router.scenario import (
    FLEET_MS,
    PHASE_MS,
    SLOW_FACTOR,
    SLOW_SHARE,
    draw,
    effective_load,
    pooled_sojourn,
)
from shoal_bench.router.simulation import HOP_MS, Policy, Simulation

LOADS = (0.5, 0.7, 0.85)
GOAL_LOAD = 0.7
GATEWAYS = 3
DEADLINE_MS = 100.0
HOPS_MS = (0.0, 1.0)

SHOAL = "Shoal"
_MAKE: dict[str, Callable[[Simulation, random.Random], Policy]] = {
    SHOAL: lambda sim, rng: Shoal(sim.devices, rng.getrandbits(32), sim.deadline_ms),
    "round robin": lambda sim, rng: RoundRobin(sim.devices, rng),
    "weighted": lambda sim, rng: Weighted(sim.devices, rng),
    "power of two": lambda sim, rng: PowerOfTwo(sim.devices, rng),
    "JSQ": lambda sim, rng: JoinShortestQueue(sim.devices, rng),
    "Prequal": Prequal,
    "weighted least request": lambda sim, rng: WeightedLeastRequest(sim.devices, rng),
    "omniscient": lambda sim, _: Omniscient(sim),
}
PEERS = ("round robin", "weighted", "power of two", "JSQ", "Prequal")
REFERENCES = ("weighted least request", "omniscient")
POOLED = "one pooled server"


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation. Without a deadline every request is answered."""

    policy: str
    load: float
    seed: int
    requests: int
    gateways: int = 1
    hop_ms: float = HOP_MS
    deadline_ms: float = math.inf


@dataclass(frozen=True, slots=True)
class Outcome:
    """Sojourn times in ms, and the share of requests answered within `DEADLINE_MS`."""

    p50: float
    p99: float
    goodput: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of `ordered` lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run_job(job: Job) -> Outcome:
    """Run one simulation; the same job has the same outcome."""
    scenario = draw(job.load, job.seed, job.requests, job.gateways)
    if job.policy == POOLED:
        sojourn = pooled_sojourn(scenario, job.hop_ms)
    else:
        simulation = Simulation(scenario, job.hop_ms, job.deadline_ms)
        make = _MAKE[job.policy]
        sojourn = simulation.run(
            [make(simulation, random.Random(f"{job.seed}/{n}")) for n in range(job.gateways)]
        )
    ordered = sorted(sojourn)
    good = sum(ms <= DEADLINE_MS for ms in ordered) / len(ordered)
    return Outcome(percentile(ordered, 0.5), percentile(ordered, 0.99), good)


@dataclass(frozen=True, slots=True)
class _Cell:
    """Every policy in the same place, over all seeds."""

    load: float
    gateways: int = 1
    hop_ms: float = HOP_MS

    def policies(self) -> tuple[str, ...]:
        references = (*REFERENCES, POOLED) if self.gateways == 1 else ()
        return (SHOAL, *PEERS, *references)

    def jobs(self, policy: str, seeds: int, requests: int, deadline_ms: float) -> list[Job]:
        return [
            Job(policy, self.load, seed, requests, self.gateways, self.hop_ms, deadline_ms)
            for seed in range(seeds)
        ]


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """Simulate everything: about four minutes on two idle cores, half a minute if `quick`."""
    seeds, requests = (3, 10_000) if quick else (10, 30_000)
    cells = [_Cell(load) for load in LOADS]
    cells += [_Cell(load, gateways=GATEWAYS) for load in LOADS]
    cells += [_Cell(GOAL_LOAD, hop_ms=hop) for hop in HOPS_MS]
    result = Result("router", quick=quick, notes=_notes(seeds, requests))
    with ProcessPoolExecutor() as pool:
        for cell in cells:
            where = f"load {cell.load}, {cell.gateways} gateway(s), {cell.hop_ms:g} ms a hop"
            say(f"router: {where}")
            free: dict[str, list[Outcome]] = {}
            bound: dict[str, list[Outcome]] = {}
            for policy in cell.policies():
                jobs = cell.jobs(policy, seeds, requests, math.inf)
                free[policy] = list(pool.map(run_job, jobs))
                if policy != POOLED:
                    jobs = cell.jobs(policy, seeds, requests, DEADLINE_MS)
                    bound[policy] = list(pool.map(run_job, jobs))
            _add(result, cell, free, bound)
    return result


def _add(
    result: Result, cell: _Cell, free: dict[str, list[Outcome]], bound: dict[str, list[Outcome]]
) -> None:
    where = f"load {cell.load}"
    if cell.gateways > 1:
        where += f", {cell.gateways} gateways"
    if cell.hop_ms != HOP_MS:
        where += f", hop {cell.hop_ms:g} ms"
    goal = cell == _Cell(GOAL_LOAD)
    p99 = {policy: [outcome.p99 for outcome in free[policy]] for policy in free}
    good = {policy: [outcome.goodput for outcome in bound[policy]] for policy in bound}
    best = min(PEERS, key=lambda policy: statistics.median(p99[policy]))
    result.figures.append(
        figure(
            f"p99 at {where}",
            "ms",
            p99[SHOAL],
            peer=best,
            peer_runs=p99[best],
            target=Target(0.5) if goal else None,
        )
    )
    best = max(PEERS, key=lambda policy: statistics.median(good[policy]))
    result.figures.append(
        figure(
            f"goodput at {where}",
            "",
            good[SHOAL],
            peer=best,
            peer_runs=good[best],
            more_is_better=True,
            target=Target(1.0, at_least=True) if goal else None,
        )
    )
    rows = [_row(policy, free[policy], bound.get(policy, ())) for policy in cell.policies()]
    title = f"{where[0].upper()}{where[1:]} (effective load {effective_load(cell.load):.2f})"
    columns = ("policy", "p50 ms", "worst", "p99 ms", "worst", "goodput", "worst")
    result.tables.append(Table(title, columns, tuple(rows)))


def _row(policy: str, free: Sequence[Outcome], bound: Iterable[Outcome]) -> tuple[str, ...]:
    cells = [policy]
    for times in ([o.p50 for o in free], [o.p99 for o in free]):
        cells += [number(statistics.median(times)), number(max(times))]
    goods = [outcome.goodput for outcome in bound]
    cells += [f"{statistics.median(goods):.4f}", f"{min(goods):.4f}"] if goods else ["-", "-"]
    return tuple(cells)


def _notes(seeds: int, requests: int) -> list[str]:
    return [
        f"{len(FLEET_MS)} devices, ResNet-50 in {min(FLEET_MS):g} to {max(FLEET_MS):g} ms, one "
        f"request at a time each; every {PHASE_MS:g} ms each device is {SLOW_FACTOR:g} times "
        f"slower with probability {SLOW_SHARE:g}. {requests:,} Poisson arrivals a run, the first "
        f"tenth left out; {seeds} seeds, median and worst. Arrivals, service times and slow "
        "phases of a seed are the same for every policy.",
        "Load is relative to the capacity without slow phases; slow phases leave "
        f"{1 / effective_load(1):.1%} of it, so that loads "
        f"{', '.join(f'{load:g} are {effective_load(load):.2f}' for load in LOADS)} of what is "
        "there on average.",
        f"A message takes {HOP_MS:g} ms each way (a broker on the same machine) if not said "
        "otherwise, for requests, replies, and Prequal's probes.",
        f"Goodput: the share answered within {DEADLINE_MS:g} ms, from a second run in which every "
        "device drops what has expired, and Shoal, as its gateway does, refuses what it cannot "
        "expect to answer in time. Times come from runs without deadlines.",
        "Prequal after its paper: asynchronous, a pool of 16 probes, 3 probes a request, "
        "hot-cold lexicographic choice at Q_RIF = 2^-0.25, latency by requests in flight, and "
        "the settings for reuse and removal that served it best here.",
        "'weighted least request' is Shoal's score without learning; 'omniscient' knows true "
        "queues and present speeds; 'one pooled server' is the whole capacity in one queue, which "
        "no choice of devices can beat.",
    ]
