"""From a case to the plans of each policy: what the planner is asked, and what runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shoal_bench.netfleet import Board
from shoal_bench.pipeline.direct import Part, Wired
from shoal_bench.pipeline.models import Model
from shoal_bench.pipeline.profiling import Stopwatch, device_types
from shoal_bench.plan.baselines import Stages, equal_split, pipeedge, ram_proportional
from shoal_controlplane.planner.costs import Range, chunks
from shoal_controlplane.planner.credits import credits_for
from shoal_controlplane.planner.cuts.analysis import Analysis, StageFile
from shoal_controlplane.planner.cuts.cutter import analyse_model, extract_stages
from shoal_controlplane.planner.partition.assignment import evaluate
from shoal_controlplane.planner.partition.problem import Partition, Problem
from shoal_controlplane.planner.partition.solve import solve
from shoal_controlplane.plans.links import LinkBook, between, entry, leaving

SHOAL, SINGLE = "Shoal", "best single device"
EQUAL, EXO, PIPEEDGE = "equal split", "exo", "PipeEdge"
RULES = {EQUAL: equal_split, EXO: ram_proportional, PIPEEDGE: pipeedge}

_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Planned:
    """Plans by policy, None where one fits nowhere; Shoal's `first` one, made before any of its
    stages was measured; and why there is none."""

    plans: dict[str, Partition | None]
    first: Partition | None
    reason: str


@dataclass(slots=True)
class Cut:
    """A model that was cut and measured: its segments, stage files by range, and ms of the
    ranges on a board of factor 1."""

    model: Model
    analysis: Analysis
    folder: Path
    files: dict[Range, StageFile] = field(default_factory=dict)
    measured: dict[Range, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, folder: Path, watch: Stopwatch) -> Cut:
        """Cut a model, and measure it as a profiling job would."""
        folder.mkdir(parents=True, exist_ok=True)
        cut = cls(model, analyse_model(model.path, model.shapes), folder)
        wanted = chunks(cut.analysis.segments)
        cut.make(sorted({bound for part in wanted for bound in part}))
        for part in wanted:
            file = cut.file(part)
            cut.measured[part] = watch.milliseconds(file, folder / file.filename)
        return cut

    def file(self, part: Range) -> StageFile:
        """The stage file of a range; it is made once."""
        if part not in self.files:
            self.make(sorted({0, *part, len(self.analysis.segments)}))
        return self.files[part]

    def make(self, bounds: Sequence[int]) -> None:
        """Make the files of all stages between neighbouring bounds at once."""
        made = extract_stages(self.model.path, self.model.shapes, bounds, self.folder)
        self.files.update(((file.first, file.last), file) for file in made)

    def problem(self, boards: tuple[Board, ...], links: LinkBook) -> Problem:
        """What the planner is asked for a fleet of which the links were measured."""
        known = [links.of(board.name) for board in boards]
        return Problem(
            segments=self.analysis.segments,
            types=device_types(self.analysis, self.measured, boards),
            links=tuple(tuple(between(u, v) for v in known) for u in known),
            entries=tuple(map(entry, known)),
            exits=tuple(map(leaving, known)),
            input_bytes=sum(tensor.size for tensor in self.analysis.inputs),
        )

    def wired(self, name: str, epoch: int, partition: Partition) -> Wired:
        """A plan to be put on devices, with its stages' files."""
        files = [self.file((stage.first, stage.last)) for stage in partition.stages]
        parts = tuple(
            Part(file, self.folder / file.filename, stage.devices)
            for file, stage in zip(files, partition.stages, strict=True)
        )
        return Wired(name, epoch, parts, credits_for(partition))


def policies(cut: Cut, boards: tuple[Board, ...], links: LinkBook, watch: Stopwatch) -> Planned:
    """The plan of each policy from the segments' times, as the control plane makes it first, and
    Shoal's once the stages that it chose were measured: a few rounds until the choice stays."""
    problem = cut.problem(boards, links)
    factors = {board.name: board.factor for board in boards}
    first = solve(problem)
    outcome, rounds = first, 0
    while outcome.best is not None and rounds < _ROUNDS:
        known = dict(problem.known_ms)
        for plan in (outcome.best, outcome.single):
            for stage in plan.stages if plan is not None else ():
                file = cut.file((stage.first, stage.last))
                ms = watch.milliseconds(file, cut.folder / file.filename)
                for kind, device in enumerate(problem.types):
                    known[stage.first, stage.last, kind] = ms * factors[device.name]
        if known == problem.known_ms:
            break
        problem, rounds = replace(problem, known_ms=known), rounds + 1
        outcome = solve(problem)
    plans: dict[str, Partition | None] = {SHOAL: outcome.best, SINGLE: outcome.single}
    for name, rule in RULES.items():
        stages: Stages | None = rule(problem)
        plans[name] = evaluate(problem, stages) if stages is not None else None
    return Planned(plans, first.best, outcome.reason)


def describe(partition: Partition) -> str:
    """Stages in words, as "0-12 on board-1 | 12-30 on board-3, board-4"."""
    return " | ".join(
        f"{stage.first}-{stage.last} on {', '.join(stage.devices)}" for stage in partition.stages
    )


def same_work(a: Partition, b: Partition) -> bool:
    """Whether two plans put the same stages on the same devices."""

    def work(p: Partition) -> list[tuple[int, int, tuple[str, ...]]]:
        return [(stage.first, stage.last, stage.devices) for stage in p.stages]

    return work(a) == work(b)
