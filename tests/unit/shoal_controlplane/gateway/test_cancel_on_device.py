"""The gateway's dispatcher and the agent's session and service on one network: what is cancelled
does not run on the device, and is not answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runtimes import CpuRuntime, OnCpu
from support.stages import TOPICS, Line, Network

from shoal_agent.connectivity.session import DeviceSession
from shoal_agent.identity.device import Identity
from shoal_agent.runtimes.base import LoadedModel
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.serving.service import InferenceService
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.table import Replica
from shoal_shared.messages import ModelGoal
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.profiles import fit
from shoal_shared.publish import CANCEL
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import Array

DIGEST = "sha256:" + "ab" * 32
Call = asyncio.Task[tuple[InferReply, Ticket]]


class Recording(CpuRuntime, OnCpu):
    """A runtime whose only model gives its input back, and keeps what it computed."""

    signature = ModelSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 1)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
    )
    providers = ("Test",)

    def __init__(self) -> None:
        self.computed: list[float] = []

    def load(self, path: Path, options: Mapping[str, Any], *_: Any) -> LoadedModel:
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.computed += inputs["x"].ravel().tolist()
        return {"y": inputs["x"]}

    def close(self) -> None:
        pass


class Accelerator:
    """Computes when it is told to, while it is held."""

    def __init__(self) -> None:
        self.held = False
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((work, done))
        if not self.held:
            asyncio.get_running_loop().call_soon(self.finish)

    def finish(self) -> None:
        work, done = self.jobs.pop(0)
        done(work())

    def close(self) -> None:
        pass


class Device:
    """An agent's session and service, with one model."""

    def __init__(self, network: Network, name: str) -> None:
        self.runtime, self.accelerator = Recording(), Accelerator()
        self.service = InferenceService(
            RuntimeRegistry([self.runtime]), accelerator=self.accelerator
        )
        self.session = DeviceSession(
            Line(network),
            TOPICS.fleet,
            Identity(name, "boot"),
            on_desired=lambda _: None,
            infer=self.service.handle,
            cancel=self.service.cancel,
            on_connection=lambda _: None,
            clock=time.monotonic,
        )

    async def load(self, path: Path) -> None:
        path.write_bytes(b"model")
        goal = ModelGoal(
            deployment="d", model="m", version="1", digest=DIGEST, size=5, format="onnx"
        )
        await self.service.load(goal, {DIGEST: path}, lambda _: None)
        self.runtime.computed.clear()
        self.accelerator.held = True


class Rig:
    def __init__(self) -> None:
        self.network = Network()
        self.device = Device(self.network, "d1")
        self.gateways = [
            Dispatcher(Line(self.network), TOPICS, name, Router(), asyncio.get_running_loop().time)
            for name in ("g1", "g2")
        ]

    async def ask(self, value: float, gateway: int = 0) -> Call:
        """A request that has reached the device."""
        request = InferRequest([Tensor("x", "FP32", np.array([[value]], np.float32))], [], "m", "1")
        replicas = (Replica("d1", fit([(1, 1000.0)])),)
        deadline = asyncio.get_running_loop().time() + 1000
        call = self.gateways[gateway].call(request, lambda: replicas, 1, deadline)
        task = asyncio.create_task(call)
        await self.settle()
        return task

    async def settle(self) -> None:
        """Let everything arrive."""
        for _ in range(3):
            await asyncio.sleep(0)
            while self.network.deliver():
                pass

    async def finish(self) -> None:
        while self.device.accelerator.jobs:
            self.device.accelerator.finish()
            await self.settle()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.device.load(tmp_path / "model")
    yield rig
    await rig.device.service.close()


async def test_a_cancelled_request_does_not_run_and_is_not_answered(rig: Rig) -> None:
    calls = [await rig.ask(n) for n in range(6)]
    assert rig.device.service.depth == 6
    for n in (1, 4):
        calls[n].cancel()
    await rig.settle()
    assert rig.device.service.depth == 4
    answers = len(rig.network.sent)
    await rig.finish()
    assert sorted(rig.device.runtime.computed) == [0, 2, 3, 5]
    assert len(rig.network.sent) == answers + 4
    for n in (0, 2, 3, 5):
        reply, _ = await calls[n]
        assert reply.outputs[0].data.item() == n
    assert (rig.device.service.depth, rig.gateways[0].in_flight) == (0, 0)


async def test_nothing_happens_to_a_request_that_was_answered(rig: Rig) -> None:
    call = await rig.ask(1)
    await rig.finish()
    await call
    (request,) = [m for m in rig.network.sent if m.topic.endswith("/infer")]
    sent = len(rig.network.sent)
    rig.device.service.cancel((request.response_topic or "", request.correlation or b""))
    assert len(rig.network.sent) == sent


async def test_one_gateway_does_not_cancel_anothers_request(rig: Rig) -> None:
    first, second, own = await rig.ask(1), await rig.ask(2, 0), await rig.ask(3, 1)
    theirs = [m for m in rig.network.sent if m.topic.endswith("/infer")][1]
    own.cancel()
    await rig.settle()
    cancel = rig.network.sent[-1]
    assert cancel.user_properties == {CANCEL: "1"}
    # The same correlation data, but with the other gateway's own topic for replies.
    rig.device.service.cancel((cancel.response_topic or "", theirs.correlation or b""))
    await rig.finish()
    await asyncio.gather(first, second)
    assert rig.device.runtime.computed == [1, 2]


async def test_a_cancel_says_nothing_even_where_nobody_knows_the_request(rig: Rig) -> None:
    call = await rig.ask(1)
    (request,) = rig.network.sent
    rig.device.service.cancel((request.response_topic or "", request.correlation or b""))
    call.cancel()
    await rig.settle()
    assert [m.payload for m in rig.network.sent[1:]] == [b""]
    assert rig.device.service.depth == 0
