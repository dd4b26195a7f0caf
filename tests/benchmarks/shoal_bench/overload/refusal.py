"""What a refusal costs in real time: an HTTP request through the real ASGI application to 429."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import numpy as np

from shoal_bench.router.scenario import FLEET_MS
from shoal_controlplane.gateway.admission import Admission
from shoal_controlplane.gateway.clouds import NoClouds
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.http import InferenceApp
from shoal_controlplane.gateway.overflow import Overflow
from shoal_controlplane.gateway.pressure import Pressures
from shoal_controlplane.gateway.router import Router
from shoal_controlplane.gateway.service import Gateway
from shoal_controlplane.gateway.table import Replica, ServedModel, ServingTable
from shoal_shared import oip
from shoal_shared.oip import InferRequest, Tensor
from shoal_shared.profiles import fit
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.topics import Topics

PICTURE = (1, 3, 224, 224)
_QUEUE = 2000


class _SilentLink:
    """A broker behind which nobody answers."""

    connected = True

    def subscribe(self, topic_filter: str, qos: int, handler: Any) -> None:
        return

    def on_connection(self, callback: Any) -> None:
        return

    def publish(self, topic: str, payload: bytes, **more: Any) -> bool:
        return True


def refusal_ms(samples: int) -> list[float]:
    """Milliseconds from the first byte of a request with a picture of 602 kB to the end of its
    answer 429, `samples` times, while the devices' queues are full."""
    return asyncio.run(_refusals(samples))


async def _refusals(samples: int) -> list[float]:
    replicas = tuple(Replica(str(i), fit([(1, ms)])) for i, ms in enumerate(FLEET_MS))
    signature = ModelSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 224, 224)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1000)),),
    )
    model = ServedModel("resnet50", "1", "onnxruntime_onnx", signature, 1, replicas, slo_ms=100.0)
    table, clock = ServingTable(), time.monotonic
    table.publish([model])
    router = Router(rng=random.Random(0))
    dispatcher = Dispatcher(_SilentLink(), Topics("bench"), "g", router, clock)
    pressures = Pressures(router, table.all, NoClouds(), clock)
    overflow = Overflow(dispatcher, Admission(), NoClouds(), pressures, clock)
    gateway: Any = Gateway(table, dispatcher, _no_repository(), clock=clock, overflow=overflow)
    app = InferenceApp(gateway)
    for _ in range(_QUEUE):
        router.pick("resnet50:1", replicas, 1, clock())
    buffers, length = oip.encode_request(
        InferRequest([Tensor("x", "FP32", np.zeros(PICTURE, np.float32))])
    )
    body = b"".join(buffers)
    headers = [(oip.HEADER_LENGTH.lower().encode(), str(length).encode())]
    path = "/v2/models/resnet50/infer"
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    times = []
    for _ in range(samples):
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(event: Any) -> None:
            nonlocal status
            status = event.get("status", status)

        began = time.perf_counter()
        await app(dict(scope), receive, send)
        times.append((time.perf_counter() - began) * 1e3)
        if status != 429:
            raise AssertionError(f"answered {status} instead of refusing")
        # So the queue, which nobody works on, stays long by the clock, too.
        router.pick("resnet50:1", replicas, 1, clock())
    return times


def _no_repository() -> Any:
    return None
