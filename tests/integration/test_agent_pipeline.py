"""Stages of a plan on whole agents, with real models, through real brokers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")
pytest.importorskip("onnx", reason="onnx is not installed: make setup")

from onnx import TensorProto, helper, numpy_helper
from support import onnx_models
from support.processes import Process, free_port, start_mosquitto

from shoal_agent.app import build_agent
from shoal_agent.boards.base import BoardFacts, BoardReading
from shoal_agent.config import AgentConfig
from shoal_agent.connectivity.link import MqttLink
from shoal_controlplane.mqtt.broker import EmbeddedBroker
from shoal_shared import oip
from shoal_shared.messages import Board as BoardDescription
from shoal_shared.messages import (
    Desired,
    ModelGoal,
    Reported,
    RoleGoal,
    decode_document,
    encode_document,
)
from shoal_shared.oip import HEADER_LENGTH, InferReply, InferRequest, Tensor
from shoal_shared.publish import (
    Message,
    PublishProperties,
    correlation_data,
    message_expiry,
    response_topic,
    user_property,
)
from shoal_shared.status import InferCode, ReplicaState
from shoal_shared.topics import DeviceTopic, Topics

TOPICS = Topics("default")
REPLIES = TOPICS.replies("test")
PATIENCE_S = 30.0
SIZE = 64


class Broker:
    """One of the two brokers; it forgets everything when it is killed."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._kind, self._folder = kind, folder
        self.port = free_port()
        self._process: Process | None = None
        self._embedded: EmbeddedBroker | None = None

    async def start(self) -> None:
        if self._kind == "mosquitto":
            self._process = start_mosquitto(self._folder, self.port)
        else:
            self._embedded = EmbeddedBroker(port=self.port)
            await self._embedded.start()

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        if self._embedded is not None:
            await self._embedded.stop()


class Bench:
    """A board without sensors."""

    facts = BoardFacts(
        description=BoardDescription(family="test", model="Bench"), cores=1, memory_bytes=2**30
    )

    def is_throttled(self) -> bool:
        return False

    def read(self) -> BoardReading:
        return BoardReading(cpu_load=0.0, memory_used_bytes=1)


class Shelf:
    """Artifacts by digest that are simply there, once the test says so."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}
        self.open = asyncio.Event()
        self.open.set()

    def has(self, digest: str, size: int) -> bool:
        return digest in self.paths

    async def obtain(self, digest: str, size: int, keep: Collection[str]) -> Path:
        await self.open.wait()
        return self.paths[digest]

    async def collect(self, keep: Collection[str]) -> None:
        pass


class Impatient(random.Random):
    """Pauses before reconnecting are short."""

    def uniform(self, a: float, b: float) -> float:
        return 0.01


class World:
    """A broker, whoever sends goals and requests, and the shelf of all devices."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.shelf = Shelf()
        self.link = self._link("default:gateway")
        self.connected = asyncio.Event()
        self.lost = asyncio.Event()
        self.link.on_connection(lambda up: (self.connected if up else self.lost).set())
        self.link.subscribe(REPLIES, 0, self._take)
        self.reports: dict[str, list[Reported]] = {}
        self.replies: dict[bytes, list[InferReply]] = {}
        self.something = asyncio.Event()
        self.models: dict[str, ModelGoal] = {}
        self.goal = 0

    def _link(self, client_id: str) -> MqttLink:
        return MqttLink(
            "127.0.0.1", self.broker.port, client_id, rng=Impatient(), clock=time.monotonic
        )

    @asynccontextmanager
    async def device(self, name: str) -> AsyncIterator[None]:
        reported = TOPICS.device(name, DeviceTopic.REPORTED)
        self.link.subscribe(reported, 1, lambda message: self._report(name, message))
        agent = build_agent(
            AgentConfig(
                device=name,
                broker=f"127.0.0.1:{self.broker.port}",
                state_dir=self.folder / name,
                telemetry_interval_s=60.0,
            ),
            board=Bench(),
            transport=self._link(f"default:{name}"),
            artifacts=self.shelf,
            environment={},
        )
        task = asyncio.create_task(agent.run())
        try:
            yield
        finally:
            agent.stop()
            await asyncio.wait_for(task, PATIENCE_S)

    def add(self, path: Path) -> None:
        digest = "sha256:" + path.stem.encode().hex().rjust(64, "0")
        self.shelf.paths[digest] = path
        self.models[path.stem] = ModelGoal(
            deployment="demo",
            model=path.stem,
            version="1",
            digest=digest,
            size=path.stat().st_size,
            format="onnx",
        )

    def want(self, device: str, *roles: RoleGoal) -> int:
        """Publish a goal with all models; its number."""
        self.goal += 1
        desired = Desired(goal=self.goal, models=tuple(self.models.values()), roles=roles)
        topic = TOPICS.device(device, DeviceTopic.DESIRED)
        assert self.link.publish(topic, encode_document(desired), qos=1, retain=True)
        return self.goal

    async def reported(self, device: str, goal: int, *, ready: bool = True) -> None:
        """Until the device reports a goal, and that all of its models serve."""

        def done() -> bool:
            last = self.reports.get(device, [])[-1:]
            return any(
                r.goal == goal
                and (not ready or all(m.state is ReplicaState.READY for m in r.models))
                for r in last
            )

        await self.until(done)

    async def deploy(self, device: str, *roles: RoleGoal) -> None:
        await self.reported(device, self.want(device, *roles))

    def send(self, topic: str, key: bytes, **parameters: Any) -> np.ndarray[Any, Any]:
        """A request on a topic; what it computes on."""
        data = np.random.default_rng(list(key)).normal(size=(1, SIZE)).astype(np.float32)
        request = InferRequest(
            [Tensor("x", "FP32", data)],
            [],
            "whole",
            "1",
            parameters={"timeout": 20_000_000, **parameters},
        )
        buffers, length = oip.encode_request(request)
        properties = PublishProperties(
            response_topic(REPLIES),
            correlation_data(key),
            message_expiry(20),
            user_property(HEADER_LENGTH, str(length)),
        )
        assert self.link.publish(topic, b"".join(buffers), properties=properties)
        return data

    async def ask(self, topic: str, key: bytes, **parameters: Any) -> InferReply:
        self.send(topic, key, **parameters)
        await self.until(lambda: key in self.replies)
        return self.replies[key][0]

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                self.something.clear()
                await self.something.wait()

        await asyncio.wait_for(wait(), PATIENCE_S)

    def _report(self, device: str, message: Message) -> None:
        if message.payload:
            report = decode_document(Reported, message.payload)
            self.reports.setdefault(device, []).append(report)
            self.something.set()

    def _take(self, message: Message) -> None:
        length = message.user_properties.get(HEADER_LENGTH)
        reply = oip.decode_reply(message.payload, int(length) if length else None)
        assert message.correlation is not None
        self.replies.setdefault(message.correlation, []).append(reply)
        self.something.set()


