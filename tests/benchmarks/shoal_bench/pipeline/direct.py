"""Plans on the real runtime without a control plane: the benchmark publishes goals as it would,
and sends requests as the gateway would. Every policy's plan runs in exactly the same way."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shoal_bench.pipeline.models import Model
from shoal_controlplane.mqtt.link import MqttLink
from shoal_controlplane.planner.cuts.analysis import StageFile
from shoal_controlplane.plans.links import LinkBook, LinkProber
from shoal_shared import oip
from shoal_shared.messages import (
    Desired,
    ModelGoal,
    Reported,
    RoleGoal,
    decode_document,
    encode_document,
)
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.publish import (
    Message,
    PublishProperties,
    correlation_data,
    message_expiry,
    response_topic,
    user_property,
)
from shoal_shared.status import ReplicaState
from shoal_shared.topics import DeviceTopic, Topics

GATEWAY = "bench"
TOLERANCE = 1e-4
"""Of an answer, relative to the largest magnitude of the whole model's."""

_READY_S = 60.0
_ANSWER_S = 30.0
_PROBE_S = 2.0


class DirectError(Exception):
    """A plan does not run; the text says what happened."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stage: its file, where that lies, and the devices that share its requests evenly."""

    file: StageFile
    path: Path
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wired:
    """A plan as it is put on devices."""

    plan: str
    epoch: int
    parts: tuple[Part, ...]
    credits: int

    def goal(self, device: str, number: int) -> Desired:
        """What one device gets told."""
        models, roles = [], []
        for index, part in enumerate(self.parts):
            if device not in part.devices:
                continue
            name = f"{self.plan}-{part.file.first}-{part.file.last}"
            models.append(
                ModelGoal(
                    deployment=self.plan,
                    model=name,
                    version="1",
                    digest=part.file.digest,
                    size=part.file.size,
                    format="onnx",
                    options={"profile_shapes": {t.name: list(t.shape) for t in part.file.inputs}},
                )
            )
            following = self.parts[index + 1].devices if index + 1 < len(self.parts) else ()
            roles.append(
                RoleGoal(
                    plan=self.plan,
                    epoch=self.epoch,
                    stage=index,
                    replica=part.devices.index(device),
                    model=name,
                    version="1",
                    next=tuple(1 / len(following) for _ in following),
                    passes=part.file.passes,
                    credits=self.credits,
                )
            )
        return Desired(goal=number, models=tuple(models), roles=tuple(roles))


@dataclass(slots=True)
class Measured:
    """Answers a second while the pipeline was full, and the median time of an answer."""

    rate: float
    answers: int
    median_ms: float
    service_ms: tuple[float, ...] = ()


@dataclass(slots=True)
class _Load:
    """Requests under way: when each was sent, and when answers came."""

    sent: dict[bytes, float] = field(default_factory=dict)
    answered: list[tuple[float, float]] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)
    error: str = ""


