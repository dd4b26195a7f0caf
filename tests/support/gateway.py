"""A fleet for tests of the gateway: a link on which the test plays the devices."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from support.virtual_time import VirtualTimeLoop

from shoal_controlplane.errors import NotFoundError
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.errors import GatewayError
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.service import Gateway
from shoal_controlplane.gateway.table import Pipeline, Replica, ServedModel, ServingTable
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, RequestedOutput, Tensor
from shoal_shared.profiles import Profile, fit
from shoal_shared.publish import CANCEL, Handler, Message, PublishProperties, decode_publish
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.status import InferCode
from shoal_shared.topics import DeviceTopic, Topics

TOPICS = Topics("east")
PROFILE = fit([(1, 10.0), (2, 12.0), (4, 16.0), (8, 24.0)])


@dataclass
class Sent:
    """One request as a device, or the first stage of a pipeline "plan@epoch", receives it."""

    device: str
    request: InferRequest
    message: Message


class DeviceLink:
    """Keeps requests that were sent and hands them to `on_sent`; `answer` lets a device reply.
    `cancelled` are those that devices were told to drop."""

    def __init__(self) -> None:
        self.connected = True
        self.sent: list[Sent] = []
        self.cancelled: list[Sent] = []
        self.on_sent: Callable[[Sent], None] | None = None
        self._handlers: dict[str, Handler] = {}

    def subscribe(self, topic_filter: str, qos: int, handler: Handler) -> None:
        self._handlers[topic_filter] = handler

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        """The gateway does not ask."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> bool:
        if not self.connected:
            return False
        assert properties is not None
        name = topic.encode()
        packet = len(name).to_bytes(2, "big") + name + properties.pack() + payload
        message = decode_publish(0, packet)
        if CANCEL in message.user_properties:
            assert (payload, message.expiry_s) == (b"", 1)
            self.cancelled.append(self._named_by(message))
            return True
        length = int(message.user_properties[oip.HEADER_LENGTH])
        sent = Sent(_place(message.topic), oip.decode_request(message.payload, length), message)
        self.sent.append(sent)
        if self.on_sent is not None:
            asyncio.get_running_loop().call_soon(self.on_sent, sent)
        return True

    def _named_by(self, cancel: Message) -> Sent:
        """The request that a cancel is about, sent to the same device."""
        key = (cancel.topic, cancel.response_topic, cancel.correlation)
        (sent,) = [
            s
            for s in self.sent
            if (s.message.topic, s.message.response_topic, s.message.correlation) == key
        ]
        return sent

    def deliver(self, sent: Sent, payload: bytes, **changes: Any) -> None:
        """Anything at all as the reply to a request."""
        topic = sent.message.response_topic
        assert topic is not None
        facts: dict[str, Any] = {"correlation": sent.message.correlation}
        self._handlers[topic](Message(topic, payload, **facts | changes))

    def reply(self, sent: Sent, reply: InferReply) -> None:
        buffers, length = oip.encode_reply(reply)
        user = {} if length is None else {oip.HEADER_LENGTH: str(length)}
        self.deliver(sent, b"".join(buffers), user_properties=user)

    def answer(self, sent: Sent, *outputs: Tensor, **parameters: int) -> None:
        """A good reply: `outputs`, or else the first input under the name `y`."""
        first = sent.request.inputs[0]
        made = list(outputs) or [Tensor("y", first.datatype, first.data)]
        facts = {"queue_depth": 0, "service_us": 10_000, "batch": 1}
        self.reply(sent, InferReply(made, parameters=facts | parameters))

    def refuse(self, sent: Sent, code: InferCode, error: str = "no") -> None:
        self.reply(sent, InferReply([], error=error, code=code.value))


def _place(topic: str) -> str:
    parsed = TOPICS.parse_device(topic)
    if parsed is None:
        plans, plan, epoch, stage = topic.removeprefix(f"{TOPICS.root}/").split("/")
        assert (plans, stage.partition(".")[0]) == ("plans", "0")
        return f"{plan}@{epoch}"
    assert parsed[1] is DeviceTopic.INFER
    return parsed[0]


