"""Targets by script, for tests in virtual time: each does what its fields say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shoal_controlplane.gateway.table import ServedModel
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
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.signature import ModelSignature, TensorSpec

SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),),
)


def cloud_model(name: str = "m", version: str = "1", digest: str = "sha256:aa") -> CloudModel:
    """`y` = 2 `x`, FP32 [N, 4]."""
    return CloudModel(
        name, version, "onnx", Path("/nowhere"), digest, "http://127.0.0.1:1/a", SIGNATURE, 8
    )


def served_model(*targets: str, name: str = "m", version: str = "1") -> ServedModel:
    """The same model as the gateway sees it."""
    return ServedModel(name, version, "onnxruntime_onnx", SIGNATURE, 8, offload=targets)


def question(items: int = 1, value: float = 1.0) -> InferRequest:
    """A request for it."""
    return InferRequest([Tensor("x", "FP32", np.full((items, 4), value, np.float32))])


@dataclass
class ScriptedTarget:
    """A target in virtual time.

    `latency_s` is the time of a request alone; each further one under way on a replica adds
    `busy_s`. Replicas are there `start_s` after they were asked for. The `on_*` callables are
    awaited before a call does its work: they raise or hang. `calls` counts.
    """

    settings: TargetSettings
    latency_s: float = 0.02
    busy_s: float = 0.0
    start_s: float = 2.0
    most: int | None = None
    ready_reason: str = ""
    never_ready: bool = False
    on_describe: Callable[[], Any] | None = None
    on_deploy: Callable[[], Any] | None = None
    on_scale: Callable[[], Any] | None = None
    on_infer: Callable[[], Any] | None = None
    on_health: Callable[[], Any] | None = None
    on_remove: Callable[[], Any] | None = None
    answer: Callable[[InferRequest], InferReply] | None = None
    deployed: dict[ModelKey, CloudModel] = field(default_factory=dict)
    replicas: dict[ModelKey, list[float]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    closed: bool = False

    async def describe(self) -> Description:
        await self._enter("describe", self.on_describe)
        return Description(f"nowhere, {self.settings.name}", {"version": 1})

    async def deploy(self, model: CloudModel) -> None:
        await self._enter("deploy", self.on_deploy)
        self.deployed[model.key] = model
        self.replicas.setdefault(model.key, [])

    async def scale(self, model: ModelKey, replicas: int) -> None:
        await self._enter("scale", self.on_scale)
        started = self._started(model)
        if self.most is not None and replicas > self.most:
            raise TargetError(Fault.QUOTA, f"the node pool is at its limit of {self.most}")
        del started[replicas:]
        started.extend([self._now() + self.start_s] * (replicas - len(started)))

    async def infer(self, model: ModelKey, request: InferRequest, timeout_s: float) -> InferReply:
        self.under_way += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._enter("infer", self.on_infer)
                ready = self._ready(model)
                if not ready:
                    raise TargetError(Fault.NOT_DEPLOYED, "no replica is ready")
                ahead = (self.under_way - 1) / ready
                await asyncio.sleep(self.latency_s + self.busy_s * ahead)
        except TimeoutError:
            raise TargetError(Fault.TIMEOUT, "it did not answer in time") from None
        finally:
            self.under_way -= 1
        if self.answer is not None:
            return self.answer(request)
        return InferReply([Tensor("y", "FP32", 2 * request.inputs[0].data)])

    async def health(self, model: ModelKey) -> Health:
        await self._enter("health", self.on_health)
        wanted = len(self._started(model))
        return Health(self._ready(model), wanted, self.ready_reason)

    async def remove(self, model: ModelKey) -> None:
        await self._enter("remove", self.on_remove)
        self.deployed.pop(model, None)
        self.replicas.pop(model, None)

    def price(self) -> Price:
        return self.settings.price

    async def close(self) -> None:
        self.closed = True

    def lose_replicas(self, model: ModelKey) -> None:
        """They are pre-empted: new ones start."""
        started = self._started(model)
        started[:] = [self._now() + self.start_s] * len(started)

    def _started(self, model: ModelKey) -> list[float]:
        if model not in self.replicas:
            raise TargetError(Fault.NOT_DEPLOYED, f"there is no {model[0]}")
        return self.replicas[model]

    def _ready(self, model: ModelKey) -> int:
        now = self._now()
        return 0 if self.never_ready else sum(at <= now for at in self._started(model))

    async def _enter(self, name: str, hook: Callable[[], Any] | None) -> None:
        self.calls[name] += 1
        if hook is not None:
            await hook()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def raising(
    fault: Fault, text: str = "no", retry_after_s: float | None = None
) -> Callable[[], Any]:
    """A hook that refuses."""

    async def refuse() -> None:
        raise TargetError(fault, text, retry_after_s)

    return refuse


async def hanging() -> None:
    """A hook that never ends."""
    await asyncio.Event().wait()
