"""Workers as processes of this machine: a TPU VM, or any machine whose processors will do.

They listen on the loopback interface and demand a token: the target's credential, or one that is
kept with them in the target's folder.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal_controlplane.offload import credentials
from shoal_controlplane.offload.kserve.objects import object_name
from shoal_controlplane.offload.local.workers import Program, Record, Workers
from shoal_controlplane.offload.oipclient import OipClient
from shoal_controlplane.offload.target import (
    CloudModel,
    Description,
    Fault,
    Health,
    Price,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.oip import InferReply, InferRequest

_PROBE_S = 2.0
_VERSION_S = 20.0


@dataclass(frozen=True, slots=True)
class Launch:
    """How models of one kind run on this machine. `package` is what the program's Python must
    have and `remedy` how to get it there; `check` raises `TargetError` UNSUPPORTED for a model
    that can never run, `arguments` are those of a worker for a model, `path` is where it answers,
    from `/v2` on, and `facts` are worth showing."""

    program: Program
    package: str
    remedy: str
    check: Callable[[CloudModel], Awaitable[None]]
    arguments: Callable[[CloudModel], list[str]]
    path: Callable[[ModelKey], str]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Live:
    """A worker that answers, and how many requests it has from here."""

    port: int
    pid: int
    held: int = 0


class ProcessTarget:
    """Workers of one folder: `folder`, or one for the target's name."""

    def __init__(self, settings: TargetSettings, launch: Launch, folder: str = "") -> None:
        self._settings = settings
        self._launch = launch
        self._folder = Path(folder) if folder else _default_folder(settings)
        self._workers = Workers(self._folder, launch.program)
        self._oip = OipClient()
        self._models: dict[ModelKey, CloudModel] = {}
        self._live: dict[ModelKey, list[_Live]] = {}

    async def describe(self) -> Description:
        """What the workers would run on. Raises `TargetError`."""
        await self._checked_token()
        package, version = self._launch.package, await self._version()
        facts = {
            package: version,
            "python": self._launch.program.python,
            "folder": str(self._folder),
            **self._launch.facts,
        }
        return Description(f"{package} {version} in processes of this machine", facts)

    async def deploy(self, model: CloudModel) -> None:
        """Know the model, if a worker can run it."""
        token = await self._checked_token()
        await self._launch.check(model)
        arguments = self._launch.arguments(model)
        before = self._models.get(model.key)
        await asyncio.to_thread(self._workers.deploy, object_name(model.key), arguments, token)
        self._models[model.key] = model
        if before is None or before.digest != model.digest:
            self._live.pop(model.key, None)

    async def scale(self, model: ModelKey, replicas: int) -> None:
        """Start or stop processes; a stopped one may finish what it has."""
        token = await self._checked_token()
        record = await asyncio.to_thread(self._workers.scale, object_name(model), replicas, token)
        self._keep_live(model, _known(record, model))

    async def infer(self, model: ModelKey, request: InferRequest, timeout_s: float) -> InferReply:
        """Answer a request by the worker that has the fewest."""
        known, live = self._models.get(model), self._live.get(model)
        if known is None or not live:
            why = "was not deployed there" if known is None else "has no worker that is ready"
            raise TargetError(Fault.NOT_DEPLOYED, f"{model[0]}:{model[1]} {why}")
        headers = _bearer(await self._token())
        worker = min(live, key=lambda w: w.held)
        worker.held += 1
        try:
            return await self._oip.infer(
                self._url(model, worker.port), request, known.signature, timeout_s, headers
            )
        except TargetError as error:
            if error.fault in (Fault.UNREACHABLE, Fault.NOT_DEPLOYED) and worker in live:
                # It has gone, or is going: `health` finds out and starts another.
                live.remove(worker)
            raise
        finally:
            worker.held -= 1

    async def health(self, model: ModelKey) -> Health:
        """Which workers answer; those that have ended are started anew."""
        token = await self._checked_token()
        name = object_name(model)
        record = _known(await asyncio.to_thread(self._workers.mend, name, token), model)
        self._keep_live(model, record)
        headers = _bearer(token)
        found = await asyncio.gather(
            *(self._ready(model, replica.port, headers) for replica in record.replicas)
        )
        ready = {
            replica.port: replica.pid
            for replica, answers in zip(record.replicas, found, strict=True)
            if answers
        }
        before = {worker.port: worker for worker in self._live.get(model, [])}
        self._live[model] = [before.get(port) or _Live(port, pid) for port, pid in ready.items()]
        if any(not r.was_ready for r in record.replicas if r.port in ready):
            await asyncio.to_thread(self._workers.ready, name, list(ready.values()))
        return Health(len(ready), record.wanted, _reason(record, len(ready)))

    async def remove(self, model: ModelKey) -> None:
        """Stop the model's workers and forget it."""
        await self._checked_token()
        self._models.pop(model, None)
        self._live.pop(model, None)
        await asyncio.to_thread(self._workers.remove, object_name(model))

    def price(self) -> Price:
        """What the operator said."""
        return self._settings.price

    async def close(self) -> None:
        """End the sessions; workers go on."""
        await self._oip.close()

    async def _token(self) -> str:
        if self._settings.credential:
            return await asyncio.to_thread(credentials.secret, self._settings.credential)
        return await asyncio.to_thread(self._workers.own_token)

    async def _checked_token(self) -> str:
        token = await self._token()
        await asyncio.to_thread(self._workers.check, token)
        return token

    async def _ready(self, model: ModelKey, port: int, headers: Mapping[str, str]) -> bool:
        try:
            return await self._oip.ready(self._url(model, port), _PROBE_S, headers)
        except TargetError as error:
            if error.fault is Fault.CREDENTIALS:
                raise
            # It starts, or it has just ended: `mend` tells next time.
            return False

    def _keep_live(self, model: ModelKey, record: Record) -> None:
        ports = {replica.port for replica in record.replicas}
        self._live[model] = [w for w in self._live.get(model, []) if w.port in ports]

    def _url(self, model: ModelKey, port: int) -> str:
        return f"http://127.0.0.1:{port}{self._launch.path(model)}"

    async def _version(self) -> str:
        """Of the package that the workers need."""
        python, package = self._launch.program.python, self._launch.package
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        try:
            process = await asyncio.create_subprocess_exec(
                python,
                "-c",
                code,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise TargetError(
                Fault.UNREACHABLE, f"{python} cannot be started: {error.strerror}"
            ) from None
        try:
            async with asyncio.timeout(_VERSION_S):
                out, _ = await process.communicate()
        except TimeoutError:
            raise TargetError(Fault.TIMEOUT, f"{python} does not answer") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise TargetError(
                Fault.UNREACHABLE, f"{python} has no {package}: {self._launch.remedy}"
            )
        return out.decode().strip()


def _known(record: Record | None, model: ModelKey) -> Record:
    if record is None:
        raise TargetError(Fault.NOT_DEPLOYED, f"{model[0]}:{model[1]} is not deployed there")
    return record


def _reason(record: Record, ready: int) -> str:
    if ready >= record.wanted:
        return ""
    return record.reason or f"{ready} of {record.wanted} workers are ready, others start"


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _default_folder(settings: TargetSettings) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(state) / "shoal" / settings.kind / settings.name
