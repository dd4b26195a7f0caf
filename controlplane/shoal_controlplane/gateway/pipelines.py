"""What the gateway knows of pipelines: which epochs may be used, credits, and slow stages.

An epoch is abandoned for good once one of its devices is gone or to be avoided: its requests are
sent again elsewhere, and whatever it still answers finds nobody. The control plane wires new
epochs; those that were wired ahead take over at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

from shoal_controlplane.gateway.table import Pipeline, Replica

SLOW_FACTOR = 5.0
"""A stage that takes so many times what was planned, in `SLOW_REPLIES` replies on end, is slow."""
SLOW_REPLIES = 3
SLOW_FLOOR_MS = 5.0
"""Below this nothing counts as slow: the machine was busy with something else."""

MAX_WAITING = 1024
"""Requests that wait for a credit of one pipeline."""

W = TypeVar("W")

Abandoned = Callable[[Pipeline, str, str], None]
"""Told of a pipeline that is no longer used, the device that is to blame, and why."""


@dataclass(slots=True)
class Flow(Generic[W]):
    """Requests of this gateway in one epoch: how many are under way, and who waits for a credit."""

    pipeline: Pipeline
    in_flight: int = 0
    waiting: deque[W] = field(default_factory=deque)


class Pipelines(Generic[W]):
    """State of all pipelines at one gateway. Pure but for the callbacks in `listeners`."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, int], Flow[W]] = {}
        self._gone: set[str] = set()
        self._abandoned: set[tuple[str, int]] = set()
        self._late: dict[tuple[str, int, int], int] = {}
        self._turns: dict[tuple[str, int], list[float]] = {}
        self.listeners: list[Abandoned] = []

    def usable(self, replicas: Iterable[Replica], tried: Collection[str]) -> list[Replica]:
        """Devices as they are, and of each plan the first epoch that may be used and was not
        tried."""
        found: list[Replica] = []
        plans: set[str] = set()
        for replica in replicas:
            pipeline = replica.pipeline
            if pipeline is None:
                found.append(replica)
            elif (
                pipeline.plan not in plans and replica.device not in tried and self._open(pipeline)
            ):
                plans.add(pipeline.plan)
                found.append(replica)
        return found

    def left(self, device: str, reason: str) -> None:
        """A device went: until it is back, no epoch with it is used."""
        self._gone.add(device)
        self.suspect(device, reason)

    def suspect(self, device: str, reason: str) -> None:
        """A device has a session, but does not answer: the epochs that it is in are over."""
        for flow in list(self._flows.values()):
            if device in flow.pipeline.devices:
                self.abandon(flow.pipeline, device, reason)

    def returned(self, device: str) -> None:
        """The device may be part of epochs that were not abandoned."""
        self._gone.discard(device)

    def abandon(self, pipeline: Pipeline, device: str, reason: str) -> None:
        """Use an epoch no more."""
        key = (pipeline.plan, pipeline.epoch)
        if key not in self._abandoned:
            self._abandoned.add(key)
            for listener in self.listeners:
                listener(pipeline, device, reason)

    def is_abandoned(self, pipeline: Pipeline) -> bool:
        return (pipeline.plan, pipeline.epoch) in self._abandoned

    def enter(self, pipeline: Pipeline) -> bool:
        """Take a credit; False if all are taken."""
        flow = self._flow(pipeline)
        if flow.in_flight >= pipeline.credits:
            return False
        flow.in_flight += 1
        return True

    def wait(self, pipeline: Pipeline, who: W) -> bool:
        """Queue for a credit; False if too many wait already."""
        flow = self._flow(pipeline)
        if len(flow.waiting) >= MAX_WAITING:
            return False
        flow.waiting.append(who)
        return True

    def leave(self, pipeline: Pipeline) -> None:
        """Give a credit back."""
        flow = self._flow(pipeline)
        flow.in_flight = max(0, flow.in_flight - 1)

    def next_waiting(self, pipeline: Pipeline) -> W | None:
        """Whoever has waited longest for a credit that is free now."""
        flow = self._flow(pipeline)
        if flow.waiting and flow.in_flight < pipeline.credits:
            return flow.waiting.popleft()
        return None

    def waiting(self, pipeline: Pipeline) -> list[W]:
        """Take out all who wait for a credit."""
        flow = self._flow(pipeline)
        waiting, flow.waiting = list(flow.waiting), deque()
        return waiting

    def entry(self, pipeline: Pipeline) -> int:
        """The replica of the first stage that gets the next request: smooth weighted round
        robin."""
        if len(pipeline.shares) < 2:
            return 0
        key = (pipeline.plan, pipeline.epoch)
        turns = self._turns.setdefault(key, [0.0] * len(pipeline.shares))
        for index, share in enumerate(pipeline.shares):
            turns[index] += share
        best = max(range(len(turns)), key=lambda i: turns[i])
        turns[best] -= sum(pipeline.shares)
        return best

    def observe(self, pipeline: Pipeline, trace: Sequence[Any]) -> None:
        """What the stages told of themselves: one that is slow time after time, and not merely
        with all others, ends its epoch if another one can take over."""
        times = _service_ms(trace)
        ratios = [ms / max(p, 1e-3) for ms, p in zip(times, pipeline.stage_ms, strict=False)]
        for stage, (ratio, service_ms) in enumerate(zip(ratios, times, strict=False)):
            key = (pipeline.plan, pipeline.epoch, stage)
            others = ratios[:stage] + ratios[stage + 1 :]
            usual = max(1.0, median(others)) if others else 1.0
            if service_ms <= SLOW_FLOOR_MS or ratio <= SLOW_FACTOR * usual:
                self._late.pop(key, None)
                continue
            self._late[key] = self._late.get(key, 0) + 1
            device = trace[stage][0]
            if (
                self._late[key] >= SLOW_REPLIES
                and device in pipeline.devices
                and self._has_another(pipeline, device)
            ):
                self.abandon(pipeline, device, f"stage {stage} is {ratio:.0f} times too slow")

    def learn(self, listed: Iterable[Pipeline]) -> None:
        """Epochs that the table lists now; others are forgotten once nothing is under way in
        them."""
        live = {(pipeline.plan, pipeline.epoch): pipeline for pipeline in listed}
        for key in self._flows.keys() - live.keys():
            flow = self._flows[key]
            if not flow.in_flight and not flow.waiting:
                del self._flows[key]
        for pipeline in live.values():
            self._flow(pipeline)
        self._abandoned &= self._flows.keys()
        self._turns = {key: turns for key, turns in self._turns.items() if key in self._flows}
        self._late = {key: count for key, count in self._late.items() if key[:2] in self._flows}

    def _has_another(self, pipeline: Pipeline, device: str) -> bool:
        """Whether another epoch of the plan could take over, without the device."""
        return any(
            flow.pipeline.plan == pipeline.plan
            and device not in flow.pipeline.devices
            and self._open(flow.pipeline)
            for flow in self._flows.values()
        )

    def _open(self, pipeline: Pipeline) -> bool:
        return not self.is_abandoned(pipeline) and not (pipeline.devices & self._gone)

    def _flow(self, pipeline: Pipeline) -> Flow[W]:
        key = (pipeline.plan, pipeline.epoch)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(pipeline)
        return flow


def _service_ms(trace: Sequence[Any]) -> list[float]:
    """Compute times of the stages; empty where a trace is not one."""
    found: list[float] = []
    for entry in trace:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
            return []
        if isinstance(entry[2], bool) or not isinstance(entry[2], int | float):
            return []
        found.append(entry[2] / 1e3)
    return found
