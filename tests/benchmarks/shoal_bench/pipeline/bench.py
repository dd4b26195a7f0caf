"""The benchmark `pipeline`: plans as they were predicted, beside what they reach on real shards."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal_bench.figures import Figure, Result, Table, Target, figure, number
from shoal_bench.netfleet import (
    ADDRESS,
    MQTT_PORT,
    TCP_SHARE,
    Network,
    broker,
    start_agent,
    stop_all,
    workplace,
)
from shoal_bench.pipeline.cases import SMALL_MIB, Case, draw
from shoal_bench.pipeline.direct import Direct, DirectError, Measured
from shoal_bench.pipeline.endtoend import EndToEnd, end_to_end
from shoal_bench.pipeline.models import LARGE, prepare_models
from shoal_bench.pipeline.plans import (
    EQUAL,
    EXO,
    PIPEEDGE,
    SHOAL,
    SINGLE,
    Cut,
    describe,
    policies,
    same_work,
)
from shoal_bench.pipeline.profiling import Stopwatch
from shoal_controlplane.planner.partition.problem import Partition
from shoal_controlplane.plans.links import LinkBook

MAX_ERROR = 15.0
MIN_GAIN = 0.98
PLANS = 30
QUICK_PLANS = 6

Say = Callable[[str], None]


@dataclass(slots=True)
class Ran:
    """One case: each policy's plan, what it reached, or why it did not run. `first` is Shoal's
    plan before its stages were measured."""

    case: Case
    first: Partition | None = None
    plans: dict[str, Partition] = field(default_factory=dict)
    reached: dict[str, Measured] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def rate(self, policy: str) -> float | None:
        return self.reached[policy].rate if policy in self.reached else None

    def gain(self, policy: str) -> float | None:
        """Shoal's rate over that of a policy."""
        own, other = self.rate(SHOAL), self.rate(policy)
        return own / other if own is not None and other is not None else None

    @property
    def error(self) -> float | None:
        """How far Shoal's plan was off, in % of what was planned; below 0 where it was slower."""
        own = self.rate(SHOAL)
        return None if own is None else 100 * (own / self.plans[SHOAL].rate - 1)

    @property
    def first_error(self) -> float | None:
        """The same of the plan that segments alone gave, where it has the same stages."""
        own, first = self.rate(SHOAL), self.first
        if own is None or first is None or not same_work(first, self.plans[SHOAL]):
            return None
        return 100 * (own / first.rate - 1)


def run(*, quick: bool = False, say: Say = print) -> Result:
    """Run every case: about 15 minutes, 4 if `quick`. Raises `NoNetworkError` without root."""
    cases = [draw(seed) for seed in range(QUICK_PLANS if quick else PLANS)]
    seconds = 2.0
    result = Result("pipeline", quick=quick)
    with Network() as network, workplace() as folder:
        models = prepare_models(folder / "models")
        watch = Stopwatch()
        cuts: dict[str, Cut] = {}
        for name in dict.fromkeys(case.model for case in cases):
            say(f"pipeline: cutting {name}")
            cuts[name] = Cut.of(models[name], folder / "cuts" / name, watch)
        ran = []
        for case in cases:
            say(f"pipeline: plan {case.seed + 1} of {len(cases)}, {case.model}")
            place = folder / f"case-{case.seed}"
            place.mkdir()
            with broker(place):
                ran.append(
                    asyncio.run(_run_case(network, case, cuts[case.model], watch, place, seconds))
                )
            network.detach_all()
            for policy, why in ran[-1].failed.items():
                say(f"pipeline: {policy}: {why}")
        say("pipeline: through the control plane")
        whole = end_to_end(network, models, folder / "whole", seconds, say)
    _report(result, ran, whole, seconds)
    return result


async def _run_case(
    network: Network, case: Case, cut: Cut, watch: Stopwatch, folder: Path, seconds: float
) -> Ran:
    ran = Ran(case)
    agents = []
    try:
        agents = [start_agent(network, board, folder) for board in case.boards]
        names = [board.name for board in case.boards]
        async with Direct(ADDRESS, MQTT_PORT, names, folder) as fleet:
            await fleet.online()
            links = await fleet.probe_links()
            await _run_policies(ran, fleet, cut, links, watch, seconds)
    finally:
        stop_all(agents)
    return ran


async def _run_policies(
    ran: Ran, fleet: Direct, cut: Cut, links: LinkBook, watch: Stopwatch, seconds: float
) -> None:
    planned = policies(cut, ran.case.boards, links, watch)
    ran.first = planned.first
    for epoch, (policy, plan) in enumerate(planned.plans.items(), 1):
        if plan is None:
            ran.failed[policy] = (policy == SHOAL and planned.reason) or "does not fit"
            continue
        ran.plans[policy] = plan
        twin = next((p for p in ran.reached if same_work(ran.plans[p], plan)), None)
        if twin is not None:
            ran.reached[policy] = ran.reached[twin]
            continue
        wired = cut.wired(f"case-{ran.case.seed}", epoch, plan)
        try:
            await fleet.deploy(wired)
            ran.reached[policy] = await fleet.measure(wired, cut.model, seconds)
        except DirectError as error:
            ran.failed[policy] = str(error)


