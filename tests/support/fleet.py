"""Fakes and documents for tests of the fleet: a clock, a link, devices, models."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlmodel import SQLModel

import shoal_controlplane.api.idempotency
import shoal_controlplane.deployments.tables
import shoal_controlplane.devices.tables
import shoal_controlplane.events.tables  # noqa: F401  tables register themselves
from shoal_controlplane.database import Database
from shoal_controlplane.errors import NotFoundError
from shoal_controlplane.gateway.table import version_key
from shoal_controlplane.models.variants import Variant
from shoal_controlplane.models.version import ModelVersion
from shoal_shared.messages import (
    Board,
    Capabilities,
    ReplicaReport,
    Reported,
    RuntimeInfo,
    Status,
    Telemetry,
)
from shoal_shared.profiles import Profile
from shoal_shared.publish import Handler, Message
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.status import Presence, ReplicaState

MB = 1_000_000
DIGEST = "sha256:" + "ab" * 32
PROFILE = Profile(samples=((1, 5.0), (2, 8.0)), intercept_ms=2.0, slope_ms=3.0, knee=2)
ONLINE, OFFLINE = Presence.ONLINE, Presence.OFFLINE


class FakeClock:
    """A clock that stands until it is moved; `wall` gives seconds since the epoch."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeLink:
    """Keeps what was published: the last payload per topic, as a broker retains it."""

    def __init__(self) -> None:
        self.connected = False
        self.handlers: list[tuple[str, int, Handler]] = []
        self.published: list[tuple[str, bytes, int, bool]] = []
        self._callbacks: list[Callable[[bool], None]] = []

    def subscribe(self, topic_filter: str, qos: int, handler: Handler) -> None:
        self.handlers.append((topic_filter, qos, handler))

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        if self.connected:
            self.published.append((topic, payload, qos, retain))
        return self.connected

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        self._callbacks.append(callback)

    def connect(self, connected: bool = True) -> None:
        self.connected = connected
        for callback in self._callbacks:
            callback(connected)

    def deliver(self, topic: str, payload: bytes, retain: bool = False) -> None:
        for topic_filter, _, handler in self.handlers:
            parts = zip(topic_filter.split("/"), topic.split("/"), strict=False)
            if all(want in ("+", got) for want, got in parts):
                handler(Message(topic, payload, retain))
                return


class FakeModels:
    """Models by name and version."""

    def __init__(self, *models: ModelVersion) -> None:
        self.stored = {(m.name, m.version): m for m in models}

    async def get(self, name: str, version: str | None = None) -> ModelVersion:
        found = [m for m in self.stored.values() if m.name == name and version in (None, m.version)]
        if not found:
            raise NotFoundError(f"There is no model {name}:{version}.")
        return max(found, key=lambda m: version_key(m.version))

    async def all(self) -> tuple[ModelVersion, ...]:
        return tuple(self.stored.values())


def open_database(folder: Path) -> Database:
    """A new database with all tables."""
    database = Database(f"sqlite:///{folder / 'test.db'}")
    SQLModel.metadata.create_all(database.engine)
    return database


def model_version(name: str = "cat", version: str = "1", **changes: Any) -> ModelVersion:
    facts: dict[str, Any] = {
        "digest": DIGEST,
        "size": 10 * MB,
        "format": "onnx",
        "signature": ModelSignature(
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
        ),
        "max_batch": 8,
        "parameters": 1,
        "opset": 17,
        "created_at": 0.0,
    }
    return ModelVersion(name=name, version=version, **facts | changes)


def variant(name: str, **changes: Any) -> Variant:
    """One more file of a model; every name has a digest of its own."""
    facts: dict[str, Any] = {
        "digest": "sha256:" + sha256(name.encode()).hexdigest(),
        "size": 4 * MB,
        "format": "onnx",
        "target": "",
        "note": "",
        "created_at": 0.0,
    }
    return Variant(name=name, **facts | changes)


def status(state: Presence = ONLINE, boot: str = "b1") -> Status:
    return Status(state=state, boot_id=boot)


def capabilities(**changes: Any) -> Capabilities:
    facts: dict[str, Any] = {
        "agent_version": "0.1.0",
        "board": Board(family="jetson", model="orin-nano"),
        "cores": 6,
        "memory_bytes": 1000 * MB,
        "disk_free_bytes": 5000 * MB,
        "runtimes": (RuntimeInfo(name="onnxruntime", version="1.20", formats=("onnx",)),),
    }
    return Capabilities(**facts | changes)


def replica(
    state: ReplicaState = ReplicaState.READY, model: str = "cat", version: str = "1", **changes: Any
) -> ReplicaReport:
    facts: dict[str, Any] = {"deployment": model, "digest": DIGEST}
    if state is ReplicaState.READY:
        facts |= {"profile": PROFILE, "memory_bytes": 40 * MB, "providers": ("CPU",)}
    return ReplicaReport(model=model, version=version, state=state, **facts | changes)


def reported(*models: ReplicaReport, goal: int = 1, boot: str = "b1") -> Reported:
    return Reported(goal=goal, boot_id=boot, models=models)


def telemetry(seq: int = 0, boot: str = "b1", **changes: Any) -> Telemetry:
    facts: dict[str, Any] = {
        "uptime_s": 1.0,
        "cpu_load": 0.5,
        "memory_used_bytes": 100 * MB,
        "disk_free_bytes": 4000 * MB,
    }
    return Telemetry(seq=seq, boot_id=boot, **facts | changes)