@pytest.fixture(params=["mosquitto", "embedded"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    broker = Broker(request.param, tmp_path)
    await broker.start()
    world = World(broker, tmp_path)
    world.add(front(tmp_path / "front.onnx"))
    world.add(back(tmp_path / "back.onnx"))
    await world.link.start()
    await asyncio.wait_for(world.connected.wait(), PATIENCE_S)
    yield world
    await world.link.stop()
    await broker.kill()


WEIGHTS = np.random.default_rng(1).normal(size=(SIZE, SIZE)).astype(np.float32) / SIZE


def front(path: Path) -> Path:
    """`h` = relu(`x` W), of fixed shape."""
    return onnx_models.save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["h"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIZE])],
        [helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, SIZE])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )


def back(path: Path) -> Path:
    """`y` = `h` + `x`: a skip past the first stage."""
    return onnx_models.save(
        path,
        [helper.make_node("Add", ["h", "x"], ["y"])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, SIZE]) for n in "hx"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SIZE])],
    )


def is_right(reply: InferReply, data: np.ndarray[Any, Any], tolerance: float = 1e-5) -> None:
    assert reply.error == ""
    (tensor,) = reply.outputs
    assert tensor.name == "y"
    whole = np.maximum(data @ WEIGHTS, 0) + data
    np.testing.assert_allclose(tensor.data, whole, atol=tolerance)


FRONT = RoleGoal(
    plan="p", epoch=1, stage=0, model="front", version="1", next=(1.0,), passes=("x",), credits=100
)
BACK = RoleGoal(plan="p", epoch=1, stage=1, model="back", version="1", credits=100)


def entry(epoch: int = 1) -> str:
    return TOPICS.stage("p", epoch, 0)


def in_epoch(epoch: int, *roles: RoleGoal) -> list[RoleGoal]:
    return [msgspec.structs.replace(role, epoch=epoch) for role in roles]


