"""The benchmark `plan`: the planner against brute force, itself, and the rules of others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from shoal_bench.figures import Figure, Result, Table, Target, figure
from shoal_bench.plan.baselines import (
    Stages,
    equal_split,
    flops_proportional,
    pipeedge,
    ram_proportional,
)
from shoal_bench.plan.cases import brute_force, draw
from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Partition, Problem
from shoal_controlplane.planner.partition.solve import evaluate, solve

_RULES: dict[str, Callable[[Problem], Stages | None]] = {
    "RAM-proportional": ram_proportional,
    "FLOPS-proportional": flops_proportional,
    "PipeEdge": pipeedge,
    "equal split": equal_split,
}
LENGTH, DEVICES = 24, 6
LARGE = (100, 32, 4)
"""Segments, devices, types."""
_SAME = 1 + 1e-9
"""Sums in another order round differently."""


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """All comparisons: about a minute on one idle core, some seconds if `quick`."""
    small, middle, runs = (40, 20, 3) if quick else (200, 100, 15)
    result = Result("plan", quick=quick, notes=_notes(small, middle, runs))
    plans: list[tuple[Problem, Partition]] = []
    say(f"plan: {small} small cases against brute force")
    result.figures.append(_against_brute_force(small, plans))
    say(f"plan: {middle} cases of {LENGTH} segments and {DEVICES} devices")
    problems = [draw(seed, LENGTH, DEVICES) for seed in range(middle)]
    best = {n: plan for n, problem in enumerate(problems) if (plan := solve(problem).best)}
    plans += [(problems[n], plan) for n, plan in best.items()]
    result.figures.append(_search_against_exact(problems, best, plans))
    figures, table = _against_rules(problems, best)
    result.figures += figures
    result.tables.append(table)
    say(f"plan: {LARGE[0]} segments on {LARGE[1]} devices of {LARGE[2]} types")
    result.figures.append(_time(runs, plans))
    over = sum(_over_memory(problem, plan) for problem, plan in plans)
    target = Target(0, of_ratio=False)
    result.figures.append(figure(f"plans of {len(plans)} over memory", "", [over], target=target))
    return result


def _against_brute_force(cases: int, plans: list[tuple[Problem, Partition]]) -> Figure:
    own, brute = [], []
    for seed in range(cases * 4):
        devices = 1 + seed % 4
        # Every other fleet has two devices of a type, which may share a stage.
        types = max(1, devices // 2) if seed % 2 else None
        problem = draw(seed, 1 + seed * 7 % 10, devices, types)
        least, plan = brute_force(problem), solve(problem).best
        if (least is None) != (plan is None):
            raise AssertionError(f"case {seed}: planner and brute force differ in what fits")
        if least is None or plan is None:
            continue
        own.append(plan.bottleneck_ms)
        brute.append(least)
        plans.append((problem, plan))
        if len(own) == cases:
            break
    name = f"bottleneck of {len(own)} small plans"
    target = Target(_SAME)
    return figure(name, "ms", own, peer="brute force", peer_runs=brute, target=target)


def _search_against_exact(
    problems: Sequence[Problem],
    best: dict[int, Partition],
    plans: list[tuple[Problem, Partition]],
) -> Figure:
    own, exact = [], []
    for n, proven in best.items():
        found = solve(problems[n], limit=0).best
        if found is None:
            raise AssertionError(f"case {n}: the search found no plan, and there is one")
        plans.append((problems[n], found))
        own.append(found.bottleneck_ms)
        exact.append(proven.bound_ms)
    name = "bottleneck of the search"
    return figure(name, "ms", own, peer="exact programme", peer_runs=exact, target=Target(1.02))


def _against_rules(
    problems: Sequence[Problem], best: dict[int, Partition]
) -> tuple[list[Figure], Table]:
    figures, rows = [], []
    for name, rule in _RULES.items():
        own, theirs = [], []
        failed = 0
        for n, plan in best.items():
            stages = rule(problems[n])
            if stages is None:
                failed += 1
                continue
            own.append(plan.bottleneck_ms)
            theirs.append(evaluate(problems[n], stages).bottleneck_ms)
        if not own:
            rows.append((name, "-", "-", "-", f"{failed} of {len(best)}"))
            continue
        target = Target(0.25) if rule is ram_proportional else None
        title = f"bottleneck beside {name}"
        figures.append(figure(title, "ms", own, peer=name, peer_runs=theirs, target=target))
        ratios = sorted(a / b for a, b in zip(theirs, own, strict=True))
        rows.append(
            (
                name,
                f"{statistics.median(ratios):.2f}x",
                f"{ratios[int(0.9 * (len(ratios) - 1))]:.2f}x",
                f"{ratios[-1]:.2f}x",
                f"{failed} of {len(best)}",
            )
        )
    columns = ("rule", "bottleneck / Shoal's, median", "p90", "worst", "out of memory")
    return figures, Table(
        f"{len(best)} random models of {LENGTH} segments on {DEVICES} devices", columns, tuple(rows)
    )


def _time(runs: int, plans: list[tuple[Problem, Partition]]) -> Figure:
    seconds = []
    for seed in range(runs):
        problem = draw(seed, *LARGE)
        start = time.perf_counter()
        plan = solve(problem).best
        seconds.append(time.perf_counter() - start)
        if plan is not None:
            plans.append((problem, plan))
    name = f"time for {LARGE[0]} segments, {LARGE[1]} devices of {LARGE[2]} types"
    return figure(name, "s", seconds, target=Target(1.0, of_ratio=False))


def _over_memory(problem: Problem, plan: Partition) -> bool:
    """Counted from the segments, not by what the planner says of its stages."""
    return any(
        problem.memory_bytes(stage.first, stage.last, stage.kind)
        > MEMORY_SHARE * problem.types[stage.kind].memory_bytes
        for stage in plan.stages
    )


def _notes(small: int, middle: int, runs: int) -> list[str]:
    return [
        f"Random models and fleets: segments of 0.3 to 3 GFLOP, boards of 1.5 to 40 effective "
        "GFLOP/s, links of 3 to 117 MB/s that differ from pair to pair, and memory for 0.3 to 2 "
        f"times the model. {small} cases of 1 to 10 segments on 1 to 4 devices that fit, "
        f"{middle} of {LENGTH} on {DEVICES}, and {runs} of {LARGE[0]} on {LARGE[1]}. Times are "
        "those of the model of costs; `pipeline` measures real ones.",
        "A ratio above 1.00x beside brute force or the exact programme is a plan with fewer "
        "stages, which is preferred where it costs no more than 1 %.",
        "The search is what plans fleets too large for the exact programme; here it is made to "
        "plan fleets that are not, and compared with the proven optimum.",
        "RAM-proportional is exo's rule over all devices: largest remainders of free memory, at "
        "least one segment each. FLOPS-proportional divides by measured speed. PipeEdge is its "
        "exact programme with one bandwidth a device, no replicas, and no way in or out. Ratios "
        "are over the cases in which the rule's plan fits in memory.",
    ]
