"""A gateway whose fleet is a function in this process, and a gRPC server before it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import numpy as np
import pytest

from shoal_controlplane.errors import NotFoundError
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.grpc.server import GrpcServer
from shoal_controlplane.gateway.router import Ticket
from shoal_controlplane.gateway.service import Gateway
from shoal_controlplane.gateway.table import Replica, ServedModel, ServingTable
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.profiles import fit
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY

MAX_BYTES = 4 * 1024 * 1024


class Fleet:
    """Stands in for the dispatcher: computes here. `error` is raised instead, `gate` waits."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.seen: list[InferRequest] = []
        self.time_left: float = 0.0
        self.in_flight = 0
        self.most_in_flight = 0
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[int], bool]) -> None:
        """Wait until `condition` holds for the number in flight."""
        while not condition(self.in_flight):
            await self._changed.wait()

    def _count(self, step: int) -> None:
        self.in_flight += step
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._changed.set()
        self._changed = asyncio.Event()

    async def call(
        self,
        request: InferRequest,
        replicas: Callable[[], Sequence[Replica]],
        items: int,
        deadline: float,
        *,
        idempotent: bool,
        sharded: bool = False,
    ) -> tuple[InferReply, Ticket]:
        self.seen.append(request)
        self.time_left = deadline - time.monotonic()
        self._count(1)
        self.entered.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self._count(-1)
        if self.error is not None:
            raise self.error
        reply = InferReply(self._compute(request), parameters={"service_us": 700, "batch": items})
        device = replicas()[0].device
        return reply, Ticket(device, request.model_name, items, 1.0, 0.0)

    def _compute(self, request: InferRequest) -> list[Tensor]:
        first = request.inputs[0]
        if request.model_name == "add":
            total = np.add(first.data, request.inputs[1].data)
            return [Tensor("sum", "FP32", total)]
        return [Tensor("y", first.datatype, first.data)]


@dataclass
class Repository:
    """Remembers what it was told; knows the model `add` only."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    async def index(self) -> list[dict[str, str]]:
        return [
            {"name": "add", "version": "1", "state": "READY", "reason": ""},
            {"name": "old", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
        ]

    async def load(self, name: str) -> None:
        self._call("load", name)

    async def unload(self, name: str) -> None:
        self._call("unload", name)

    def _call(self, verb: str, name: str) -> None:
        if name != "add":
            raise NotFoundError(f"there is no model '{name}': push it first")
        self.calls.append((verb, name))


def served(name: str, inputs: Sequence[TensorSpec], output: TensorSpec, **more: Any) -> ServedModel:
    signature = ModelSignature(inputs=tuple(inputs), outputs=(output,))
    replicas = (Replica("board-1", fit([(1, 1.0)])),)
    settings = {"replicas": replicas} | more
    return ServedModel(name, "1", "onnxruntime_onnx", signature, 1024, **settings)


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


@dataclass
class Served:
    """A running server and what lies behind it."""

    gateway: Gateway
    fleet: Fleet
    repository: Repository
    port: int = 0
    channel: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def assemble() -> Served:
    table = ServingTable()
    models = [
        served(f"identity-{dt.lower()}", [spec("x", dt, -1, -1)], spec("y", dt, -1, -1))
        for dt in NUMPY
    ]
    add_inputs = [spec("a", "FP32", -1, 4), spec("b", "FP32", -1, 4)]
    models.append(served("add", add_inputs, spec("sum", "FP32", -1, 4)))
    labels = {"y": ("cat", "dog", "fish")}
    rows = spec("x", "FP32", -1, 3)
    models.append(served("labels", [rows], spec("y", "FP32", -1, 3), labels=labels))
    models.append(served("idle", [rows], spec("y", "FP32", -1, 3), replicas=()))
    table.publish(models)
    fleet, repository = Fleet(), Repository()
    gateway = Gateway(table, cast(Dispatcher, fleet), repository, clock=time.monotonic)
    return Served(gateway, fleet, repository)


@pytest.fixture
async def served_grpc() -> AsyncIterator[Served]:
    world = assemble()
    server = GrpcServer(world.gateway, "127.0.0.1", 0, MAX_BYTES)
    world.port = await server.start()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, 0)
        world.channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(world.address, options=options)
        )
        yield world
