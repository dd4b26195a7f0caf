"""What the decision on one request costs, in real time, with the real pool of targets."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, cast

from shoal_bench.router.scenario import FLEET_MS
from shoal_controlplane.gateway.admission import Admission
from shoal_controlplane.gateway.errors import GatewayError
from shoal_controlplane.gateway.overflow import Job, Overflow, Terms
from shoal_controlplane.gateway.pressure import Pressures
from shoal_controlplane.gateway.router import Router
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_controlplane.offload.breaker import Breaker, BreakerSettings
from shoal_controlplane.offload.budget import Budget
from shoal_controlplane.offload.learning import Learner
from shoal_controlplane.offload.pool import CloudPool
from shoal_controlplane.offload.state import Placed, Retry, TargetState
from shoal_controlplane.offload.target import CloudModel, CloudTarget, TargetSettings
from shoal_shared.oip import InferRequest
from shoal_shared.profiles import fit
from shoal_shared.signature import ModelSignature

TARGETS = ("aks", "tpu")
WAYS = {"to a device": 1e4, "to a target": 60.0, "shed": 20.0}
"""By the milliseconds that the request may take, where devices need more than 60."""
_QUEUE = 1600


def _pool(signature: ModelSignature) -> CloudPool:
    pool = CloudPool(time.monotonic)
    model = CloudModel("resnet50", "1", "onnx", Path(), "", "", signature, 0)
    for name in TARGETS:
        owner = TargetState(TargetSettings(name, "kserve"), Budget(None, 0.0))
        owner.cloud = cast(CloudTarget, None)
        breaker = Breaker(BreakerSettings(), random.Random(0))
        pool.targets[name] = owner
        pool.placed[name, model.key] = Placed(
            owner,
            model,
            Learner(),
            breaker,
            deploying=Retry(1.0, 1.0),
            scaling=Retry(1.0, 1.0),
            checking=Retry(1.0, 1.0),
            warming=Retry(1.0, 1.0),
            ready=1,
        )
    return pool


def decision_us(samples: int) -> dict[str, list[float]]:
    """Microseconds of single decisions by what was decided, each `samples` times: from the place
    that the router chose to the place that the request takes, with everything that is counted."""
    signature = ModelSignature(inputs=(), outputs=())
    replicas = tuple(Replica(str(i), fit([(1, ms)])) for i, ms in enumerate(FLEET_MS))
    model = ServedModel(
        "resnet50", "1", "onnxruntime_onnx", signature, 0, replicas, slo_ms=200.0, offload=TARGETS
    )
    router = Router(rng=random.Random(0))
    pool = _pool(signature)
    pressures = Pressures(router, lambda: (model,), pool, time.monotonic)
    overflow = Overflow(cast(Any, None), Admission(), pool, pressures, time.monotonic)
    for _ in range(_QUEUE):
        router.pick("resnet50:1", replicas, 1, 0.0)
    found: dict[str, list[float]] = {}
    for way, left_ms in WAYS.items():
        times = []
        for number in range(samples):
            now = number * 1e-4
            ticket = router.pick("resnet50:1", replicas, 1, 0.0)
            assert ticket is not None
            terms = Terms(now, now + left_ms / 1e3, now + 10.0, client=f"client-{number % 100}")
            job = Job(InferRequest([]), model, lambda: replicas, 1, terms)
            began = time.perf_counter_ns()
            outcome = overflow.admit(job, ticket, now)
            times.append((time.perf_counter_ns() - began) / 1e3)
            router.withdrawn(ticket)
            taken = "to a device" if outcome is None else "to a target"
            if isinstance(outcome, GatewayError):
                taken = "shed"
            if taken != way and number > samples // 10:
                raise AssertionError(f"{taken} instead of {way}: {outcome}")
        found[way] = times
    return found
