"""The agent as a whole, on a transport, a board and a runtime that the test holds."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from support.runtimes import CpuRuntime, OnCpu

from shoal_agent import app
from shoal_agent.app import Agent, build_agent
from shoal_agent.boards.base import BoardFacts, BoardReading
from shoal_agent.config import AgentConfig
from shoal_agent.runtimes.base import LoadedModel
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.service.lock import StateError, StateLock
from shoal_agent.service.status import read_status
from shoal_shared.messages import (
    Accelerator,
    Capabilities,
    Desired,
    Document,
    ModelGoal,
    Reported,
    RoleGoal,
    RuntimeInfo,
    Status,
    Telemetry,
    decode_document,
    encode_document,
)
from shoal_shared.messages import Board as BoardDescription
from shoal_shared.oip import InferReply, InferRequest, Tensor, decode_reply, encode_request
from shoal_shared.publish import Handler, Message, PublishProperties
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.status import ReplicaState
from shoal_shared.tensors import Array

BASE = "shoal/v1/default/devices/d1/"
REPLIES = "shoal/v1/default/gateways/g1/replies"
DIGEST = "sha256:" + hashlib.sha256(b"model").hexdigest()

D = TypeVar("D", bound=Document)


class Wire:
    """A transport whose session the test opens and closes."""

    def __init__(self) -> None:
        self.connected = False
        self.handlers: dict[str, Handler] = {}
        self.listeners: list[Callable[[bool], None]] = []
        self.sent: list[tuple[str, bytes]] = []
        self.asked: list[tuple[int, str]] = []
        """Topics subscribed, each with how much had been sent before."""
        self.begun = asyncio.Event()
        self.something = asyncio.Event()

    def set_will(self, topic: str, payload: bytes) -> None:
        pass

    def subscribe(self, topic: str, qos: int, handler: Handler) -> None:
        self.handlers[topic] = handler
        self.asked.append((len(self.sent), topic))

    def unsubscribe(self, topic: str) -> None:
        del self.handlers[topic]

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        self.listeners.append(callback)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> bool:
        if self.connected:
            self.sent.append((topic, payload))
            self.something.set()
        return self.connected

    async def start(self) -> None:
        self.begun.set()

    async def stop(self) -> None:
        self.connected = False

    def connect(self, connected: bool = True) -> None:
        self.connected = connected
        for listener in self.listeners:
            listener(connected)

    def receive(self, topic: str, payload: bytes, **more: Any) -> None:
        self.handlers[BASE + topic](Message(BASE + topic, payload, **more))

    def documents(self, kind: type[D]) -> list[D]:
        topic = BASE + kind.__name__.lower()
        return [decode_document(kind, payload) for t, payload in self.sent if t == topic]

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                self.something.clear()
                await self.something.wait()

        await asyncio.wait_for(wait(), 10)


class Bench:
    """A board with a sensor that can fail."""

    def __init__(self) -> None:
        self.fails = False
        self.hot = False
        self.failed = asyncio.Event()

    @property
    def facts(self) -> BoardFacts:
        return BoardFacts(
            description=BoardDescription(family="test", model="Bench 1"),
            cores=2,
            memory_bytes=2**30,
            accelerators=(Accelerator(kind="gpu", name="G"),),
            toolkits={"cuda": "12.6"},
            power_mode="15W",
            notes=("a note",),
        )

    def is_throttled(self) -> bool:
        return self.hot

    def read(self) -> BoardReading:
        if self.fails:
            self.failed.set()
            raise OSError("the sensor is gone")
        return BoardReading(cpu_load=0.25, memory_used_bytes=5, temperature_c=40.0, power_w=7.5)


class Doubling(CpuRuntime, OnCpu):
    """A runtime whose only model doubles its input."""

    signature = ModelSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
    )
    providers = ("Test",)
    info = RuntimeInfo(name="doubling", version="1", formats=("onnx",), providers=("Test",))

    def load(self, path: Path, options: Mapping[str, Any], *_: Any) -> LoadedModel:
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"] * np.float32(2)}

    def close(self) -> None:
        pass


class Shelf:
    """Artifacts that are simply there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "model"
        self._path.write_bytes(b"model")

    def has(self, digest: str, size: int) -> bool:
        return True

    async def obtain(self, digest: str, size: int, keep: Collection[str]) -> Path:
        return self._path

    async def collect(self, keep: Collection[str]) -> None:
        pass


