"""Devices that compute stages of plans, on a network of the test's own: no broker, no runtime."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal_agent.connectivity.session import DeviceSession
from shoal_agent.connectivity.transport import Transport
from shoal_agent.identity.device import Identity
from shoal_agent.serving.request import Answer, Done, Refusal
from shoal_agent.serving.stage import Computing, Stages
from shoal_shared import oip
from shoal_shared.messages import RoleGoal
from shoal_shared.oip import HEADER_LENGTH, InferReply, InferRequest, OipError, Tensor
from shoal_shared.publish import (
    Handler,
    Message,
    PublishProperties,
    correlation_data,
    decode_publish,
    message_expiry,
    response_topic,
    user_property,
)
from shoal_shared.signature import ModelSignature
from shoal_shared.status import InferCode
from shoal_shared.tensors import Array, TensorError
from shoal_shared.topics import Topics
from shoal_shared.validation import check_request

TOPICS = Topics("default")
REPLIES = TOPICS.replies("g1")
SERVICE_S = 0.001


class Network:
    """Delivers what is published when `deliver` is called; what nobody reads is gone."""

    def __init__(self) -> None:
        self.readers: dict[str, Handler] = {}
        self.on_its_way: deque[Message] = deque()
        self.sent: list[Message] = []
        self.up = True

    def send(self, topic: str, payload: bytes, properties: PublishProperties) -> None:
        name = topic.encode()
        packet = len(name).to_bytes(2, "big") + name + properties.pack() + payload
        message = decode_publish(0, packet)
        self.sent.append(message)
        self.on_its_way.append(message)

    def deliver(self) -> bool:
        """Deliver the oldest message; False if there is none."""
        if not self.on_its_way:
            return False
        message = self.on_its_way.popleft()
        if message.topic in self.readers:
            self.readers[message.topic](message)
        return True


class Line:
    """A device's transport on the network."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def connected(self) -> bool:
        return self._network.up

    def set_will(self, topic: str, payload: bytes) -> None:
        pass

    def subscribe(self, topic: str, qos: int, handler: Handler) -> None:
        self._network.readers[topic] = handler

    def unsubscribe(self, topic: str) -> None:
        del self._network.readers[topic]

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        pass

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> bool:
        if self.connected and properties is not None:
            self._network.send(topic, payload, properties)
        return self.connected

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


_conforms: type[Transport] = Line


@dataclass(frozen=True)
class Model:
    """A function as a model."""

    signature: ModelSignature
    run: Callable[[Mapping[str, Array]], dict[str, Array]]


@dataclass
class Computer:
    """Runs models when the test says so, in any order."""

    models: dict[str, Model] = field(default_factory=dict)
    jobs: list[tuple[Model, InferRequest, Done]] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    failed: int = 0

    @property
    def depth(self) -> int:
        return len(self.jobs)

    def signature(self, model: str, version: str) -> ModelSignature | None:
        found = self.models.get(f"{model}:{version}")
        return found.signature if found else None

    def submit(self, request: InferRequest, expires_at: float | None, done: Done) -> None:
        key = f"{request.model_name}:{request.model_version}"
        model = self.models.get(key)
        if model is None:
            done(Refusal(InferCode.NOT_FOUND, f"this device does not serve {key}"))
            return
        try:
            check_request(request, model.signature, 0)
        except OipError as error:
            done(Refusal(InferCode.INVALID, str(error)))
            return
        self.deadlines.append(expires_at)
        self.jobs.append((model, request, done))

    def finish(self, index: int = 0) -> None:
        model, request, done = self.jobs.pop(index)
        outputs = model.run({tensor.name: tensor.data for tensor in request.inputs})
        specs = model.signature.outputs
        tensors = [Tensor(spec.name, spec.datatype, outputs[spec.name]) for spec in specs]
        try:
            done(Answer(tensors, SERVICE_S, 1))
        except TensorError as error:
            self.failed += 1
            done(Refusal(InferCode.INTERNAL, str(error)))

    def fail(self, code: InferCode, error: str) -> None:
        self.jobs.pop(0)[2](Refusal(code, error))


_computes: type[Computing] = Computer


class Device:
    """The parts of an agent that stages need, as `build_agent` puts them together."""

    def __init__(self, network: Network, name: str, clock: Callable[[], float]) -> None:
        self.computer = Computer()
        session = DeviceSession(
            Line(network),
            TOPICS.fleet,
            Identity(name, "boot"),
            on_desired=lambda _: None,
            infer=lambda *_: None,
            cancel=lambda _: None,
            on_connection=lambda _: None,
            clock=clock,
        )
        self.stages = Stages(self.computer, session, TOPICS, name, clock=clock)

    def assign(self, *roles: RoleGoal) -> None:
        self.stages.assign(roles)


class Gateway:
    """Sends requests of a whole model to the first stage, and keeps what comes back."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.replies: dict[bytes, list[InferReply]] = {}
        network.readers[REPLIES] = self._take

    def send(
        self,
        topic: str,
        tensors: Sequence[Tensor],
        *,
        key: bytes = b"12345678",
        expiry_s: int | None = None,
        header_length: str | None = None,
        **parameters: Any,
    ) -> None:
        request = InferRequest([*tensors], [], "whole", "1", None, parameters)
        buffers, length = oip.encode_request(request)
        properties = [
            response_topic(REPLIES),
            correlation_data(key),
            user_property(HEADER_LENGTH, header_length or str(length)),
        ]
        if expiry_s is not None:
            properties.append(message_expiry(expiry_s))
        self._network.send(topic, b"".join(buffers), PublishProperties(*properties))

    @property
    def reply(self) -> InferReply:
        """The only reply so far."""
        ((reply,),) = self.replies.values()
        return reply

    def _take(self, message: Message) -> None:
        length = message.user_properties.get(HEADER_LENGTH)
        reply = oip.decode_reply(message.payload, int(length) if length else None)
        assert message.correlation is not None
        self.replies.setdefault(message.correlation, []).append(reply)
