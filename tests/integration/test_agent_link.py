"""The real agent as a process of its own, on a real Mosquitto, with real models."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from onnx import TensorProto, helper
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from shoal_shared.messages import (
    Capabilities,
    Desired,
    Document,
    ModelGoal,
    Reported,
    Status,
    Telemetry,
    decode_document,
    encode_document,
)
from shoal_shared.oip import HEADER_LENGTH, InferReply, InferRequest, Tensor, decode_reply
from shoal_shared.oip import encode_request as encode_infer
from shoal_shared.status import InferCode, Presence, ReplicaState
from shoal_shared.topics import DeviceTopic, Topics

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(
    MOSQUITTO is None, reason="mosquitto is not installed: apt install mosquitto"
)

TOPICS = Topics("default")
REPLIES = TOPICS.replies("test")
PATIENCE_S = 30.0

D = TypeVar("D", bound=Document)


def topic(kind: DeviceTopic) -> str:
    return TOPICS.device("d1", kind)


class Mosquitto:
    """A broker without a memory, on a free port of the loopback."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        wait_until(self._listens)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


class Observer:
    """A client that sees all topics of the fleet and waits for what it expects."""

    def __init__(self, port: int) -> None:
        self._changed = threading.Condition()
        self._messages: list[MQTTMessage] = []
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda c, *_: c.subscribe("shoal/v1/default/#", 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, name: str, payload: bytes, *, retain: bool = False, **properties: Any) -> None:
        packed = Properties(PacketTypes.PUBLISH)
        for key, value in properties.items():
            setattr(packed, key, value)
        info = self._client.publish(name, payload, qos=1, retain=retain, properties=packed)
        info.wait_for_publish(PATIENCE_S)

    def expect(
        self, name: str, fits: Callable[[MQTTMessage], bool], *, since: int = 0
    ) -> MQTTMessage:
        """The first message on a topic that fits, past or yet to come."""
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while True:
                for message in self._messages[since:]:
                    if message.topic == name and fits(message):
                        return message
                left = deadline - time.monotonic()
                seen = [m.payload[:300] for m in self._messages[since:] if m.topic == name]
                assert left > 0, f"not seen on {name}, only {seen}"
                self._changed.wait(left)

    def expect_document(
        self, kind: type[D], on: DeviceTopic, fits: Callable[[D], bool], *, since: int = 0
    ) -> D:
        def check(message: MQTTMessage) -> bool:
            return bool(message.payload) and fits(decode_document(kind, message.payload))

        return decode_document(kind, self.expect(topic(on), check, since=since).payload)

    def mark(self) -> int:
        """Where `since` begins: what comes from now on."""
        with self._changed:
            return len(self._messages)

    def infer(self, request: InferRequest, **properties: Any) -> InferReply:
        buffers, length = encode_infer(request)
        since, correlation = self.mark(), random.randbytes(8)
        values: dict[str, Any] = {
            "ResponseTopic": REPLIES,
            "CorrelationData": correlation,
            "UserProperty": (HEADER_LENGTH, str(length)),
        } | properties
        self.send(topic(DeviceTopic.INFER), b"".join(buffers), **values)
        reply = self.expect(
            REPLIES,
            lambda m: getattr(m.properties, "CorrelationData", None) == correlation,
            since=since,
        )
        user = dict(getattr(reply.properties, "UserProperty", []))
        header = user.get(HEADER_LENGTH)
        return decode_reply(reply.payload, None if header is None else int(header))

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()