class Rig:
    def __init__(self, tmp_path: Path, telemetry_interval_s: float = 0.1) -> None:
        self.wire = Wire()
        self.board = Bench()
        self.config = AgentConfig(
            device="d1",
            state_dir=tmp_path / "state",
            labels={"site": "berlin"},
            telemetry_interval_s=telemetry_interval_s,
            max_disk_bytes=10_000,
        )
        self.agent: Agent = build_agent(
            self.config,
            board=self.board,
            registry=RuntimeRegistry([Doubling()]),
            transport=self.wire,
            artifacts=Shelf(tmp_path),
            environment={},
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.agent.run())
        yield
        self.agent.stop()
        await asyncio.wait_for(task, 10)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def desired(number: int, *roles: RoleGoal) -> bytes:
    goal = ModelGoal(
        deployment="d", model="m", version="1", digest=DIGEST, size=5, format="onnx", max_batch=2
    )
    return encode_document(Desired(goal=number, models=(goal,), roles=roles))


def is_ready(reported: Reported) -> bool:
    return [m.state for m in reported.models] == [ReplicaState.READY]


async def started(rig: Rig) -> None:
    await asyncio.wait_for(rig.wire.begun.wait(), 10)
    rig.wire.connect()


async def test_on_connect_it_says_what_it_is_and_what_it_runs(rig: Rig) -> None:
    async with rig.running():
        await started(rig)
        await rig.wire.until(lambda: len(rig.wire.documents(Telemetry)) > 1)
        (capabilities,) = rig.wire.documents(Capabilities)
        assert capabilities.board.model == "Bench 1"
        assert capabilities.labels == {"site": "berlin"}
        assert capabilities.disk_free_bytes == 10_000
        assert capabilities.runtimes == (Doubling.info,)
        assert capabilities.accelerators == (Accelerator(kind="gpu", name="G"),)
        assert "a note" in capabilities.notes
        assert (capabilities.toolkits, capabilities.power_mode) == ({"cuda": "12.6"}, "15W")
        (reported,) = rig.wire.documents(Reported)
        telemetry = rig.wire.documents(Telemetry)
        assert [t.seq for t in telemetry[:2]] == [0, 1]
        assert (telemetry[0].cpu_load, telemetry[0].power_w) == (0.25, 7.5)
        (status,) = rig.wire.documents(Status)
        assert {reported.boot_id, *(t.boot_id for t in telemetry)} == {status.boot_id}


async def test_a_goal_becomes_ready_and_answers(rig: Rig) -> None:
    async with rig.running():
        await started(rig)
        rig.wire.receive("desired", desired(3), retain=True)
        await rig.wire.until(lambda: any(map(is_ready, rig.wire.documents(Reported)[-1:])))
        buffers, length = encode_request(
            InferRequest([Tensor("x", "FP32", np.ones((1, 2), np.float32))], [], "m", "1", "id")
        )
        rig.wire.receive(
            "infer",
            b"".join(buffers),
            response_topic=REPLIES,
            correlation=b"12345678",
            user_properties={"Inference-Header-Content-Length": str(length)},
        )
        await rig.wire.until(lambda: rig.wire.sent[-1][0] == REPLIES)
        reply: InferReply = decode_reply(rig.wire.sent[-1][1], _header(rig.wire.sent[-1][1]))
        assert reply.outputs[0].data.tolist() == [[2.0, 2.0]]
        status = read_status(rig.config.state_dir)
        assert (status.connected, status.goal, status.models[0].model) == (True, 3, "m")
        await rig.wire.until(
            lambda: [t.models for t in rig.wire.documents(Telemetry)][-1:] == [{"m:1": (1, 0, 0)}]
        )


def _header(payload: bytes) -> int:
    """Length of the JSON part, which ends where the eight bytes of the output begin."""
    return len(payload) - 8


async def test_a_report_is_sent_once_and_again_after_each_reconnect(rig: Rig) -> None:
    async with rig.running():
        await started(rig)
        rig.wire.receive("desired", desired(3), retain=True)
        await rig.wire.until(lambda: any(map(is_ready, rig.wire.documents(Reported)[-1:])))
        reports = rig.wire.documents(Reported)
        assert all(a != b for a, b in pairwise(reports))
        rig.wire.connect(False)
        rig.wire.receive("desired", desired(3), retain=True)
        rig.wire.connect()
        await rig.wire.until(lambda: len(rig.wire.documents(Reported)) == len(reports) + 1)
        assert rig.wire.documents(Reported)[-1] == reports[-1]
        assert len(rig.wire.documents(Capabilities)) == 2


async def test_less_disk_is_told(rig: Rig) -> None:
    async with rig.running():
        await started(rig)
        await rig.wire.until(lambda: bool(rig.wire.documents(Telemetry)))
        (rig.config.state_dir / "artifacts/sha256" / ("a" * 64)).write_bytes(b"x" * 900)
        await rig.wire.until(lambda: rig.wire.documents(Telemetry)[-1].disk_free_bytes == 9100)
        (rig.config.state_dir / "artifacts/sha256" / ("b" * 64)).write_bytes(b"x" * 900)
        await rig.wire.until(lambda: len(rig.wire.documents(Capabilities)) == 2)
        assert [c.disk_free_bytes for c in rig.wire.documents(Capabilities)] == [10_000, 8200]


