"""The real runner, dispatcher and router against simulated devices, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

import numpy as np
from support.virtual_time import VirtualTimeLoop

from shoal_bench.batch.scenario import HOP_MS, MOST, Scenario
from shoal_controlplane.gateway.batch import BatchRunner
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.router import Router
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.publish import CANCEL, Handler, Message, PublishProperties, decode_publish
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.topics import Topics

TOPICS = Topics("bench")


class SimulatedDevices:
    """The link of a gateway whose devices compute one piece at a time, first come, first
    served."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._began_ms = asyncio.get_running_loop().time() * 1e3
        self._free: dict[str, float] = {}
        self._pieces: dict[str, int] = {}
        self._handler: Handler | None = None

    def subscribe(self, topic_filter: str, qos: int, handler: Handler) -> None:
        self._handler = handler

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        """The connection stays."""

    @property
    def connected(self) -> bool:
        return True

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
        packet = len(name).to_bytes(2, "big") + name + properties.pack() + payload
        message = decode_publish(0, packet)
        if CANCEL in message.user_properties:
            return True  # What is planned is computed.
        parsed = TOPICS.parse_device(topic)
        assert parsed is not None
        request = oip.decode_request(payload, int(message.user_properties[oip.HEADER_LENGTH]))
        self._compute(parsed[0], request, message)
        return True

    def _compute(self, device: str, request: InferRequest, message: Message) -> None:
        loop = asyncio.get_running_loop()
        items = len(request.inputs[0].data)
        number = self._pieces[device] = self._pieces.get(device, 0) + 1
        arrives = loop.time() * 1e3 + HOP_MS
        start = max(arrives, self._free.get(device, 0.0))
        jitter = self._scenario.jitter(device, number)
        took = self._scenario.work_ms(device, items, start - self._began_ms, jitter)
        self._free[device] = start + took
        back_s = (start + took + HOP_MS) / 1e3 - loop.time()
        loop.call_later(back_s, self._answer, request, message, items, took)

    def _answer(self, request: InferRequest, message: Message, items: int, took: float) -> None:
        outputs = [Tensor("y", "FP32", request.inputs[0].data)]
        parameters = {"queue_depth": 0, "service_us": round(took * 1e3), "batch": items}
        buffers, length = oip.encode_reply(InferReply(outputs, parameters=parameters))
        assert self._handler is not None
        assert message.response_topic is not None
        self._handler(
            Message(
                message.response_topic,
                b"".join(buffers),
                correlation=message.correlation,
                user_properties={oip.HEADER_LENGTH: str(length)},
            )
        )


def run_shoal(scenario: Scenario) -> float:
    """Makespan in ms of the batch as the gateway runs it. Raises `RuntimeError` if an item is
    lost or out of place."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_run_shoal(scenario))


async def _run_shoal(scenario: Scenario) -> float:
    loop = asyncio.get_running_loop()
    devices = SimulatedDevices(scenario)
    router = Router(rng=random.Random(scenario.seed))
    dispatcher = Dispatcher(devices, TOPICS, "g", router, loop.time)
    batches = BatchRunner(dispatcher, router, loop.time)
    spec = (TensorSpec(name="x", datatype="FP32", shape=(-1, 1)),)
    replicas = tuple(Replica(device, p) for device, p in scenario.profiles.items())
    model = ServedModel("m", "1", "", ModelSignature(inputs=spec, outputs=spec), MOST, replicas)
    rows = np.arange(scenario.items, dtype=np.float32)[:, None]
    request = InferRequest([Tensor("x", "FP32", rows)], [], "m", "1")
    started = loop.time()
    reply = await batches.call(request, model, lambda: replicas, scenario.items, started + 600)
    if not np.array_equal(reply.outputs[0].data, rows):
        raise RuntimeError("the batch was not put together as it was sent")
    return (loop.time() - started) * 1e3


def run_static(scenario: Scenario, shares: Mapping[str, int]) -> float:
    """Makespan in ms where each device gets its share at the start, in the largest batches, and
    nobody helps."""
    ends = []
    for device, share in shares.items():
        now = HOP_MS
        for piece, start in enumerate(range(0, share, MOST), start=1):
            items = min(share - start, MOST)
            now += scenario.work_ms(device, items, now, scenario.jitter(device, piece))
        ends.append(now + HOP_MS)
    return max(ends)
