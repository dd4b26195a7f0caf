"""`shoal plan`: how a model would be cut over the fleet as it is now; changes nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal_controlplane.cli import shards, units
from shoal_controlplane.cli.client import CHECK_S, Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    key_values,
    model_reference,
)
from shoal_controlplane.cli.output import NONE, Block, Table, emit, facts
from shoal_controlplane.cli.views import Partition, Plan, Stage, read

PLANS = "/api/v1/plans"
MOST_CUTS = 12
MOST_NAME = 34
_PARTS = "from parts"
"""Times of a stage that was not measured itself, but others on its board."""


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("plan")(plan_model)


def plan_model(
    model: Annotated[str, typer.Argument(metavar="MODEL[:V]", help="By default the newest.")],
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="K=V", help="Only devices with this label, repeatable."),
    ] = None,
    objective: shards.ObjectiveOption = None,
    stages: Annotated[
        str,
        typer.Option(
            "--shards", metavar="auto|N", help="So many stages; auto takes the best number."
        ),
    ] = "auto",
    shape: shards.ShapeOption = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also the runners-up, the boards and where cuts are cheap."),
    ] = False,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Show how a model would be cut over devices, and what that would bring; changes nothing.

    Prints the stages and their devices, the bytes over each link, throughput and latency beside
    those of the best single device, and why. Fails where the model fits nowhere.
    """
    name, version = model_reference(model)
    body = {
        "model": name,
        "version": version,
        "select": key_values(select or []) or None,
        "objective": objective.value if objective else None,
        "shards": shards.stage_count(stages),
        "shapes": shards.shapes(shape or []) or None,
    }
    given = {key: value for key, value in body.items() if value is not None}
    with Client(server) as client:
        document = client.send("POST", PLANS, given, CHECK_S)
    plan = read(Plan, document)
    if plan.plan is not None or output is not Format.TABLE:
        emit(output, document, lambda: _blocks(plan, explain))
    if plan.plan is None:
        raise CliError(_no_plan(plan))


def _blocks(plan: Plan, explain: bool) -> list[Block]:
    best = plan.plan
    if best is None:
        return []
    blocks: list[Block] = [_heading(plan, best), _stages(plan, best), _links(plan, best)]
    blocks += [
        facts(
            [
                *shards.figures(best, plan.single, best.stages),
                ("shapes", _shapes(plan)),
                ("proof", _proof(best)),
            ]
        ),
        plan.why[:1].upper() + plan.why[1:],
        *(f"note: {note}" for note in plan.notes),
    ]
    return [*blocks, *_explained(plan)] if explain else blocks


def _heading(plan: Plan, best: Partition) -> str:
    """As in "ppocr-rec:1 for throughput: 2 stages on 3 devices, of 24 segments"."""
    stages = len(best.stages)
    devices = shards.devices_of(best.stages)
    return (
        f"{plan.model}:{plan.version} for {plan.objective}: {_count(stages, 'stage')} on "
        f"{_count(devices, 'device')}, cut from {_count(plan.segments, 'segment')}"
    )


def _stages(plan: Plan, best: Partition) -> Table:
    header = ("STAGE", "DEVICES", "SEGMENTS", "COMPUTE", "TIME IS", "MEMORY")
    rows = [
        (
            str(stage.index),
            ", ".join(stage.devices),
            stage.span,
            units.milliseconds(stage.compute_ms),
            _basis(plan, stage),
            units.size(stage.memory_bytes),
        )
        for stage in best.stages
    ]
    return Table(header, rows)


def _links(plan: Plan, best: Partition) -> Table:
    """Bytes over each link; a link between stages with the node after which the model is cut."""
    after = {cut.segment: cut.after for cut in plan.cuts}
    nodes = [NONE, *(after.get(stage.last - 1, NONE) for stage in best.stages[:-1]), NONE]
    rows = [
        (f"{link.source} -> {link.target}", units.size(link.bytes), units.milliseconds(link.ms),
         _shortened(node))
        for link, node in zip(plan.links, nodes, strict=False)
    ]  # fmt: skip
    return Table(("LINK", "BYTES", "TIME", "CUT AFTER"), rows)


def _explained(plan: Plan) -> list[Block]:
    """Runners-up, boards, and the cheapest places to cut."""
    blocks: list[Block] = []
    if plan.others:
        latency = plan.objective == "latency"
        rows = [
            (
                " -> ".join(f"{', '.join(s.devices)} ({s.span})" for s in other.stages),
                units.milliseconds(other.latency_ms)
                if latency
                else shards.rate(other.throughput_per_s),
                other.bottleneck,
            )
            for other in plan.others
        ]
        header = ("DEVICES (SEGMENTS)", "LATENCY" if latency else "RATE", "BOTTLENECK")
        blocks += ["Runners-up, best first:", Table(header, rows)]
    else:
        blocks.append("No other plan fits.")
    boards = [
        (board.board, str(len(board.devices)), board.basis, units.size(board.memory_bytes))
        for board in plan.boards
    ]
    columns = ("BOARD", "DEVICES", "TIMES ARE", "FREE ON EACH")
    blocks += ["Boards that could take part:", Table(columns, boards)]
    if plan.cuts:
        blocks += [_cuts_line(plan), _cuts(plan)]
    return blocks


def _cuts_line(plan: Plan) -> str:
    shown = min(MOST_CUTS, len(plan.cuts))
    places = _count(len(plan.cuts), "place")
    return f"Where few bytes cross, {shown} of {places} to cut, with what lies before each:"


def _cuts(plan: Plan) -> Table:
    """The narrowest cuts in their order in the graph; those that the plan uses are marked."""
    used = {stage.last - 1 for stage in plan.plan.stages} if plan.plan else set()
    cheapest = sorted(plan.cuts, key=lambda cut: (cut.segment not in used, cut.bytes))[:MOST_CUTS]
    rows = [
        (
            str(cut.segment),
            _shortened(cut.after),
            units.size(cut.bytes),
            str(cut.tensors),
            units.percent(cut.work),
            units.size(cut.weight_bytes),
            "cut here" if cut.segment in used else "",
        )
        for cut in sorted(cheapest, key=lambda cut: cut.segment)
    ]
    header = ("SEGMENT", "AFTER", "BYTES", "TENSORS", "WORK", "WEIGHTS", "")
    return Table(header, rows)


def _basis(plan: Plan, stage: Stage) -> str:
    if stage.measured:
        return "measured"
    basis = next((b.basis for b in plan.boards if set(stage.devices) & set(b.devices)), NONE)
    return _PARTS if basis == "measured" else basis


def _proof(best: Partition) -> str:
    if best.gap_percent < 0.05:
        return f"the best plan there is ({best.method})"
    return f"at most {best.gap_percent:.1f} % from the best plan there is ({best.method})"


def _shapes(plan: Plan) -> str:
    return ", ".join(
        f"{name}={'x'.join(map(str, shape))}" for name, shape in sorted(plan.shapes.items())
    )


def _no_plan(plan: Plan) -> str:
    """As in "there is no plan for m:1: needs 900 MB …: free memory on devices, or add one"."""
    remedy = ": free memory on devices, or add one" if plan.missing_bytes else ""
    return f"there is no plan for {plan.model}:{plan.version}: {plan.reason.rstrip('.')}{remedy}"


def _shortened(name: str) -> str:
    """The end of a long name, which is what tells nodes apart."""
    return name if len(name) <= MOST_NAME else f"…{name[1 - MOST_NAME :]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
