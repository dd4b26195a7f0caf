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
"""A stage that takes so many times what was planned is slow, and so are links."""
SLOW_FLOOR_MS = 5.0
SLOW_LINKS_FLOOR_MS = 50.0
"""Below these nothing counts as slow: the machine was busy with something else."""

BAD_REPLIES = 3
"""A device that is slow, or fails where others do not, in so many replies on end is left out."""

DOUBT_S = 10.0
"""How long after a doubt about the links of a plan there is no other."""

MAX_WAITING = 1024
"""Requests that wait for a credit of one pipeline."""

W = TypeVar("W")

Abandoned = Callable[[Pipeline, str, str], None]
"""Told of a pipeline that is no longer used, the device that is to blame, and why."""

Doubted = Callable[[Pipeline], None]
"""Told of a pipeline whose links take much longer than was planned, as it seems."""


@dataclass(slots=True)
class Flow(Generic[W]):
    """Requests of this gateway in one epoch: how many are under way, and who waits for a credit."""

    pipeline: Pipeline
    in_flight: int = 0
    waiting: deque[W] = field(default_factory=deque)


class Pipelines(Generic[W]):
    """State of all pipelines at one gateway. Pure but for the callbacks in `listeners`, of
    epochs that end, and `doubters`, of links that seem slow."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, int], Flow[W]] = {}
        self._gone: set[str] = set()
        self._abandoned: set[tuple[str, int]] = set()
        self._bad: dict[tuple[str, int, str], int] = {}
        self._slow_links: dict[tuple[str, int], int] = {}
        self._doubted: dict[str, float] = {}
        self._turns: dict[tuple[str, int], list[float]] = {}
        self.listeners: list[Abandoned] = []
        self.doubters: list[Doubted] = []

    def usable(
        self,
        replicas: Iterable[Replica],
        tried: Collection[str],
        failed: Collection[str] = (),
    ) -> list[Replica]:
        """Devices as they are, and of each plan the first epoch that may be used, was not tried,
        and has none of the devices that `failed`."""
        found: list[Replica] = []
        plans: set[str] = set()
        for replica in replicas:
            pipeline = replica.pipeline
            if pipeline is None:
                found.append(replica)
            elif (
                pipeline.plan not in plans
                and replica.device not in tried
                and not pipeline.devices.intersection(failed)
                and self._open(pipeline)
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
        for plan in {flow.pipeline.plan for flow in self._flows.values()}:
            self._leave_out(plan, device, reason)

    def _leave_out(self, plan: str, device: str, reason: str) -> None:
        """Use no epoch of a plan that a device is in."""
        # The last ones first: what is sent again must not go to one that is about to end.
        for flow in sorted(self._flows.values(), key=lambda f: -f.pipeline.epoch):
            if flow.pipeline.plan == plan and device in flow.pipeline.devices:
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

    def observe(
        self, pipeline: Pipeline, trace: Sequence[Any], taken_ms: float, now: float
    ) -> None:
        """A reply, the time that it took, and what the stages told of themselves.

        A device that is slow time after time, and not merely with all others, ends its epoch if
        another one can take over. Links that seem slow are doubted.
        """
        steps = _steps(trace)
        ratios = [
            step.service_ms / max(planned, 1e-3)
            for step, planned in zip(steps, pipeline.stage_ms, strict=False)
        ]
        for stage, (ratio, step) in enumerate(zip(ratios, steps, strict=False)):
            others = ratios[:stage] + ratios[stage + 1 :]
            usual = max(1.0, median(others)) if others else 1.0
            if step.service_ms <= SLOW_FLOOR_MS or ratio <= SLOW_FACTOR * usual:
                self._bad.pop((pipeline.plan, pipeline.epoch, step.device), None)
            else:
                self.bad(pipeline, step.device, f"stage {stage} is {ratio:.0f} times too slow")
        if steps:
            links_ms = taken_ms - sum(step.wait_ms + step.service_ms for step in steps)
            self._observe_links(pipeline, links_ms, now)

    def bad(self, pipeline: Pipeline, device: str, reason: str) -> None:
        """A device was slow, or failed with a request that others answered: after some times on
        end its epoch is over, if another one can take over."""
        key = (pipeline.plan, pipeline.epoch, device)
        self._bad[key] = self._bad.get(key, 0) + 1
        if (
            self._bad[key] >= BAD_REPLIES
            and device in pipeline.devices
            and self._has_another(pipeline, device)
        ):
            self._leave_out(pipeline.plan, device, reason)

    def doubt(self, pipeline: Pipeline, now: float) -> None:
        """A pipeline takes long, or says nothing, although its devices are there."""
        if now - self._doubted.get(pipeline.plan, -DOUBT_S) >= DOUBT_S:
            self._doubted[pipeline.plan] = now
            for doubter in self.doubters:
                doubter(pipeline)

    def _observe_links(self, pipeline: Pipeline, links_ms: float, now: float) -> None:
        key = (pipeline.plan, pipeline.epoch)
        if links_ms <= max(SLOW_LINKS_FLOOR_MS, SLOW_FACTOR * pipeline.links_ms):
            self._slow_links.pop(key, None)
            return
        self._slow_links[key] = self._slow_links.get(key, 0) + 1
        if self._slow_links[key] >= BAD_REPLIES:
            self.doubt(pipeline, now)

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
        self._bad = {key: count for key, count in self._bad.items() if key[:2] in self._flows}
        self._slow_links = {k: count for k, count in self._slow_links.items() if k in self._flows}
        plans = {plan for plan, _ in self._flows}
        self._doubted = {plan: at for plan, at in self._doubted.items() if plan in plans}

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


@dataclass(frozen=True, slots=True)
class _Step:
    """What a stage told of a request."""

    device: str
    wait_ms: float
    service_ms: float


def _steps(trace: Sequence[Any]) -> list[_Step]:
    """The steps of a request; empty where a trace is not one."""
    found: list[_Step] = []
    for entry in trace:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
            return []
        if any(isinstance(us, bool) or not isinstance(us, int | float) for us in entry[1:]):
            return []
        found.append(_Step(entry[0], entry[1] / 1e3, entry[2] / 1e3))
    return found