class Direct:
    """One session with the broker that plays control plane and gateway."""

    def __init__(self, host: str, port: int, devices: Sequence[str], state: Path) -> None:
        self._link = MqttLink(host, port, client_id=f"bench-{secrets.token_hex(4)}")
        self._topics = Topics("default")
        self._devices = tuple(devices)
        self._state = state
        self._goal = int(time.time())
        self._reported: dict[str, Reported] = {}
        self._changed = asyncio.Event()
        self._prober = LinkProber(self._link, self._topics, GATEWAY, LinkBook(), time.monotonic)
        self._load = _Load()
        self._on_answer: Callable[[], None] = lambda: None
        self._model: Model | None = None
        self._reply_topic = self._topics.replies(GATEWAY)
        self._link.subscribe(self._reply_topic, 0, self._answer)
        self._link.subscribe(self._topics.every_device(DeviceTopic.REPORTED), 1, self._report)

    async def __aenter__(self) -> Direct:
        await self._link.start()
        await self._until(lambda: self._link.connected, "a session with the broker", 10.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._prober.stop()
        await self._link.stop()

    async def online(self) -> None:
        """Wait until every device has reported. Raises `DirectError`."""
        await self._until(
            lambda: set(self._devices) <= set(self._reported), "every device being online", _READY_S
        )

    async def probe_links(self) -> LinkBook:
        """Measure the devices' links as the control plane does. Raises `DirectError`."""
        book = self._prober.book
        await self._prober.refresh(self._devices, timeout_s=_READY_S)
        unknown = [device for device in self._devices if not book.of(device).measured]
        if unknown:
            raise DirectError(f"the link of {unknown[0]} could not be measured")
        return book

    async def deploy(self, wired: Wired) -> None:
        """Bring a plan on the devices, and wait until each has loaded its stage.

        Raises `DirectError`.
        """
        self._goal += 1
        for part in wired.parts:
            for device in part.devices:
                self._seed(device, part)
        goals = {device: wired.goal(device, self._goal) for device in self._devices}
        for device, goal in goals.items():
            topic = self._topics.device(device, DeviceTopic.DESIRED)
            self._link.publish(topic, encode_document(goal), qos=1, retain=True)
        await self._until(lambda: self._ready(goals), f"plan {wired.plan} being ready", _READY_S)

    async def measure(self, wired: Wired, model: Model, seconds: float, least: int = 8) -> Measured:
        """Keep `wired.credits` requests under way for `seconds`, and until `least` answers came.

        Answers are compared with the whole model's. Raises `DirectError`.
        """
        self._model = model
        payload, properties = self._request(wired, model)
        topic = self._topics.stage(wired.plan, wired.epoch, 0)
        entries = [
            self._topics.stage(wired.plan, wired.epoch, 0, n)
            for n in range(len(wired.parts[0].devices))
        ]
        await self._probe(wired, payload, properties, topic)

        load = self._load = _Load()
        turn = 0

        def send() -> None:
            nonlocal turn
            key = secrets.token_bytes(8)
            load.sent[key] = time.perf_counter()
            self._publish(entries[turn % len(entries)], payload, properties, key)
            turn += 1

        stop_at: float | None = None
        # The first answers come from a pipeline that is still filling.
        filling = wired.credits

        def answered() -> None:
            nonlocal stop_at
            if stop_at is None and len(load.answered) >= filling:
                stop_at = time.perf_counter() + seconds
            done = stop_at is not None and time.perf_counter() > stop_at
            if not (done and len(load.answered) >= filling + least):
                send()

        self._on_answer = answered
        for _ in range(wired.credits):
            send()
        most = 2 * seconds + _ANSWER_S + 60.0
        await self._until(lambda: not load.sent or bool(load.error), "the answers", most)
        self._on_answer = lambda: None
        if load.error:
            raise DirectError(load.error)
        # What came after the last request was sent left a pipeline that was emptying.
        full = load.answered[filling - 1 : len(load.answered) - wired.credits + 1]
        times = [at for at, _ in full]
        took = sorted(lasted for _, lasted in full)
        return Measured(
            rate=(len(times) - 1) / (times[-1] - times[0]),
            answers=len(times) - 1,
            median_ms=took[len(took) // 2] * 1e3,
            service_ms=_service_ms(load.traces),
        )

    async def _probe(self, wired: Wired, payload: bytes, properties: bytes, topic: str) -> None:
        """One request, again and again until an answer shows that every stage listens."""
        until = time.monotonic() + _READY_S
        while time.monotonic() < until:
            load = self._load = _Load()
            key = secrets.token_bytes(8)
            load.sent[key] = time.perf_counter()
            self._publish(topic, payload, properties, key)
            try:
                await self._until(lambda load=load: not load.sent or bool(load.error), "", 20.0)  # type: ignore[misc]
            except DirectError:
                continue
            if load.error:
                await asyncio.sleep(0.2)
                continue
            return
        raise DirectError(f"plan {wired.plan} does not answer: {self._load.error or 'silence'}")

    def _request(self, wired: Wired, model: Model) -> tuple[bytes, bytes]:
        tensors = [Tensor(name, "FP32", array) for name, array in model.inputs.items()]
        first = wired.parts[0]
        request = InferRequest(
            tensors,
            model_name=f"{wired.plan}-{first.file.first}-{first.file.last}",
            model_version="1",
            parameters={"timeout": int(_ANSWER_S * 1e6), "epoch": wired.epoch},
        )
        buffers, length = oip.encode_request(request)
        return b"".join(buffers), user_property(oip.HEADER_LENGTH, str(length))

    def _publish(self, topic: str, payload: bytes, length: bytes, key: bytes) -> None:
        properties = PublishProperties(
            response_topic(self._reply_topic),
            correlation_data(key),
            message_expiry(int(_ANSWER_S) + 1),
            length,
        )
        if not self._link.publish(topic, payload, properties=properties):
            self._load.error = "the broker cannot be reached"
            self._changed.set()

    def _answer(self, message: Message) -> None:
        load, now = self._load, time.perf_counter()
        sent = load.sent.pop(message.correlation or b"", None)
        if sent is None:
            return
        try:
            length = message.user_properties.get(oip.HEADER_LENGTH)
            reply = oip.decode_reply(message.payload, int(length) if length else None)
            load.error = load.error or reply.error or self._wrong(reply)
        except ValueError as error:
            load.error = f"unreadable answer: {error}"
            reply = InferReply([])
        load.answered.append((now, now - sent))
        load.traces.append(reply.parameters.get("trace"))
        if not load.error:
            self._on_answer()
        self._changed.set()

    def _wrong(self, reply: InferReply) -> str:
        """What is wrong with an answer, empty if nothing is."""
        given = {tensor.name: tensor.data for tensor in reply.outputs}
        expected = self._model.expected if self._model is not None else {}
        for name, array in expected.items():
            other = given.get(name)
            if other is None or other.shape != array.shape:
                return f"output {name!r} is missing or misshapen"
            off = float(np.max(np.abs(other - array))) / max(float(np.max(np.abs(array))), 1e-9)
            if not off <= TOLERANCE:
                return f"output {name!r} is off by {off:.2g} of its largest value"
        return ""

    def _report(self, message: Message) -> None:
        parsed = self._topics.parse_device(message.topic)
        if parsed is not None and message.payload:
            self._reported[parsed[0]] = decode_document(Reported, message.payload)
            self._changed.set()

    def _ready(self, goals: dict[str, Desired]) -> bool:
        for device, goal in goals.items():
            reported = self._reported.get(device)
            if reported is None or reported.goal < goal.goal:
                return False
            states = {report.model: report for report in reported.models}
            for model in goal.models:
                report = states.get(model.model)
                if report is not None and report.state is ReplicaState.FAILED:
                    raise DirectError(f"{model.model} on {device}: {report.reason}")
                if report is None or report.state is not ReplicaState.READY:
                    return False
        return True

    def _seed(self, device: str, part: Part) -> None:
        """Put a stage's file into a device's store: links carry activations only."""
        folder = self._state / device / "artifacts" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / part.file.digest.removeprefix("sha256:")
        if not target.exists():
            coming = target.with_name(f"{target.name}.seed")
            shutil.copyfile(part.path, coming)
            coming.replace(target)

    async def _until(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while not ready():
            self._changed.clear()
            left = until - time.monotonic()
            if left <= 0:
                raise DirectError(f"{what} did not happen within {timeout_s:.0f} s")
            try:
                await asyncio.wait_for(self._changed.wait(), min(left, 0.25))
            except TimeoutError:
                continue


def _service_ms(traces: Sequence[Any]) -> tuple[float, ...]:
    """Median compute time of each stage, as the stages told it."""
    told = [trace for trace in traces if isinstance(trace, list) and trace]
    if not told:
        return ()
    rows = [[float(entry[2]) / 1e3 for entry in trace] for trace in told]
    return tuple(float(np.median(column)) for column in zip(*rows, strict=True))