@dataclass
class Repository:
    """Knows the model `cat` only."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    error: Exception | None = None

    async def index(self) -> list[dict[str, str]]:
        return [{"name": "cat", "version": "1", "state": "READY", "reason": ""}]

    async def load(self, name: str) -> None:
        self._call("load", name)

    async def unload(self, name: str) -> None:
        self._call("unload", name)

    def _call(self, verb: str, name: str) -> None:
        if self.error is not None:
            raise self.error
        if name != "cat":
            raise NotFoundError(f"there is no model {name!r}: push it first")
        self.calls.append((verb, name))


class World:
    """A gateway with everything behind it. Its clock is that of the running loop."""

    def __init__(self, *devices: str) -> None:
        self.link = DeviceLink()
        self.router = Router(rng=random.Random(1))
        self.table = ServingTable()
        self.repository = Repository()
        self.replicas = tuple(Replica(d, PROFILE) for d in devices)
        self.there: set[str] | None = None
        self.dispatcher = Dispatcher(
            self.link, TOPICS, "g1", self.router, self.clock, self._alive, self.table.pipelines
        )
        self.table.subscribe(self.dispatcher.table_changed)
        self.gateway = Gateway(
            self.table,
            self.dispatcher,
            self.repository,
            clock=self.clock,
            wall_clock=lambda: 1_700_000_000.0,
        )

    def serve(self, *replicas: Replica) -> None:
        """List these for `cat`."""
        self.replicas = replicas
        self.table.publish([model(replicas=replicas)])

    async def _alive(self, devices: Collection[str], timeout_s: float) -> set[str]:
        """Devices that answer a probe: all, unless the test says which."""
        if self.there is None or set(devices) <= self.there:
            return set(devices)
        await asyncio.sleep(timeout_s)
        return set(devices) & self.there

    @staticmethod
    def clock() -> float:
        return asyncio.get_running_loop().time()

    def in_flight(self) -> dict[str, int]:
        """What the router counts as under way, per device."""
        devices = self.router._devices
        return {name: d.in_flight for name, d in devices.items() if d.in_flight}

    def failures(self, device: str) -> int:
        """What the router holds against a device that is not ejected."""
        return self.router._devices[device].failures

    def ejected(self) -> list[str]:
        return self.router.ejected(self.clock())


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def model(name: str = "cat", version: str = "1", **changes: Any) -> ServedModel:
    """`x` FP32 [N, 3] to `y` FP32 [N, 3]."""
    facts: dict[str, Any] = {
        "platform": "onnxruntime_onnx",
        "signature": ModelSignature(
            inputs=(spec("x", "FP32", -1, 3),), outputs=(spec("y", "FP32", -1, 3),)
        ),
        "max_batch": 8,
    }
    return ServedModel(name, version, **facts | changes)


def replica(device: str, profile: Profile = PROFILE) -> Replica:
    return Replica(device, profile)


def pipeline(plan: str, epoch: int, *stages: str, window: int = 4) -> Replica:
    """A pipeline of one device a stage, each planned to take 10 ms."""
    made = Pipeline(plan, epoch, tuple((s,) for s in stages), (1.0,), window, (10.0,) * len(stages))
    profile = Profile(samples=(), intercept_ms=10.0, slope_ms=10.0, knee=2**20)
    return Replica(f"{plan}@{epoch}", profile, pipeline=made)


def row(*values: float, name: str = "x") -> Tensor:
    return Tensor(name, "FP32", np.array([values], np.float32))


Task = asyncio.Task[tuple[InferReply, Ticket]]


async def begin(
    world: World, timeout_s: float = 10.0, *, idempotent: bool = True, sharded: bool = False
) -> Task:
    """A request that has been sent (or has failed already)."""
    request = InferRequest([row(1, 2, 3)], [RequestedOutput("y")], "cat", "1")
    deadline = world.clock() + timeout_s
    call = world.dispatcher.call(
        request, lambda: world.replicas, 1, deadline, idempotent=idempotent, sharded=sharded
    )
    task = asyncio.create_task(call)
    await asyncio.sleep(0)
    return task


async def failure(task: Task) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await task
    return caught.value


def nothing_left(world: World) -> bool:
    """No request is under way, as dispatcher, router and the loop in virtual time see it."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return world.dispatcher.in_flight == loop.timers == 0 and world.in_flight() == {}
