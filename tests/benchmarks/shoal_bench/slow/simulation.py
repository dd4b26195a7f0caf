"""The real dispatcher, router and hedging against simulated devices, in virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from support.virtual_time import VirtualTimeLoop

from shoal_bench.router.scenario import Scenario
from shoal_bench.router.simulation import HOP_MS, Policy, Simulation
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.router import Router
from shoal_controlplane.gateway.table import Replica
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.profiles import fit
from shoal_shared.publish import CANCEL, Handler, Message, PublishProperties, decode_publish
from shoal_shared.topics import Topics

TOPICS = Topics("bench")
TIMEOUT_S = 60.0


@dataclass(slots=True)
class Trace:
    """What became of a scenario's requests, in the order of arrival, times in ms; `sent` are
    (moment, device) of each attempt."""

    sojourn: list[float]
    sent: list[tuple[float, int]] = field(default_factory=list)
    hedges: int = 0
    won: int = 0


@dataclass(slots=True)
class _Waiting:
    """A request at a device."""

    number: int
    message: Message
    begun: bool = False


class _Devices:
    """The link of a gateway. Each device computes one request at a time, first come, first
    served, and drops what is cancelled before it begins."""

    def __init__(self, scenario: Scenario, trace: Trace) -> None:
        self._scenario = scenario
        self._trace = trace
        self._loop = asyncio.get_running_loop()
        self.began = self._loop.time()
        self._queues: list[deque[_Waiting]] = [deque() for _ in scenario.fleet]
        self._handler: Handler | None = None
        self.number = 0
        """The request whose attempt is published now."""

    @property
    def connected(self) -> bool:
        return True

    def subscribe(self, topic_filter: str, qos: int, handler: Handler) -> None:
        self._handler = handler

    def on_connection(self, callback: object) -> None:
        """The connection stays."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> bool:
        assert properties is not None
        name = topic.encode()
        head = len(name).to_bytes(2, "big") + name + properties.pack()
        message = decode_publish(0, head)
        parsed = TOPICS.parse_device(topic)
        assert parsed is not None
        device = int(parsed[0].removeprefix("d"))
        if CANCEL in message.user_properties:
            self._later(HOP_MS, partial(self._cancel, device, message))
        else:
            number = oip.decode_request(payload, int(message.user_properties[oip.HEADER_LENGTH])).id
            assert number is not None
            self._trace.sent.append((self.now(), device))
            self._later(HOP_MS, partial(self._reach, device, _Waiting(int(number), message)))
        return True

    def now(self) -> float:
        return (self._loop.time() - self.began) * 1e3

    def _later(self, ms: float, action: partial[None]) -> None:
        self._loop.call_later(ms / 1e3, action)

    def _reach(self, device: int, request: _Waiting) -> None:
        self._queues[device].append(request)
        if len(self._queues[device]) == 1:
            self._start(device)

    def _cancel(self, device: int, message: Message) -> None:
        queue = self._queues[device]
        for request in queue:
            if request.message.correlation == message.correlation and not request.begun:
                queue.remove(request)
                return

    def _start(self, device: int) -> None:
        if not self._queues[device]:
            return
        request = self._queues[device][0]
        request.begun = True
        scenario = self._scenario
        took = scenario.fleet[device] * scenario.jitter[request.number]
        took *= scenario.slowdown(device, self.now())
        self._later(took, partial(self._finish, device, took))

    def _finish(self, device: int, took: float) -> None:
        request = self._queues[device].popleft()
        figures = {"queue_depth": len(self._queues[device]), "batch": 1}
        figures["service_us"] = round(took * 1e3)
        buffers, length = oip.encode_reply(InferReply([], parameters=figures))
        topic = request.message.response_topic
        assert topic is not None
        reply = Message(
            topic,
            b"".join(buffers),
            correlation=request.message.correlation,
            user_properties={oip.HEADER_LENGTH: str(length)} if length is not None else {},
        )
        assert self._handler is not None
        self._later(HOP_MS, partial(self._handler, reply))
        self._start(device)


def run_shoal(scenario: Scenario, seed: int, *, hedges: bool) -> Trace:
    """Every request of a scenario through one gateway."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_run_shoal(scenario, seed, hedges))


async def _run_shoal(scenario: Scenario, seed: int, hedges: bool) -> Trace:
    loop = asyncio.get_running_loop()
    trace = Trace([0.0] * len(scenario.arrivals))
    devices = _Devices(scenario, trace)
    router = Router(rng=random.Random(seed))
    dispatcher = Dispatcher(devices, TOPICS, "g", router, loop.time)
    replicas = [Replica(f"d{n}", fit([(1, ms)])) for n, ms in enumerate(scenario.fleet)]
    data = np.zeros((1, 1), np.uint8)

    async def ask(number: int) -> None:
        began = loop.time()
        request = InferRequest([Tensor("x", "UINT8", data)], [], "resnet50", "1", str(number))
        await dispatcher.call(request, lambda: replicas, 1, began + TIMEOUT_S, hedges=hedges)
        trace.sojourn[number] = (loop.time() - began) * 1e3

    tasks = []
    for number, arrival in enumerate(scenario.arrivals):
        await asyncio.sleep(devices.began + arrival / 1e3 - loop.time())
        tasks.append(asyncio.create_task(ask(number)))
    await asyncio.gather(*tasks)
    trace.hedges, trace.won = dispatcher.hedges.sent, dispatcher.hedges.won
    return trace


class _Recorded:
    """A policy whose choices are kept."""

    def __init__(self, policy: Policy, trace: Trace) -> None:
        self._policy = policy
        self._trace = trace
        self.answered = policy.answered
        self.dropped = policy.dropped

    def pick(self, request: int, now: float) -> int | None:
        device = self._policy.pick(request, now)
        if device is not None:
            self._trace.sent.append((now, device))
        return device


def run_peer(simulation: Simulation, policy: Policy) -> Trace:
    """Every request of a simulation by another policy; the times of the warm-up are not known."""
    trace = Trace([])
    known = simulation.run([_Recorded(policy, trace)])
    unknown = len(simulation.scenario.arrivals) - len(known)
    trace.sojourn = [math.nan] * unknown + known
    return trace
