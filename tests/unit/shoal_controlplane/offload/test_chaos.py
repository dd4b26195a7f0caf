"""Targets that fail in all ways at random times: nothing hangs, nothing is overspent, and all comes
back when the faults are over."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from support.targets import ScriptedTarget, cloud_model, hanging, question, raising, served_model
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.clouds import Level, Pressure
from shoal_controlplane.offload.manager import CloudManager, TargetPlan, WantedModel
from shoal_controlplane.offload.placing import Timing
from shoal_controlplane.offload.pool import CloudPool
from shoal_controlplane.offload.state import State
from shoal_controlplane.offload.target import (
    CloudTarget,
    Fault,
    Price,
    TargetError,
    TargetSettings,
)

NAMES = ("a", "b", "c")
KEY = ("m", "1")
HOOKS = ("on_describe", "on_deploy", "on_scale", "on_infer", "on_health", "on_remove")
PASSING = [fault for fault in Fault if fault is not Fault.UNSUPPORTED]
TIMEOUT_S = 2.0


class Chaos:
    """Three targets, a client that always asks, and somebody who breaks things."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = asyncio.get_running_loop().time
        self.pool = CloudPool(self.clock)
        self.targets: dict[str, ScriptedTarget] = {}
        self.asked = self.answered = 0
        self.manager = CloudManager(
            self.pool,
            self.clock,
            opener=self._open,
            timing=Timing(deploy_s=20, call_s=5, patience_s=60),
            rng=self.rng,
        )

    async def _open(self, target: TargetSettings) -> CloudTarget:
        self.targets[target.name] = ScriptedTarget(target, latency_s=self.rng.uniform(0.01, 0.1))
        return self.targets[target.name]

    def break_something(self) -> None:
        target = self.targets[self.rng.choice(NAMES)]
        kind = self.rng.randrange(5)
        if kind == 0 and KEY in target.replicas:
            target.lose_replicas(KEY)
        elif kind == 1:
            target.deployed.clear()
            target.replicas.clear()
        elif kind == 2:
            setattr(target, self.rng.choice(HOOKS), hanging)
        elif kind == 3:
            target.most = self.rng.randrange(3)
        else:
            fault = raising(self.rng.choice(PASSING), "broken", self.rng.choice([None, 1.0, 9.0]))
            setattr(target, self.rng.choice(HOOKS), fault)

    def mend(self, name: str) -> None:
        target = self.targets[name]
        target.most = None
        for hook in HOOKS:
            setattr(target, hook, None)

    async def ask(self) -> None:
        model, began = served_model(*NAMES), self.clock()
        for option in self.pool.options(model, 1, 16, began):
            self.asked += 1
            try:
                await self.pool.infer(option.target, model, question(), 1, began + TIMEOUT_S)
            except TargetError as error:
                assert error.fault is not Fault.UNSUPPORTED
            else:
                self.answered += 1
                break
        assert self.clock() - began <= len(NAMES) * (TIMEOUT_S + 0.5)

    async def press(self, seconds: int, *, breaking: bool) -> None:
        asking: set[asyncio.Task[None]] = set()
        for _ in range(seconds):
            self.pool.demand(served_model(*NAMES), Pressure(Level.SATURATED, 30.0))
            if breaking and self.rng.random() < 0.5:
                self.break_something()
            if breaking and self.rng.random() < 0.2:
                self.mend(self.rng.choice(NAMES))
            for _ in range(3):
                await asyncio.sleep(1 / 3)
                task = asyncio.ensure_future(self.ask())
                asking.add(task)
        await asyncio.gather(*asking)


@settings(max_examples=6)
@given(st.integers(0, 10**6))
def test_faults_at_random(seed: int) -> None:
    @virtual_time
    async def run() -> None:
        chaos = Chaos(seed)
        price = Price(per_replica_hour=1.0, per_request=0.0001)
        plans = [
            TargetPlan(TargetSettings(name, "kserve", price=price, max_replicas=3), 6.0)
            for name in NAMES
        ]
        chaos.manager.set_targets(plans)
        chaos.manager.set_wanted([WantedModel(cloud_model(), NAMES)])
        await chaos.manager.start()
        await chaos.press(20, breaking=False)
        assert chaos.answered == chaos.asked > 0
        await chaos.press(200, breaking=True)
        for picture in chaos.manager.pictures():
            assert picture.left is not None
            assert picture.left >= -1e-3
            assert picture.spent <= 6.0
        for name in NAMES:
            chaos.mend(name)
        await chaos.press(200, breaking=False)
        states = {p.name: p.models[0].state for p in chaos.manager.pictures()}
        assert set(states.values()) <= {State.READY, State.COLD}, states
        assert State.READY in states.values()
        chaos.asked = chaos.answered = 0
        await chaos.press(10, breaking=False)
        assert chaos.answered == chaos.asked > 0
        placed = list(chaos.pool.placed.values())
        await chaos.manager.stop()
        assert all(p.in_flight == p.in_flight_items == 0 for p in placed)
        assert len(asyncio.all_tasks()) == 1
        assert all(target.closed for target in chaos.targets.values())

    run()
