"""The benchmark `batch`: one large batch over five unequal devices, beside other ways to share."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from shoal_bench.batch.scenario import (
    DEVICES_MS,
    HOP_MS,
    JITTER,
    MOST,
    SLOW_FACTOR,
    Scenario,
    draw,
    equal_shares,
    ideal_ms,
    proportional_shares,
)
from shoal_bench.batch.simulation import run_shoal, run_static
from shoal_bench.figures import Result, Table, Target, figure, number
from shoal_controlplane.gateway.split import Place, water_fill

ITEMS = 1000
IDEAL = "ideal"
SHOAL = "Shoal"


def water_filled_shares(scenario: Scenario) -> dict[str, int]:
    """Shoal's own shares at the start, which nobody takes from anybody."""
    places = [Place(0.0, p.intercept_ms, p.slope_ms, most=MOST) for p in scenario.profiles.values()]
    return dict(zip(scenario.profiles, water_fill(scenario.items, places), strict=True))


WAYS: dict[str, Callable[[Scenario], float]] = {
    SHOAL: run_shoal,
    "water-filled once": lambda s: run_static(s, water_filled_shares(s)),
    "proportional": lambda s: run_static(s, proportional_shares(s)),
    "equal": lambda s: run_static(s, equal_shares(s)),
}


@dataclass(frozen=True, slots=True)
class _Case:
    title: str
    items: int
    slow: bool
    goal: bool = False


CASES = (
    _Case("all as expected", ITEMS, slow=False, goal=True),
    _Case(f"one turns {SLOW_FACTOR:g} times slower midway", ITEMS, slow=True, goal=True),
    _Case("ten times as many items, one turns slow", 10 * ITEMS, slow=True),
)


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """Simulate everything: seconds."""
    seeds = range(10 if quick else 50)
    result = Result("batch", quick=quick, notes=_notes(len(seeds)))
    for case in CASES:
        say(f"batch: {case.items} items, {case.title}")
        scenarios = [draw(seed, case.items, slow=case.slow) for seed in seeds]
        ideal = [ideal_ms(scenario) for scenario in scenarios]
        ends = {way: [end(scenario) for scenario in scenarios] for way, end in WAYS.items()}
        _add(result, case, ideal, ends)
    return result


def _add(result: Result, case: _Case, ideal: list[float], ends: dict[str, list[float]]) -> None:
    where = f"{case.items:,} items, {case.title}"
    result.figures.append(
        figure(
            f"makespan, {where}",
            "ms",
            ends[SHOAL],
            peer=IDEAL,
            peer_runs=ideal,
            target=Target(1.1) if case.goal else None,
        )
    )
    best = min((way for way in ends if way != SHOAL), key=lambda w: statistics.median(ends[w]))
    result.figures.append(
        figure(
            f"beside the best without stealing, {where}",
            "ms",
            ends[SHOAL],
            peer=best,
            peer_runs=ends[best],
        )
    )
    rows = []
    for way, times in {**ends, IDEAL: ideal}.items():
        ratios = [own / least for own, least in zip(times, ideal, strict=True)]
        rows.append(
            (
                way,
                number(statistics.median(times)),
                f"{statistics.median(ratios):.2f}x",
                f"{max(ratios):.2f}x",
            )
        )
    columns = ("way", "makespan ms", "of the ideal", "worst")
    result.tables.append(Table(f"{where[0].upper()}{where[1:]}", columns, tuple(rows)))


def _notes(seeds: int) -> list[str]:
    shown = ", ".join(f"{name} {a:g} + {c:g} b ms" for name, (a, c) in DEVICES_MS.items())
    return [
        f"Devices: {shown}; times 0.8 to 1.25 by seed, and jitter of {JITTER:.1%} a batch. Batches "
        f"of at most {MOST}. {seeds} seeds, median and worst.",
        "Shoal is the gateway's own batch runner, dispatcher and router in virtual time, with "
        f"messages of {HOP_MS:g} ms each way. The other ways send all at the start, in batches "
        "as large as can be. The device that turns slow is the second fastest, when half of the "
        "batch could be done.",
        "The ideal is a bound that nobody can reach: items flow like a liquid in the largest "
        "batches, without messages and jitter, and what will turn slow is known beforehand.",
    ]
