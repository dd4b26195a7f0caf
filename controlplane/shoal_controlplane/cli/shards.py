"""Options of sharded models, and how pipelines are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from shoal_controlplane.cli import units
from shoal_controlplane.cli.output import NONE, Block, State, Table, facts
from shoal_controlplane.cli.views import ActivePlan, Predicted, Single, Stage
from shoal_controlplane.planner.partition.problem import Objective

MAX_SHARDS = 32
MAX_RANK = 8
MAX_SIZE = 1_000_000

ObjectiveOption = Annotated[
    Objective | None,
    typer.Option(
        "--objective",
        help="What a plan is to be best in: requests a second, the default, or the time of one.",
        show_choices=True,
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1x3x48x320",
        help="Shape of an input whose sizes the model leaves open, repeatable.",
    ),
]


def stage_count(text: str | None) -> int | str | None:
    """`auto`, or a number of stages."""
    if text is None or text == "auto":
        return text
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MAX_SHARDS:
        raise typer.BadParameter(
            f"{text[:80]!r} is no number of stages: use auto or 1 to {MAX_SHARDS}."
        )
    return int(text)


def shapes(texts: Iterable[str]) -> dict[str, list[int]]:
    """`NAME=1x3x48x320` texts as shapes by input."""
    found: dict[str, list[int]] = {}
    for text in texts:
        name, sign, sizes = text.rpartition("=")
        parts = sizes.split("x")
        if not name or not sign or len(parts) > MAX_RANK or not all(map(_is_size, parts)):
            raise typer.BadParameter(
                f"{text[:80]!r} is no shape: use NAME=1x3x48x320, each size 1 to {MAX_SIZE}."
            )
        found[name] = [int(part) for part in parts]
    return found


def chain(stages: Iterable[Sequence[str]]) -> str:
    """Devices of stages in their order: "a -> b, c -> d"."""
    return " -> ".join(", ".join(devices) for devices in stages)


def rate(per_s: float) -> str:
    """Requests a second with three figures: 4.21/s, 83.1/s, 1250/s."""
    digits = 2 if per_s < 9.995 else 1 if per_s < 99.95 else 0
    return f"{per_s:.{digits}f}/s"


def devices_of(stages: Iterable[Stage]) -> int:
    """Devices of all stages."""
    return len({device for stage in stages for device in stage.devices})


def figures(
    predicted: Predicted, single: Single | None, stages: Sequence[Stage]
) -> list[tuple[str, str]]:
    """Predicted figures of stages on their devices, beside those of the best single device."""
    beside = slower = ""
    if single is None:
        beside = slower = ", no single device can hold the model"
    elif devices_of(stages) > 1:
        times = predicted.throughput_per_s / single.throughput_per_s
        beside = f", {rate(single.throughput_per_s)} on {single.device} alone ({times:.2f}x)"
        slower = f", {units.milliseconds(single.latency_ms)} on {single.device} alone"
    return [
        ("throughput", f"{rate(predicted.throughput_per_s)}{beside}"),
        ("latency", f"{units.milliseconds(predicted.latency_ms)}{slower}"),
        ("bottleneck", predicted.bottleneck),
    ]


def running(plan: ActivePlan) -> list[Block]:
    """A plan that runs: its stages on their devices, what is predicted, what takes over."""
    if not plan.stages:
        return [f"no stages yet: {plan.reason or plan.state}"]
    blocks: list[Block] = [Table(_HEADER, [row for stage in plan.stages for row in _rows(stage)])]
    pairs = figures(plan.predicted, plan.single, plan.stages) if plan.predicted else []
    if plan.credits:
        packed = f", activations as {plan.compression}" if plan.compression else ""
        pairs.append(("under way", f"up to {plan.credits} requests at once{packed}"))
    if plan.spares:
        pairs.append(("spares", "; ".join(_held(s.device, s.stages) for s in plan.spares)))
    blocks.append(facts(pairs))
    if plan.fallbacks:
        rows = [
            (f.lost, str(f.epoch), chain(f.devices), rate(f.throughput_per_s))
            for f in plan.fallbacks
        ]
        blocks += ["What takes over at once:", Table(("IF LOST", "EPOCH", "DEVICES", "RATE"), rows)]
    else:
        blocks.append(
            "no fallback is ready: if a device goes, its stages are loaded elsewhere first"
        )
    return blocks


_HEADER = ("STAGE", "DEVICE", "STATE", "SEGMENTS", "COMPUTE", "TIME IS", "MEMORY", "SENDS")


def _rows(stage: Stage) -> list[tuple[str, ...]]:
    return [
        (
            str(stage.index),
            part.device,
            State(part.state),
            stage.span,
            units.milliseconds(stage.compute_ms),
            "measured" if stage.measured else "predicted",
            units.size(stage.memory_bytes),
            NONE if stage.out_bytes is None else units.size(stage.out_bytes),
        )
        for part in stage.parts
    ]


def _held(device: str, stages: Sequence[int]) -> str:
    noun = "stage" if len(stages) == 1 else "stages"
    return f"{device} holds {noun} {', '.join(map(str, stages)) or NONE} as well"


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 7 and 1 <= int(text) <= MAX_SIZE
