"""The benchmark `offload`: a step to twice what the devices can do, with a cloud beside them."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from shoal_bench.figures import Result, Table, Target, figure, number
from shoal_bench.offload.cost import decision_us
from shoal_bench.offload.rules import Autoscaling, Threshold
from shoal_bench.offload.scenario import (
    AFTER_S,
    BASE_LOAD,
    BEFORE_S,
    END_MS,
    JITTER,
    SLO_MS,
    STEP_END_MS,
    STEP_LOAD,
    STEP_S,
    draw,
    fewest_away,
)
from shoal_bench.overload.gateway import Cloud, SimulatedGateway
from shoal_bench.router.scenario import FLEET_MS, SLOW_FACTOR, SLOW_SHARE
from shoal_bench.router.simulation import HOP_MS, Simulation
from shoal_controlplane.gateway.admission import Way

CLOUD_MS = 80.0
THRESHOLDS = (64, 256, 1024)
SHOAL = "Shoal"
AUTOSCALING = "autoscaling by utilisation"
_MS = 1e-3


@dataclass(frozen=True, slots=True)
class Outcome:
    """Shares are of all requests; `away` is the number in the cloud over the fewest possible;
    `back_s` is from the end of the step to when nothing changed any more, of rules that have a
    state."""

    missed: float
    away: float
    changes: int | None = None
    back_s: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    rule: str
    seed: int
    slow: bool


def _threshold(most: int) -> str:
    return f"threshold of {most} requests"


RULES = (SHOAL, *map(_threshold, THRESHOLDS), AUTOSCALING)


def run_job(job: Job) -> Outcome:
    """One simulation; the same job has the same outcome."""
    scenario = draw(job.seed, slow=job.slow)
    fewest = fewest_away(scenario)
    simulation = Simulation(scenario)
    cloud = Cloud(CLOUD_MS, random.Random(f"cloud/{job.seed}"))
    rng = random.Random(f"rule/{job.seed}")
    if job.rule == SHOAL:
        gateway = SimulatedGateway(simulation, SLO_MS, job.seed, cloud)
        gateway.watch(END_MS)
        simulation.run([gateway])
        last = gateway.levels[-1] if gateway.levels else (0.0, "calm")
        # Where it did not come back, it took at least all the time that there was.
        back = last[0] if last[1] == "calm" else END_MS
        away = sum(way is Way.CLOUD for way in gateway.taken.way)
        return Outcome(
            _missed(gateway.taken.sojourn),
            away / fewest,
            _changes(gateway.levels),
            max(0.0, back - STEP_END_MS) * _MS,
        )
    if job.rule == AUTOSCALING:
        scaling = Autoscaling(simulation, cloud, rng, END_MS)
        simulation.run([scaling])
        return Outcome(
            _missed(scaling.sojourn),
            sum(scaling.in_cloud) / fewest,
            scaling.changes,
            max(0.0, scaling.changed_at - STEP_END_MS) * _MS,
        )
    most = next(most for most in THRESHOLDS if job.rule == _threshold(most))
    threshold = Threshold(simulation, cloud, rng, most)
    simulation.run([threshold])
    return Outcome(_missed(threshold.sojourn), sum(threshold.in_cloud) / fewest)


def _changes(levels: Sequence[tuple[float, str]]) -> int:
    """How often a model became saturated or ceased to be: "rising" is a warning, not a state."""
    saturated = [False, *(level == "saturated" for _, level in levels)]
    return sum(before is not after for before, after in itertools.pairwise(saturated))


def _missed(sojourn: Sequence[float]) -> float:
    return sum(ms > SLO_MS for ms in sojourn) / len(sojourn)


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """Simulate everything and time the decision: about two minutes on two idle cores, half a
    minute if `quick`."""
    seeds = 2 if quick else 5
    result = Result("offload", quick=quick, notes=_notes(seeds))
    with ProcessPoolExecutor() as pool:
        for slow in (True, False):
            where = "devices with slow phases" if slow else "steady devices"
            say(f"offload: {where}")
            found = {
                rule: list(pool.map(run_job, [Job(rule, seed, slow) for seed in range(seeds)]))
                for rule in RULES
            }
            _add(result, where, found)
    say("offload: cost of the decision")
    _add_cost(result, 2_000 if quick else 20_000)
    return result


def _add(result: Result, where: str, found: dict[str, list[Outcome]]) -> None:
    own, peer = found[SHOAL], found[AUTOSCALING]
    against = partial(figure, peer=AUTOSCALING)
    below = partial(Target, of_ratio=False)
    result.figures += [
        against(
            f"SLO misses, {where}",
            "%",
            [100 * o.missed for o in own],
            peer_runs=[100 * o.missed for o in peer],
            target=below(1.0),
        ),
        against(
            f"requests in the cloud over the fewest possible, {where}",
            "x",
            [o.away for o in own],
            peer_runs=[o.away for o in peer],
            target=below(1.15),
        ),
        against(
            f"changes of state, {where}",
            "",
            [float(o.changes or 0) for o in own],
            peer_runs=[float(o.changes or 0) for o in peer],
            target=below(2.0),
        ),
        against(
            f"back after the step, {where}",
            "s",
            [o.back_s or 0.0 for o in own],
            peer_runs=[o.back_s or 0.0 for o in peer],
            target=below(5.0),
        ),
    ]
    rows = []
    for rule, runs in found.items():
        missed, away = [100 * o.missed for o in runs], [o.away for o in runs]
        changes = [o.changes for o in runs if o.changes is not None]
        back = [o.back_s for o in runs if o.back_s is not None]
        rows.append(
            (
                rule,
                f"{statistics.median(missed):.2f}",
                f"{max(missed):.2f}",
                f"{statistics.median(away):.3f}",
                f"{max(away):.3f}",
                str(max(changes)) if changes else "-",
                number(max(back)) if back else "-",
            )
        )
    columns = (
        "rule",
        "SLO misses %",
        "worst",
        "cloud / fewest",
        "worst",
        "changes, worst",
        "back after s, worst",
    )
    result.tables.append(Table(f"{where[0].upper()}{where[1:]}", columns, tuple(rows)))


def _add_cost(result: Result, samples: int) -> None:
    rows = []
    medians = []
    for way, times in decision_us(samples).items():
        times.sort()
        median, p99 = statistics.median(times), times[int(0.99 * len(times))]
        medians.append(median)
        rows.append((way, number(median), number(p99)))
    result.figures.append(
        figure(
            "decision, the dearest kind", "µs", [max(medians)], target=Target(50.0, of_ratio=False)
        )
    )
    title = "Cost of the decision, two targets, microseconds"
    result.tables.append(Table(title, ("decision", "median", "p99"), tuple(rows)))


def _notes(seeds: int) -> list[str]:
    return [
        f"{len(FLEET_MS)} devices, ResNet-50 in {min(FLEET_MS):g} to {max(FLEET_MS):g} ms, as in "
        f"`router`; service times vary by {JITTER:.1%}. Load {BASE_LOAD:g} of what the devices can "
        f"do for {BEFORE_S:g} s, {STEP_LOAD:g} for {STEP_S:g} s, {BASE_LOAD:g} for {AFTER_S:g} s; "
        f"{seeds} seeds, median and worst. With slow phases, each device is {SLOW_FACTOR:g} times "
        f"slower with probability {SLOW_SHARE:g}, drawn anew every 150 ms, and capacity is what "
        "that leaves.",
        f"SLO {SLO_MS:g} ms; a warm cloud without a limit answers in {CLOUD_MS:g} ms (lognormal, "
        f"sigma 0.05); {HOP_MS:g} ms a hop to devices. Shoal is the real router, admission and "
        "saturation; nothing is hedged.",
        "The fewest possible: no rule, even one that knows all arrivals, service times and slow "
        "phases beforehand, sends fewer to the cloud without a miss. All devices count as one that "
        "works on anything at once; the largest requests leave first. So it is a lower bound.",
        "A threshold sends requests to the cloud while so many are on the devices; which number is "
        "right depends on fleet, model and SLO, and has to be found by hand. It has no state.",
        "Autoscaling is Kubernetes' rule for utilisation at a target of 80 %, looked at every "
        "second, with replicas that are there at once and given up after 5 s. Both rules send "
        "what stays to the device with the least requests for its speed, which they are told.",
        "The decision's cost is real time from the router's choice to the request's way, with the "
        "real pool of two targets and everything that is counted, on a machine that does other "
        "things, too.",
    ]
