"""The pool and its manager over a place that runs for real: from nothing to answers and back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from clouds.models import SIGNATURE, Shelf, Weights
from clouds.rig import KIND, Rig, eventually

from shoal_controlplane.gateway.clouds import Level, Pressure
from shoal_controlplane.gateway.table import ServedModel
from shoal_controlplane.offload.manager import CloudManager, TargetPlan, WantedModel
from shoal_controlplane.offload.pool import CloudPool
from shoal_controlplane.offload.scaling import ScalingSettings
from shoal_controlplane.offload.state import ModelOnTarget, State
from shoal_controlplane.offload.target import Price
from shoal_controlplane.planner.snapshot import ModelKey

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(not KIND, reason="needs the packages of a cloud: run `make test-clouds`"),
]


async def test_pre_warmed_asked_and_given_up(rig: Rig, models: Shelf) -> None:
    weights = Weights(11)
    model = models.model("managed", weights)
    settings = replace(rig.settings, price=Price(per_replica_hour=1.0), max_replicas=1)
    served = ServedModel(
        model.name,
        model.version,
        "onnxruntime_onnx",
        SIGNATURE,
        model.max_batch,
        offload=(settings.name,),
    )
    states: list[State] = []

    def changed(target: str, key: ModelKey, state: State, sentence: str) -> None:
        states.append(state)

    pool = CloudPool(time.monotonic)
    manager = CloudManager(
        pool,
        time.monotonic,
        changed=changed,
        scaling=ScalingSettings(down_s=0.5, idle_s=1.0),
    )

    def seen() -> ModelOnTarget:
        ((model_on_target,),) = (picture.models for picture in manager.pictures())
        return model_on_target

    async def warm() -> bool:
        pool.demand(served, Pressure(Level.RISING))
        return bool(pool.options(served, 1, 48, time.monotonic()))

    async def cold() -> bool:
        return seen().ready == 0

    await manager.start()
    try:
        manager.set_targets([TargetPlan(settings, cap_per_hour=100.0)])
        manager.set_wanted([WantedModel(model, (settings.name,))])
        await eventually("it is warm", warm, rig.patience_s)
        before = seen()
        assert before.state is State.READY
        assert before.p95_ms is not None, "it was measured before anyone was sent there"
        questions = [weights.question(1 + i % 4, seed=i) for i in range(16)]
        replies = await asyncio.gather(
            *(
                pool.infer(
                    settings.name,
                    served,
                    question.request,
                    question.request.inputs[0].data.shape[0],
                    time.monotonic() + 30,
                )
                for question in questions
            )
        )
        for question, reply in zip(questions, replies, strict=True):
            question.check(reply)
        assert seen().requests == before.requests + 16
        assert seen().failures == 0
        (picture,) = manager.pictures()
        assert picture.where
        assert 0 < picture.spent < 1.0
        if rig.can_scale_to_zero:
            await eventually("it is cold again", cold, rig.patience_s)
            assert states[-3:] == [State.WARMING, State.READY, State.COLD]
        manager.set_wanted([])

        async def gone() -> bool:
            return not manager.pictures()[0].models

        await eventually("nothing of it stays", gone, rig.patience_s)
    finally:
        await manager.stop()
        await rig.target.remove(model.key)