def _report(result: Result, ran: Sequence[Ran], whole: EndToEnd, seconds: float) -> None:
    for of, errors in (
        ("", [r.error for r in ran]),
        (", segments measured only", [r.first_error for r in ran]),
    ):
        off = sorted(abs(error) for error in errors if error is not None)
        if off:
            p90 = off[math.ceil(0.9 * len(off)) - 1]
            result.figures += [
                figure(
                    f"planned against executed throughput{of}, p90 of {len(off)} plans",
                    "%",
                    [p90],
                    target=Target(MAX_ERROR, of_ratio=False),
                ),
                figure(f"planned against executed throughput{of}", "%", off),
            ]
    for policy in (SINGLE, EQUAL, EXO, PIPEEDGE):
        found = _beside(ran, policy)
        if found is not None:
            result.figures.append(found)
    gains = [gain for r in ran if (gain := r.gain(SINGLE)) is not None]
    if gains:
        result.figures.append(
            figure(
                "least throughput over the best single device",
                "x",
                [min(gains)],
                target=Target(MIN_GAIN, at_least=True, of_ratio=False),
            )
        )
    larger = [r for r in ran if r.case.model == LARGE and SHOAL in r.reached]
    if larger:
        rates = [r.reached[SHOAL].rate for r in larger]
        result.figures.append(
            figure(f"{LARGE}, which fits no single board", "answers/s", rates, more_is_better=True)
        )
    result.figures += whole.figures()
    result.tables += [_table(ran), _links(ran), *whole.tables()]
    result.notes += _notes(ran, seconds)


def _beside(ran: Sequence[Ran], policy: str) -> Figure | None:
    """Shoal beside a policy, over the cases where both ran."""
    pairs = [
        (own, other)
        for r in ran
        if (own := r.rate(SHOAL)) is not None and (other := r.rate(policy)) is not None
    ]
    if not pairs:
        return None
    return figure(
        f"throughput beside {policy}, {len(pairs)} plans",
        "answers/s",
        [own for own, _ in pairs],
        peer=policy,
        peer_runs=[other for _, other in pairs],
        more_is_better=True,
        target=Target(1.0, at_least=True),
    )


def _table(ran: Sequence[Ran]) -> Table:
    rows = []
    for r in ran:
        own = r.plans.get(SHOAL)
        rows.append(
            (
                str(r.case.seed),
                r.case.model,
                describe(own) if own is not None else r.failed.get(SHOAL, ""),
                number(own.rate if own is not None else None),
                number(r.rate(SHOAL)),
                f"{r.error:+.1f} %" if r.error is not None else "-",
                *(_cell(r, policy) for policy in (SINGLE, EQUAL, EXO, PIPEEDGE)),
            )
        )
    columns = ("seed", "model", "plan of Shoal (segments)", "planned", "executed", "off")
    return Table(
        "Answers a second of each plan", (*columns, SINGLE, EQUAL, EXO, PIPEEDGE), tuple(rows)
    )


def _cell(ran: Ran, policy: str) -> str:
    rate = ran.rate(policy)
    return ran.failed.get(policy, "-") if rate is None else number(rate)


def _links(ran: Sequence[Ran]) -> Table:
    rows = [
        (
            str(r.case.seed),
            "; ".join(
                f"{b.name} {b.factor:g}x, {b.memory_mib} MiB, {b.down:g}/{b.up:g}"
                for b in r.case.boards
            ),
        )
        for r in ran
    ]
    return Table("Boards: factor, memory, Mbit/s down/up", ("seed", "boards"), tuple(rows))


def _notes(ran: Sequence[Ran], seconds: float) -> list[str]:
    same = sum(r.gain(SINGLE) == 1.0 for r in ran)
    gains = [gain for r in ran if (gain := r.gain(SINGLE)) is not None]
    typical = f" (median gain {statistics.median(gains):.2f}x)" if gains else ""
    return [
        "Every device is a real agent in a network namespace of its own, behind a veth pair that "
        "`tc … tbf` shapes in both directions; Mosquitto runs on the bridge between them. What a "
        f"device has of its rate for payload is about {TCP_SHARE:.0%}.",
        "Boards are slowed down by duty cycle: each run computes the real shard on one thread, "
        "then the compute thread sleeps until factor times the processor time have passed that "
        "such a run takes undisturbed (the least of several with cold caches, when it loads). "
        "Together they need less than one core, so that they do not disturb each other.",
        "Segments are measured as the control plane has them measured (about a dozen ranges) on "
        "one thread, and multiplied by the board's factor; links are measured by its own probe. "
        "Then the stages of the plan are measured, as devices do when they load them, and it is "
        "planned anew until the stages stay. Nothing of a plan's run flows back into it.",
        "Goals are published and requests sent by the benchmark itself, so that each policy's "
        "stages, cut by the same code, run on the same agents, with as many requests under way as "
        f"the control plane would allow. Measured for {seconds:g} s after the pipeline has filled. "
        "Every answer is compared with the whole model's.",
        f"In {same} of {len(ran)} cases the best plan is one device{typical}.",
        f"'exo' cuts in proportion to memory, 'equal split' by number of segments; both use every "
        f"device in the fleet's order. {LARGE} has 150 MB of weights, boards in its cases "
        f"{SMALL_MIB} MiB of memory.",
    ]