class Artifacts(ThreadingHTTPServer):
    """Serves artifacts by digest, with Range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ArtifactHandler)
        self.files: dict[str, bytes] = {}
        self.requests = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.files[f"/artifacts/sha256/{digest}"] = data
        return f"sha256:{digest}"


class _ArtifactHandler(BaseHTTPRequestHandler):
    server: Artifacts

    def do_GET(self) -> None:
        self.server.requests += 1
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin:])

    def log_message(self, *_: object) -> None:
        pass


class AgentProcess:
    """`shoal-agent run` as an operator starts it."""

    def __init__(self, folder: Path, broker: str, server: str) -> None:
        self.state = folder / "state"
        self._log = folder / "agent.log"
        self._command = [sys.executable, "-m", "shoal_agent.cli", "run", "--device", "d1"]
        self._command += ["--broker", broker, "--server", server, "--state-dir", str(self.state)]
        self._command += ["--label", "site=berlin"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "SHOAL_TELEMETRY_INTERVAL_S": "0.2"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def signal(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(PATIENCE_S)
        self._process = None
        return code

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shoal_agent.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def kill(self) -> None:
        if self.alive:
            self.signal(signal.SIGKILL)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def doubler() -> bytes:
    """A model that adds its input to itself."""
    shape: list[str | int | None] = ["batch", 3]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())  # type: ignore[no-untyped-call]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def observer(broker: Mosquitto) -> Iterator[Observer]:
    observer = Observer(broker.port)
    yield observer
    observer.close()


@pytest.fixture
def artifacts() -> Iterator[Artifacts]:
    artifacts = Artifacts()
    yield artifacts
    artifacts.shutdown()
    artifacts.server_close()


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto, artifacts: Artifacts) -> Iterator[AgentProcess]:
    agent = AgentProcess(tmp_path, broker.address, artifacts.url)
    agent.start()
    yield agent
    agent.kill()


def goal_for(artifacts: Artifacts, number: int, data: bytes, model: str = "double") -> Desired:
    return Desired(
        goal=number,
        models=(
            ModelGoal(
                deployment="demo",
                model=model,
                version="1",
                digest=artifacts.add(data),
                size=len(data),
                format="onnx",
                max_batch=4,
            ),
        ),
    )


def is_ready(reported: Reported) -> bool:
    return [m.state for m in reported.models] == [ReplicaState.READY]


def deploy(observer: Observer, desired: Desired) -> Reported:
    observer.send(topic(DeviceTopic.DESIRED), encode_document(desired), retain=True)
    return observer.expect_document(
        Reported, DeviceTopic.REPORTED, lambda r: r.goal == desired.goal and is_ready(r)
    )


def double(observer: Observer, **properties: Any) -> InferReply:
    data = np.array([[1.0, 2.0, 3.0]], np.float32)
    request = InferRequest([Tensor("x", "FP32", data)], [], "double", "1", "r1")
    return observer.infer(request, **properties)


def assert_doubled(reply: InferReply) -> None:
    assert reply.error == ""
    (tensor,) = reply.outputs
    assert tensor.name == "y"
    assert tensor.data.tolist() == [[2.0, 4.0, 6.0]]
    assert reply.id == "r1"


def online(observer: Observer, since: int = 0) -> Status:
    return observer.expect_document(
        Status, DeviceTopic.STATUS, lambda s: s.state is Presence.ONLINE, since=since
    )


def offline(observer: Observer) -> str:
    """The boot of which the device's absence tells."""
    return observer.expect_document(
        Status, DeviceTopic.STATUS, lambda s: s.state is Presence.OFFLINE
    ).boot_id