async def test_a_sensor_that_fails_does_not_take_the_device_down(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.board.fails = True
    async with rig.running():
        await started(rig)
        await asyncio.wait_for(rig.board.failed.wait(), 10)
        rig.board.fails = False
        await rig.wire.until(lambda: bool(rig.wire.documents(Telemetry)))
    assert "telemetry failed" in caplog.text


async def test_throttling_is_told_at_once_and_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_HEAT_INTERVAL_S", 0.01)
    rig = Rig(tmp_path, telemetry_interval_s=3600.0)
    async with rig.running():
        await started(rig)
        rig.wire.receive("desired", desired(3), retain=True)
        await rig.wire.until(lambda: any(map(is_ready, rig.wire.documents(Reported)[-1:])))
        before = rig.wire.documents(Reported)[-1].models[0].profile
        rig.board.hot = True
        await rig.wire.until(lambda: [t.throttled for t in rig.wire.documents(Telemetry)] == [True])
        await rig.wire.until(lambda: rig.wire.documents(Reported)[-1].models[0].profile != before)


async def test_it_says_goodbye_before_it_leaves(rig: Rig) -> None:
    async with rig.running():
        await started(rig)
    assert [s.state.value for s in rig.wire.documents(Status)] == ["online", "offline"]
    assert rig.wire.sent[-1][0] == BASE + "status"
    StateLock(rig.config.state_dir).release()


async def test_a_state_folder_in_use_is_refused_and_left_alone(rig: Rig) -> None:
    lock = StateLock(rig.config.state_dir)
    with pytest.raises(StateError, match="another agent runs"):
        await rig.agent.run()
    assert [p.name for p in rig.config.state_dir.iterdir()] == ["agent.lock"]
    lock.release()
    (rig.config.state_dir / "artifacts").write_text("in the way")
    with pytest.raises(StateError, match="artifact store cannot be used"):
        await rig.agent.run()


def test_two_builds_differ_only_in_their_boot(rig: Rig) -> None:
    other = build_agent(
        msgspec.structs.replace(rig.config, device="d2"),
        board=Bench(),
        registry=RuntimeRegistry([Doubling()]),
        environment={},
    )
    assert other._identity.boot_id != rig.agent._identity.boot_id


STAGE = "shoal/v1/default/plans/p/7/0"
ROLE = RoleGoal(plan="p", epoch=7, stage=0, model="m", version="1", passes=("z",))


async def test_a_stage_is_listened_to_before_its_goal_is_reported_and_left_with_it(
    rig: Rig,
) -> None:
    async with rig.running():
        await started(rig)
        rig.wire.receive("desired", desired(3, ROLE), retain=True)
        await rig.wire.until(lambda: any(map(is_ready, rig.wire.documents(Reported)[-1:])))
        ((before, _),) = [asked for asked in rig.wire.asked if asked[1] == STAGE]
        told = [i for i, (t, p) in enumerate(rig.wire.sent) if t.endswith("reported")]
        assert before <= min(
            i for i in told if decode_document(Reported, rig.wire.sent[i][1]).goal == 3
        )
        assert read_status(rig.config.state_dir).stages == ("0 of p, epoch 7",)

        tensors = [Tensor(n, "FP32", np.ones((1, 2), np.float32)) for n in "xz"]
        buffers, length = encode_request(
            InferRequest(tensors, [], "whole", "1", parameters={"epoch": 7})
        )
        handler = rig.wire.handlers[STAGE]
        handler(
            Message(
                STAGE,
                b"".join(buffers),
                response_topic=REPLIES,
                user_properties={"Inference-Header-Content-Length": str(length)},
            )
        )
        await rig.wire.until(lambda: rig.wire.sent[-1][0] == REPLIES)
        payload = rig.wire.sent[-1][1]
        reply = decode_reply(payload, len(payload) - 16)
        assert [(t.name, t.data.tolist()) for t in reply.outputs] == [
            ("y", [[2.0, 2.0]]),
            ("z", [[1.0, 1.0]]),
        ]
        assert (reply.parameters["epoch"], reply.parameters["trace"][0][0]) == (7, "d1")

        rig.wire.receive("desired", desired(4), retain=True)
        await rig.wire.until(lambda: rig.wire.documents(Reported)[-1].goal == 4)
        assert STAGE not in rig.wire.handlers


async def test_after_a_reboot_the_stages_are_there_before_the_session(rig: Rig) -> None:
    async with rig.running():
        await started(rig)
        rig.wire.receive("desired", desired(3, ROLE), retain=True)
        await rig.wire.until(lambda: any(r.goal == 3 for r in rig.wire.documents(Reported)))
    again = Rig(rig.config.state_dir.parent)
    async with again.running():
        await asyncio.wait_for(again.wire.begun.wait(), 10)
        assert STAGE in again.wire.handlers
