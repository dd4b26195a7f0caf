"""The benchmark `slow`: one device becomes ten times slower under load."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from shoal_bench.figures import Result, Table, Target, figure, number
from shoal_bench.router.policies import PowerOfTwo, WeightedLeastRequest
from shoal_bench.router.prequal import Prequal
from shoal_bench.router.scenario import FLEET_MS, JITTER_SIGMA
from shoal_bench.router.simulation import HOP_MS, Policy, Simulation
from shoal_bench.slow.scenario import AFTER_MS, AT_MS, SLOWER, throttled
from shoal_bench.slow.simulation import Trace, run_peer, run_shoal

LOAD = 0.7
DEVICES = {"Orin NX": 1, "Ascend 310": 3, "QCS6490": 5}
"""By their index in the fleet. Slower ones get next to nothing at this load anyway; without the
fastest one the others cannot bear it."""

GOAL_DEVICE = "QCS6490"
SETTLED_MS = 500.0
SHARE_AFTER_MS = 300.0
SHARE_WINDOW_MS = 300.0
P99_AFTER_MS = 1_000.0

SHOAL = "Shoal"
UNHEDGED = "Shoal without hedging"
_PEERS: dict[str, Callable[[Simulation, random.Random], Policy]] = {
    "power of two": lambda sim, rng: PowerOfTwo(sim.devices, rng),
    "weighted least request": lambda sim, rng: WeightedLeastRequest(sim.devices, rng),
    "Prequal": Prequal,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a policy, and the index of the device that becomes slow."""

    policy: str
    device: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run: the slow device's share of what is sent, later relative to before; the 99th
    percentile in ms before and later, and the longest of the requests that come in the second in
    which it becomes slow; hedges, and those that won, as shares of the requests."""

    share_left: float
    p99_before: float
    p99_later: float
    longest: float
    hedges: float
    won: float

    @property
    def p99_ratio(self) -> float:
        return self.p99_later / self.p99_before


def run_job(job: Job) -> Outcome:
    """Run one simulation; the same job has the same outcome."""
    scenario = throttled(LOAD, job.seed, job.device)
    if job.policy in (SHOAL, UNHEDGED):
        trace = run_shoal(scenario, job.seed, hedges=job.policy == SHOAL)
    else:
        simulation = Simulation(scenario)
        rng = random.Random(f"{job.seed}/{job.policy}")
        trace = run_peer(simulation, _PEERS[job.policy](simulation, rng))
    return outcome(trace, scenario.arrivals, job.device)


def outcome(trace: Trace, arrivals: Sequence[float], device: int) -> Outcome:
    """What a trace shows."""
    later = AT_MS + SHARE_AFTER_MS
    before = _share(trace, device, SETTLED_MS, AT_MS)
    requests = len(arrivals)
    return Outcome(
        _share(trace, device, later, later + SHARE_WINDOW_MS) / before,
        _percentile(trace, arrivals, SETTLED_MS, AT_MS, 0.99),
        _percentile(trace, arrivals, AT_MS + P99_AFTER_MS, AT_MS + AFTER_MS, 0.99),
        _percentile(trace, arrivals, AT_MS, AT_MS + P99_AFTER_MS, 1.0),
        trace.hedges / requests,
        trace.won / requests,
    )


def _share(trace: Trace, device: int, begin: float, end: float) -> float:
    sent = [to == device for moment, to in trace.sent if begin <= moment < end]
    return sum(sent) / len(sent)


def _percentile(
    trace: Trace, arrivals: Sequence[float], begin: float, end: float, share: float
) -> float:
    pairs = zip(arrivals, trace.sojourn, strict=True)
    ordered = sorted(took for arrival, took in pairs if begin <= arrival < end)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """Simulate everything: about four minutes on two idle cores, a minute if `quick`."""
    seeds = 3 if quick else 9
    result = Result("slow", quick=quick, notes=_notes(seeds))
    with ProcessPoolExecutor() as pool:
        for name, index in DEVICES.items():
            say(f"slow: {name}")
            found = {
                policy: list(pool.map(run_job, [Job(policy, index, n) for n in range(seeds)]))
                for policy in (SHOAL, UNHEDGED, *_PEERS)
            }
            _add(result, name, found)
    return result


def _add(result: Result, name: str, found: dict[str, list[Outcome]]) -> None:
    goal = name == GOAL_DEVICE
    own = found[SHOAL]
    best = min(_PEERS, key=lambda peer: statistics.median(o.p99_later for o in found[peer]))
    result.figures += [
        figure(
            f"share left after {SHARE_AFTER_MS:g} ms, {name}",
            "",
            [o.share_left for o in own],
            target=Target(0.2, of_ratio=False) if goal else None,
        ),
        figure(
            f"p99 after 1 s to before, {name}",
            "",
            [o.p99_ratio for o in own],
            target=Target(1.5, of_ratio=False) if goal else None,
        ),
        figure(
            f"p99 after 1 s, {name}",
            "ms",
            [o.p99_later for o in own],
            peer=best,
            peer_runs=[o.p99_later for o in found[best]],
        ),
        figure(
            f"longest of the first second, {name}",
            "ms",
            [o.longest for o in own],
            peer=UNHEDGED,
            peer_runs=[o.longest for o in found[UNHEDGED]],
        ),
        figure(
            f"hedges a request, {name}",
            "",
            [o.hedges for o in own],
            target=Target(0.03, of_ratio=False) if goal else None,
        ),
    ]
    names = "policy,share left,worst,p99 before,p99 later,worst,longest,worst,hedges,won"
    columns = tuple(names.split(","))
    rows = tuple(_row(policy, outcomes) for policy, outcomes in found.items())
    result.tables.append(Table(f"{name} becomes {SLOWER:g} times slower", columns, rows))


def _row(policy: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    def both(values: Sequence[float]) -> list[str]:
        return [number(statistics.median(values)), number(max(values))]

    hedges = statistics.median(o.hedges for o in outcomes)
    won = statistics.median(o.won for o in outcomes)
    return (
        policy,
        *both([o.share_left for o in outcomes]),
        number(statistics.median(o.p99_before for o in outcomes)),
        *both([o.p99_later for o in outcomes]),
        *both([o.longest for o in outcomes]),
        *((f"{hedges:.2%}", f"{won:.2%}") if hedges else ("-", "-")),
    )


def _notes(seeds: int) -> list[str]:
    return [
        f"The fleet of the benchmark 'router', {len(FLEET_MS)} devices, at load {LOAD:g} with "
        f"service times that vary (lognormal, {JITTER_SIGMA:g}) but no slow phases. After "
        f"{AT_MS / 1e3:g} s one device takes {SLOWER:g} times as long, without a word, and stays "
        f"so for {AFTER_MS / 1e3:g} s; {seeds} seeds, median and worst. A message takes "
        f"{HOP_MS:g} ms each way.",
        f"Share left: the device's share of all attempts from {SHARE_AFTER_MS:g} to "
        f"{SHARE_AFTER_MS + SHARE_WINDOW_MS:g} ms after that, relative to its share before. p99: "
        f"of requests that came in the {(AT_MS - SETTLED_MS) / 1e3:g} s before, and from 1 s after "
        "it on. Longest: of the requests that came in that first second; times in ms.",
        "Shoal is its real dispatcher, router and hedging in virtual time, with devices that drop "
        "what is cancelled before they begin with it; the peers decide in the simulation of the "
        "benchmark 'router', for the same arrivals and service times.",
    ]