def test_a_device_says_hello_what_it_can_do_and_goodbye(
    agent: AgentProcess, observer: Observer
) -> None:
    status = online(observer)
    capabilities = observer.expect_document(Capabilities, DeviceTopic.CAPABILITIES, lambda _: True)
    assert capabilities.labels == {"site": "berlin"}
    assert capabilities.cores >= 1
    assert "onnx" in [f for r in capabilities.runtimes for f in r.formats]
    reported = observer.expect_document(Reported, DeviceTopic.REPORTED, lambda _: True)
    assert reported == Reported(goal=0, boot_id=status.boot_id)
    telemetry = observer.expect_document(Telemetry, DeviceTopic.TELEMETRY, lambda t: t.seq == 1)
    assert telemetry.boot_id == status.boot_id
    assert telemetry.memory_used_bytes > 0

    shown = agent.ask("status", "--state-dir", str(agent.state), "-o", "json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["connected"] is True

    assert agent.signal(signal.SIGTERM) == 0
    assert offline(observer) == status.boot_id
    gone = agent.ask("status", "--state-dir", str(agent.state))
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "no agent runs" in gone.stderr


def test_a_killed_agent_leaves_its_last_will(agent: AgentProcess, observer: Observer) -> None:
    status = online(observer)
    assert agent.signal(signal.SIGKILL) == -signal.SIGKILL
    assert offline(observer) == status.boot_id
    since = observer.mark()
    agent.start()
    assert online(observer, since).boot_id != status.boot_id


def test_a_goal_is_fetched_served_answered_and_taken_away(
    agent: AgentProcess, observer: Observer, artifacts: Artifacts
) -> None:
    reported = deploy(observer, goal_for(artifacts, 1, doubler()))
    (model,) = reported.models
    assert model.providers == ("CPUExecutionProvider",)
    assert model.profile is not None
    for kind in ReplicaState.FETCHING, ReplicaState.READY:
        observer.expect_document(
            Reported,
            DeviceTopic.REPORTED,
            lambda r, k=kind: [m.state for m in r.models] == [k],  # type: ignore[misc]
        )
    reply = double(observer)
    assert_doubled(reply)
    assert reply.parameters["service_us"] > 0
    assert reply.parameters["queue_depth"] >= 0
    assert_doubled(double(observer, MessageExpiryInterval=10))

    unknown = observer.infer(
        InferRequest([Tensor("x", "FP32", np.zeros(1, np.float32))], [], "nobody", "1")
    )
    assert unknown.code == InferCode.NOT_FOUND.value

    since = observer.mark()
    observer.send(topic(DeviceTopic.DESIRED), encode_document(Desired(goal=2)), retain=True)
    observer.expect_document(
        Reported, DeviceTopic.REPORTED, lambda r: r.goal == 2 and not r.models, since=since
    )
    assert double(observer).code == InferCode.NOT_FOUND.value


def test_a_model_that_cannot_be_is_reported_with_its_reason(
    agent: AgentProcess, observer: Observer, artifacts: Artifacts
) -> None:
    desired = goal_for(artifacts, 1, b"this is no model")
    observer.send(topic(DeviceTopic.DESIRED), encode_document(desired), retain=True)
    failed = observer.expect_document(
        Reported,
        DeviceTopic.REPORTED,
        lambda r: [m.state for m in r.models] == [ReplicaState.FAILED],
    )
    assert failed.models[0].reason
    missing = goal_for(artifacts, 2, doubler())
    artifacts.files.clear()
    observer.send(topic(DeviceTopic.DESIRED), encode_document(missing), retain=True)
    observer.expect_document(
        Reported,
        DeviceTopic.REPORTED,
        lambda r: "does not have the artifact" in "".join(m.reason for m in r.models),
    )
    assert is_ready(deploy(observer, goal_for(artifacts, 3, doubler())))


def test_hostile_messages_cost_a_line_each_and_nothing_else(
    agent: AgentProcess, observer: Observer, artifacts: Artifacts
) -> None:
    deploy(observer, goal_for(artifacts, 5, doubler()))
    desired = topic(DeviceTopic.DESIRED)
    for payload in (
        b"not json",
        b"\xff" * 100,
        b"[" * 8000,
        b'{"v":99,"goal":9}',
        b'{"goal":9,"models":[{"model":"../../etc"}]}',
        b"x" * 200_000,
        encode_document(Desired(goal=4)),
        b"",
    ):
        observer.send(desired, payload)
    infer = topic(DeviceTopic.INFER)
    observer.send(infer, b"no properties at all")
    observer.send(infer, b"{}", ResponseTopic=desired)
    observer.send(infer, b"{}", ResponseTopic="$SYS/broker")
    for payload in (b"", b"\0" * 100, b"{", b'{"inputs":[]}', b"[" * 100_000):
        for length in ("0", "1", "-1", "99999999999999999999", "x"):
            observer.send(
                infer,
                payload,
                ResponseTopic=REPLIES,
                CorrelationData=b"12345678",
                UserProperty=[(HEADER_LENGTH, length), ("a", "b" * 60_000)],
            )
    assert_doubled(double(observer))
    assert agent.alive
    assert agent.log.count("ignored a goal document") >= 5
    assert "ignored an inference request" in agent.log
    assert "Traceback" not in agent.log
    assert max(map(len, agent.log.splitlines())) < 5000


def test_a_broker_that_dies_is_awaited_and_told_everything_again(
    agent: AgentProcess, observer: Observer, broker: Mosquitto, artifacts: Artifacts
) -> None:
    deploy(observer, goal_for(artifacts, 1, doubler()))
    fetched = artifacts.requests
    broker.kill()
    broker.start()
    later = Observer(broker.port)
    try:
        online(later)
        later.expect_document(Capabilities, DeviceTopic.CAPABILITIES, lambda _: True)
        reported = later.expect_document(Reported, DeviceTopic.REPORTED, is_ready)
        assert reported.goal == 1
        assert_doubled(double(later))
    finally:
        later.close()
    assert artifacts.requests == fetched


def test_after_a_reboot_without_a_network_the_models_serve(
    agent: AgentProcess, observer: Observer, broker: Mosquitto, artifacts: Artifacts
) -> None:
    deploy(observer, goal_for(artifacts, 1, doubler()))
    agent.kill()
    broker.kill()
    artifacts.files.clear()
    agent.start()

    def ready_offline() -> bool:
        shown = agent.ask("status", "--state-dir", str(agent.state), "-o", "json")
        if shown.returncode:
            return False
        status = json.loads(shown.stdout)
        return not status["connected"] and [m["state"] for m in status["models"]] == ["ready"]

    wait_until(ready_offline)
    broker.start()
    later = Observer(broker.port)
    try:
        later.expect_document(Reported, DeviceTopic.REPORTED, lambda r: r.goal == 1 and is_ready(r))
        assert_doubled(double(later))
    finally:
        later.close()


def test_a_second_agent_on_the_same_state_is_refused(
    agent: AgentProcess, observer: Observer, broker: Mosquitto
) -> None:
    online(observer)
    second = agent.ask(
        "run", "--device", "d2", "--broker", broker.address, "--state-dir", str(agent.state)
    )
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert "another agent runs on the state folder" in line
    assert agent.alive