async def test_requests_go_through_two_devices_many_at_once(world: World) -> None:
    async with world.device("d1"), world.device("d2"):
        await world.deploy("d1", FRONT)
        await world.deploy("d2", BACK)
        keys = [bytes([i, 1]) for i in range(60)]
        sent = {key: world.send(entry(), key, epoch=1) for key in keys}
        await world.until(lambda: len(world.replies) == len(keys))
        for key, data in sent.items():
            (reply,) = world.replies[key]
            is_right(reply, data)
            assert [step[0] for step in reply.parameters["trace"]] == ["d1", "d2"]
            assert reply.parameters["epoch"] == 1
            assert reply.parameters["service_us"] == sum(
                service for _, _, service in reply.parameters["trace"]
            )


async def test_a_device_holds_two_stages_and_sends_to_itself_compressed(world: World) -> None:
    async with world.device("d1"):
        await world.deploy("d1", msgspec.structs.replace(FRONT, compression="int8"), BACK)
        data = world.send(entry(), b"key", epoch=1)
        await world.until(lambda: b"key" in world.replies)
        is_right(world.replies[b"key"][0], data, tolerance=0.05)


async def test_another_epoch_takes_over_as_soon_as_it_is_reported(world: World) -> None:
    async with world.device("d1"):
        await world.deploy("d1", FRONT, BACK)
        for epoch in range(2, 12):
            # Wired ahead beside the old one; then the old one goes.
            both = [*in_epoch(epoch - 1, FRONT, BACK), *in_epoch(epoch, FRONT, BACK)]
            await world.deploy("d1", *both)
            new = await world.ask(entry(epoch), bytes([epoch, 1]), epoch=epoch)
            old = await world.ask(entry(epoch - 1), bytes([epoch, 2]), epoch=epoch - 1)
            assert (new.parameters["epoch"], old.parameters["epoch"]) == (epoch, epoch - 1)
            await world.deploy("d1", *in_epoch(epoch, FRONT, BACK))
            world.send(entry(epoch - 1), bytes([epoch, 3]), epoch=epoch - 1)
            world.send(entry(epoch), bytes([epoch, 4]), epoch=epoch - 1)
            last = await world.ask(entry(epoch), bytes([epoch, 5]), epoch=epoch)
            assert last.error == ""
        stale = {bytes([epoch, n]) for epoch in range(2, 12) for n in (3, 4)}
        assert stale.isdisjoint(world.replies)


async def test_stages_are_wired_before_their_models_are_there(world: World) -> None:
    world.shelf.open.clear()
    async with world.device("d1"):
        await world.reported("d1", world.want("d1", FRONT, BACK), ready=False)
        reply = await world.ask(entry(), b"early", epoch=1)
        assert reply.code == InferCode.NOT_FOUND.value
        assert {k: reply.parameters[k] for k in ("epoch", "stage", "device")} == {
            "epoch": 1,
            "stage": 0,
            "device": "d1",
        }
        world.shelf.open.set()
        await world.reported("d1", world.goal)
        data = world.send(entry(), b"later", epoch=1)
        await world.until(lambda: b"later" in world.replies)
        is_right(world.replies[b"later"][0], data)


async def test_stages_outlive_their_broker_and_a_reboot(world: World) -> None:
    async with world.device("d1"):
        await world.deploy("d1", FRONT, BACK)
        world.connected.clear()
        await world.broker.kill()
        await asyncio.wait_for(world.lost.wait(), PATIENCE_S)
        world.reports.clear()
        await world.broker.start()
        await asyncio.wait_for(world.connected.wait(), PATIENCE_S)
        await world.reported("d1", world.goal)
        assert (await world.ask(entry(), b"again", epoch=1)).error == ""
    world.reports.clear()
    async with world.device("d1"):
        await world.reported("d1", world.goal)
        assert (await world.ask(entry(), b"rebooted", epoch=1)).error == ""


async def test_a_model_that_leaves_under_its_stage_is_refused_and_comes_back(world: World) -> None:
    async with world.device("d1"):
        await world.deploy("d1", FRONT, BACK)
        # The same version with another file: the old one is unloaded first.
        known = world.models["back"]
        world.shelf.open.clear()
        digest = "sha256:" + "f" * 64
        world.shelf.paths[digest] = world.shelf.paths[known.digest]
        world.models["back"] = msgspec.structs.replace(known, digest=digest)
        await world.reported("d1", world.want("d1", FRONT, BACK), ready=False)
        codes: set[str] = set()
        for number in range(1000):
            reply = await world.ask(entry(), number.to_bytes(2, "big"), epoch=1)
            codes.add(reply.code)
            if reply.code:
                break
        assert codes <= {"", InferCode.NOT_FOUND.value}
        assert InferCode.NOT_FOUND.value in codes
        assert reply.parameters["stage"] == 1
        world.shelf.open.set()
        await world.reported("d1", world.goal)
        assert (await world.ask(entry(), b"back", epoch=1)).error == ""
