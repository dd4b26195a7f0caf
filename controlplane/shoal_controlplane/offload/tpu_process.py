"""The TPU worker as processes of this machine: a TPU VM, or any machine where a CPU will do.

They listen on the loopback interface and demand a token: the target's credential, or one that is
kept with them in the target's folder.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal_controlplane.offload import credentials
from shoal_controlplane.offload.kserve_objects import object_name
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
from shoal_controlplane.offload.tpu import check_runs
from shoal_controlplane.offload.tpu_options import TpuOptions, worker_arguments
from shoal_controlplane.offload.tpu_workers import Record, Workers
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.oip import InferReply, InferRequest

_PROBE_S = 2.0
_VERSION_S = 20.0


@dataclass(slots=True)
class _Live:
    """A worker that answers, and how many requests it has from here."""

    port: int
    pid: int
    held: int = 0


class ProcessTarget:
    """Workers of one folder."""

    def __init__(self, settings: TargetSettings, options: TpuOptions) -> None:
        self._settings = settings
        self._options = options
        self._folder = Path(options.folder) if options.folder else _default_folder(settings.name)
        chips = options.chips if options.platform == "tpu" else 0
        self._python = options.python or sys.executable
        self._workers = Workers(self._folder, self._python, chips)
        self._oip = OipClient()
        self._models: dict[ModelKey, CloudModel] = {}
        self._live: dict[ModelKey, list[_Live]] = {}

    async def describe(self) -> Description:
        """Which JAX the workers would have. Raises `TargetError`."""
        await self._checked_token()
        version = await self._jax_version()
        facts = {
            "jax": version,
            "platform": self._options.platform,
            "python": self._python,
            "folder": str(self._folder),
        }
        return Description(f"JAX {version} on this machine, {self._options.platform}", facts)

    async def deploy(self, model: CloudModel) -> None:
        """Know the model, whose operators the worker must have."""
        token = await self._checked_token()
        await check_runs(model)
        arguments = [
            str(model.artifact),
            f"--name={model.name}",
            f"--version={model.version}",
            *worker_arguments(model, self._options),
        ]
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
                _url(model, worker.port), request, known.signature, timeout_s, headers
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
            return await self._oip.ready(_url(model, port), _PROBE_S, headers)
        except TargetError as error:
            if error.fault is Fault.CREDENTIALS:
                raise
            # It starts, or it has just ended: `mend` tells next time.
            return False

    def _keep_live(self, model: ModelKey, record: Record) -> None:
        ports = {replica.port for replica in record.replicas}
        self._live[model] = [w for w in self._live.get(model, []) if w.port in ports]

    async def _jax_version(self) -> str:
        code = "import importlib.metadata as m; print(m.version('jax'))"
        try:
            process = await asyncio.create_subprocess_exec(
                self._python,
                "-c",
                code,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise TargetError(
                Fault.UNREACHABLE, f"{self._python} cannot be started: {error.strerror}"
            ) from None
        try:
            async with asyncio.timeout(_VERSION_S):
                out, _ = await process.communicate()
        except TimeoutError:
            raise TargetError(Fault.TIMEOUT, f"{self._python} does not answer") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise TargetError(
                Fault.UNREACHABLE,
                f"{self._python} has no JAX: install 'shoal[tpu]' there, on a TPU 'jax[tpu]', too",
            )
        return out.decode().strip()


def _known(record: Record | None, model: ModelKey) -> Record:
    if record is None:
        raise TargetError(Fault.NOT_DEPLOYED, f"{model[0]}:{model[1]} is not deployed there")
    return record


def _reason(record: Record, ready: int) -> str:
    if ready >= record.wanted:
        return ""
    return record.reason or f"{ready} of {record.wanted} workers are ready, others are compiling"


def _url(model: ModelKey, port: int) -> str:
    return f"http://127.0.0.1:{port}/v2/models/{model[0]}/versions/{model[1]}"


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _default_folder(name: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(state) / "shoal/tpu" / name
