"""From an assignment of stages to devices to a plan with its figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from shoal_controlplane.planner.partition.problem import Partition, Problem, Stage
from shoal_controlplane.planner.partition.tables import Choice

Assignment: TypeAlias = tuple[int, int, int, tuple[str, ...]]
"""A stage: segments [first, last), type, and devices of that type."""


def evaluate(problem: Problem, stages: Sequence[Assignment]) -> Partition:
    """The figures of a plan, whether it is good or not.

    Replicas share the requests of a stage equally. A device receives, computes and sends at the
    same time, so that the busiest of the three on any device is the bottleneck; the two ends of a
    link count each for itself. Devices that serve several stages do their work one after the
    other. Raises `ValueError` if the stages do not cover the model in order, or name a device
    that is not of their type.
    """
    _check(problem, stages)
    length = len(problem.segments)
    receive: dict[str, float] = defaultdict(float)
    compute: dict[str, float] = defaultdict(float)
    send: dict[str, float] = defaultdict(float)
    result: list[Stage] = []
    latency = 0.0
    for n, (first, last, kind, devices) in enumerate(stages):
        incoming = problem.links[stages[n - 1][2]][kind] if n else problem.entries[kind]
        at_end = last == length
        outgoing = problem.exits[kind] if at_end else problem.links[kind][stages[n + 1][2]]
        stage = Stage(
            first=first,
            last=last,
            kind=kind,
            devices=devices,
            compute_ms=problem.compute_ms(first, last, kind),
            receive_ms=incoming.transfer_ms(problem.in_bytes(first)),
            send_ms=outgoing.transfer_ms(problem.out_bytes(last)),
            memory_bytes=problem.memory_bytes(first, last, kind),
            in_bytes=problem.in_bytes(first),
            out_bytes=problem.out_bytes(last),
        )
        result.append(stage)
        latency += incoming.latency_ms + stage.receive_ms + stage.compute_ms
        if at_end:
            latency += stage.send_ms + outgoing.latency_ms
        for device in devices:
            receive[device] += stage.receive_ms / len(devices)
            compute[device] += stage.compute_ms / len(devices)
            send[device] += stage.send_ms / len(devices)
    busiest = max((*receive.values(), *compute.values(), *send.values()))
    return Partition(tuple(result), busiest, latency, bound_ms=0.0, method="given")


def _check(problem: Problem, stages: Sequence[Assignment]) -> None:
    at = 0
    for first, last, kind, devices in stages:
        if first != at or last <= first:
            raise ValueError("the stages do not cover the segments of the model in order")
        if not devices or len(set(devices)) != len(devices):
            raise ValueError(f"stage [{first}, {last}) needs devices, each of them once")
        if not 0 <= kind < len(problem.types):
            raise ValueError(f"stage [{first}, {last}) is on a type that does not exist")
        strange = sorted(set(devices) - set(problem.types[kind].devices))
        if strange:
            raise ValueError(f"{strange[0]!r} is no device of type {problem.types[kind].name!r}")
        at = last
    if at != len(problem.segments):
        raise ValueError("the stages do not cover the segments of the model in order")


def hand_out(problem: Problem, choices: Iterable[Choice]) -> list[Assignment]:
    """Devices for `choices`, in the order of the fleet, each at most once."""
    left = [iter(kind.devices) for kind in problem.types]
    return [
        (first, last, kind, tuple(next(left[kind]) for _ in range(replicas)))
        for first, last, kind, replicas in choices
    ]
