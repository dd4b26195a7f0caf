"""The compiled room with the artifacts, over a real database and store, without the models room."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI
from support.fleet import DIGEST, FakeClock, model_version, open_database

from shoal_controlplane.api import problem
from shoal_controlplane.compiled.routes import compiled_routes
from shoal_controlplane.compiled.service import CompiledService
from shoal_controlplane.models.artifact_routes import artifact_routes
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.version import ModelVersion
from shoal_shared.compiled import CompileKey

KEY = CompileKey(
    digest=DIGEST,
    target="qualcomm-soc57",
    provider_set="qnn-htp",
    runtime="onnxruntime 1.32.0",
    driver="",
    settings="0" * 64,
)


class FakeModels:
    """Versions that a test sets."""

    def __init__(self, *versions: ModelVersion) -> None:
        self.versions = versions
        self.listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    async def all(self) -> tuple[ModelVersion, ...]:
        return self.versions

    async def refers_to(self, digest: str) -> bool:
        return any(digest in version.artifacts for version in self.versions)

    def set(self, *versions: ModelVersion) -> None:
        self.versions = versions
        for listener in self.listeners:
            listener()


class CompiledRoom:
    """`app` has the routes; `models` knows one version whose file is `KEY.digest`."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.database = open_database(folder)
        self.store = ArtifactStore(folder / "artifacts", 100_000_000)
        self.models = FakeModels(model_version())
        self.store.add_room(self.models.refers_to)
        self.service = CompiledService(self.database, self.store, self.models, self.clock.wall)
        self.app = FastAPI()
        problem.install(self.app)
        self.app.include_router(artifact_routes(self.store))
        self.app.include_router(compiled_routes(self.service))


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def document(data: bytes, key: CompileKey = KEY, **more: Any) -> dict[str, Any]:
    """Body with which a device shares `data`."""
    known = {"digest": digest_of(data), "size": len(data), "device": "orin-1"}
    return {"key": msgspec.to_builtins(key), **known, **more}
