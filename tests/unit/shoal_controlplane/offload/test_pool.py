"""The pool on the way of requests, over targets by script, in virtual time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import numpy as np
import pytest
from support.targets import (
    ScriptedTarget,
    cloud_model,
    hanging,
    question,
    raising,
    served_model,
)
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.clouds import Clouds
from shoal_controlplane.offload.breaker import Breaker, BreakerSettings
from shoal_controlplane.offload.budget import Budget
from shoal_controlplane.offload.learning import Learner
from shoal_controlplane.offload.pool import CloudPool
from shoal_controlplane.offload.state import Placed, Retry, State, TargetState, judge
from shoal_controlplane.offload.target import Fault, Price, TargetError, TargetSettings
from shoal_shared.oip import InferReply, InferRequest, Tensor

FREE = Price()


def now() -> float:
    return asyncio.get_running_loop().time()


class Bench:
    """A pool whose targets are ready, without a manager."""

    def __init__(self) -> None:
        self.pool = CloudPool(asyncio.get_running_loop().time)

    def target(
        self,
        name: str = "aks",
        *,
        latency_s: float = 0.02,
        price: Price = FREE,
        cap: float | None = None,
        replicas: int = 1,
        busy_s: float = 0.0,
    ) -> tuple[ScriptedTarget, Placed]:
        settings = TargetSettings(name, "kserve", price=price, max_replicas=4)
        target = ScriptedTarget(settings, latency_s=latency_s, busy_s=busy_s)
        model = cloud_model()
        target.deployed[model.key] = model
        target.replicas[model.key] = [0.0] * replicas
        owner = TargetState(settings, Budget(cap, now()), cloud=target, price=price)
        placed = Placed(
            owner,
            model,
            Learner(),
            Breaker(BreakerSettings(), random.Random(1)),
            *(Retry(1, 60) for _ in range(4)),
            deployed=True,
            ready=replicas,
            healthy=replicas,
        )
        self.pool.targets[name] = owner
        self.pool.placed[name, model.key] = placed
        return target, placed

    async def ask(
        self, name: str = "aks", request: InferRequest | None = None, timeout_s: float = 5.0
    ) -> InferReply:
        request = request or question()
        items = request.inputs[0].data.shape[0]
        return await self.pool.infer(name, served_model(name), request, items, now() + timeout_s)

    def names(self, *targets: str, items: int = 1) -> list[str]:
        options = self.pool.options(served_model(*targets), items, 16, now())
        return [option.target for option in options]

    async def fault(self, name: str = "aks", timeout_s: float = 5.0) -> TargetError:
        with pytest.raises(TargetError) as caught:
            await self.ask(name, timeout_s=timeout_s)
        return caught.value


@virtual_time
async def test_it_is_what_the_gateway_asks_for() -> None:
    bench = Bench()
    bench.target()
    clouds: Clouds = bench.pool
    (option,) = clouds.options(served_model("aks"), 2, 32, now())
    assert option.target == "aks"
    assert option.finish_ms > 0
    reply = await clouds.infer("aks", served_model("aks"), question(2, 3.0), 2, now() + 1)
    np.testing.assert_array_equal(reply.outputs[0].data, np.full((2, 4), 6.0, np.float32))


@virtual_time
async def test_a_target_that_the_deployment_does_not_name_is_no_option() -> None:
    bench = Bench()
    bench.target()
    assert bench.names("other") == []
    assert bench.names() == []
    with pytest.raises(TargetError) as caught:
        await bench.pool.infer("other", served_model("other"), question(), 1, now() + 1)
    assert caught.value.fault is Fault.NOT_DEPLOYED


@virtual_time
async def test_the_faster_comes_first_and_among_alike_the_cheaper() -> None:
    bench = Bench()
    bench.target("slow", latency_s=0.2)
    bench.target("dear", latency_s=0.02, price=Price(per_request=0.01))
    bench.target("cheap", latency_s=0.02, price=Price(per_request=0.001))
    for _ in range(40):
        for name in ("slow", "dear", "cheap"):
            await bench.ask(name)
    options = bench.pool.options(served_model("slow", "dear", "cheap"), 1, 16, now())
    assert [option.target for option in options] == ["cheap", "dear", "slow"]
    assert options[0].price < options[1].price
    assert options[0].finish_ms == pytest.approx(20, rel=0.2)
    assert options[2].finish_ms == pytest.approx(200, rel=0.2)


@virtual_time
async def test_what_is_under_way_is_before_the_next_one() -> None:
    bench = Bench()
    _, placed = bench.target(busy_s=0.02)
    for _ in range(20):
        await asyncio.gather(*(bench.ask() for _ in range(4)))
    alone = bench.pool.options(served_model("aks"), 1, 16, now())[0].finish_ms
    asking = [asyncio.ensure_future(bench.ask()) for _ in range(4)]
    await asyncio.sleep(0)
    busy = bench.pool.options(served_model("aks"), 1, 16, now())[0].finish_ms
    assert busy - alone == pytest.approx(4 * 20, rel=0.4)
    await asyncio.gather(*asking)
    assert placed.capacity.items_per_s == pytest.approx(50, rel=0.3)


@virtual_time
async def test_a_full_target_is_no_option_until_it_has_room() -> None:
    bench = Bench()
    target, placed = bench.target()
    target.on_infer = hanging
    asking = []
    while bench.names("aks"):
        asking.append(asyncio.ensure_future(bench.ask()))
        await asyncio.sleep(0)
        assert len(asking) < 1000
    assert placed.in_flight_items >= 8
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert placed.in_flight == placed.in_flight_items == 0
    assert bench.names("aks") == ["aks"]
    # Larger than the room of a replica, but alone.
    assert bench.names("aks", items=1000) == ["aks"]


@virtual_time
async def test_cold_targets_are_no_options() -> None:
    bench = Bench()
    _, placed = bench.target()
    placed.ready = 0
    assert bench.names("aks") == []


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.BROKEN, Fault.CONFLICT])
def test_faults_eject_and_a_probe_brings_back(fault: Fault) -> None:
    @virtual_time
    async def run() -> None:
        bench = Bench()
        target, placed = bench.target()
        target.on_infer = raising(fault, "it failed")
        assert (await bench.fault()).fault is fault
        assert bench.names("aks") == ["aks"]
        await bench.fault()
        assert bench.names("aks") == []
        state, sentence = judge(placed, now())
        assert state is State.EJECTED
        assert "it failed" in sentence
        await asyncio.sleep(1.3)
        assert bench.names("aks") == ["aks"]
        probe = asyncio.ensure_future(bench.fault())
        await asyncio.sleep(0)
        await probe
        assert bench.names("aks") == []
        target.on_infer = None
        await asyncio.sleep(2.5)
        await bench.ask()
        assert bench.names("aks") == ["aks"]
        assert judge(placed, now())[0] is State.READY
        assert placed.failures == 3
        assert placed.requests == 4

    run()


@virtual_time
async def test_only_one_request_is_the_probe() -> None:
    bench = Bench()
    target, placed = bench.target()
    placed.breaker.eject(now())
    await asyncio.sleep(2)
    target.on_infer = hanging
    probe = asyncio.ensure_future(bench.ask(timeout_s=60))
    await asyncio.sleep(0)
    assert bench.names("aks") == []
    probe.cancel()
    await asyncio.wait([probe])
    assert bench.names("aks") == ["aks"]


@virtual_time
async def test_what_the_request_is_to_blame_for_is_not_held_against_it() -> None:
    bench = Bench()
    target, placed = bench.target()
    target.on_infer = raising(Fault.INVALID)
    for _ in range(10):
        assert (await bench.fault()).fault is Fault.INVALID
    assert bench.names("aks") == ["aks"]
    assert placed.failures == 0
    assert placed.learner.samples == 0


@virtual_time
async def test_a_timeout_that_was_too_short_is_not_held_against_it() -> None:
    bench = Bench()
    target, placed = bench.target(latency_s=0.1)
    for _ in range(30):
        await bench.ask()
    for _ in range(10):
        assert (await bench.fault(timeout_s=0.05)).fault is Fault.TIMEOUT
    assert bench.names("aks") == ["aks"]
    assert placed.learner.samples == 30
    # But one that should have been enough is, and it is learnt from.
    target.on_infer = hanging
    for _ in range(2):
        assert (await bench.fault(timeout_s=1.0)).fault is Fault.TIMEOUT
    assert bench.names("aks") == []
    assert placed.learner.expect(1, 16, 0, now()).p95_ms > 500


@virtual_time
async def test_no_time_is_left() -> None:
    bench = Bench()
    target, placed = bench.target()
    assert (await bench.fault(timeout_s=0.0)).fault is Fault.TIMEOUT
    assert target.calls["infer"] == 0
    assert placed.in_flight == 0


@virtual_time
async def test_a_target_that_ignores_its_timeout_is_ended() -> None:
    bench = Bench()
    target, _ = bench.target()

    async def deaf(*_: object) -> InferReply:
        await hanging()
        raise AssertionError

    target.infer = deaf  # type: ignore[method-assign]
    before = now()
    assert (await bench.fault(timeout_s=2.0)).fault is Fault.TIMEOUT
    assert now() - before < 2.5


@virtual_time
async def test_refused_credentials_eject_at_once_until_a_health_check_passes() -> None:
    bench = Bench()
    target, placed = bench.target()
    target.on_infer = raising(Fault.CREDENTIALS, "aks answered 401")
    await bench.fault()
    assert bench.names("aks") == []
    assert judge(placed, now()) == (State.EJECTED, "aks answered 401")
    assert placed.owner.wake.is_set()
    await asyncio.sleep(1000)
    assert bench.names("aks") == []
    placed.owner.refused = ""
    assert bench.names("aks") == ["aks"]


@virtual_time
async def test_a_throttled_target_is_left_alone_as_long_as_it_says() -> None:
    bench = Bench()
    target, _ = bench.target()
    target.on_infer = raising(Fault.THROTTLED, "aks answered 429", 30.0)
    assert (await bench.fault()).retry_after_s == 30.0
    await asyncio.sleep(29)
    assert bench.names("aks") == []
    await asyncio.sleep(1.1)
    assert bench.names("aks") == ["aks"]


@virtual_time
async def test_a_model_that_is_gone_there_gets_nothing_until_it_is_back() -> None:
    bench = Bench()
    target, placed = bench.target()
    target.on_infer = raising(Fault.NOT_DEPLOYED)
    await bench.fault()
    assert bench.names("aks") == []
    assert placed.ready == 0
    assert placed.wake.is_set()


@virtual_time
async def test_an_answer_with_another_batch_is_no_answer() -> None:
    bench = Bench()
    target, _ = bench.target()
    target.answer = lambda request: InferReply([Tensor("y", "FP32", np.zeros((9, 4), np.float32))])
    error = await bench.fault()
    assert error.fault is Fault.BROKEN
    assert "[9, 4]" in str(error)


@virtual_time
async def test_a_fault_of_an_sdk_is_a_fault_of_the_target() -> None:
    bench = Bench()
    target, placed = bench.target()

    async def fall() -> None:
        raise ZeroDivisionError("secret")

    target.on_infer = fall
    error = await bench.fault()
    assert error.fault is Fault.BROKEN
    assert "ZeroDivisionError" in str(error)
    assert "secret" not in str(error)
    assert placed.in_flight == 0


@virtual_time
async def test_spending_stops_at_the_cap_and_goes_on_later() -> None:
    bench = Bench()
    target, placed = bench.target(price=Price(per_request=0.01), cap=0.6)
    answered = 0
    while bench.names("aks"):
        await bench.ask()
        answered += 1
        assert answered < 100
    # A sixth of the cap at once.
    assert answered == 10
    assert judge(placed, now())[0] is State.OVER_BUDGET
    error = await bench.fault()
    assert error.fault is Fault.QUOTA
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s < 61
    assert target.calls["infer"] == answered
    assert bench.names("aks") == []
    await asyncio.sleep(error.retry_after_s)
    assert bench.names("aks") == ["aks"]


@virtual_time
async def test_a_burst_of_decisions_does_not_overdraw() -> None:
    bench = Bench()
    target, placed = bench.target(price=Price(per_request=0.01), cap=0.6)
    results = await asyncio.gather(*(bench.ask() for _ in range(16)), return_exceptions=True)
    assert sum(isinstance(result, InferReply) for result in results) == 10
    assert target.calls["infer"] == 10
    assert placed.owner.budget.left(now()) >= 0


@virtual_time
async def test_a_cancelled_request_leaves_nothing_behind() -> None:
    bench = Bench()
    target, placed = bench.target()
    target.on_infer = hanging
    task = asyncio.ensure_future(bench.ask())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert placed.in_flight == placed.in_flight_items == placed.failures == 0
    assert bench.names("aks") == ["aks"]


@virtual_time
async def test_pressure_raises_the_alarm_when_it_changes_and_is_forgotten() -> None:
    from shoal_controlplane.gateway.clouds import Level, Pressure

    bench = Bench()
    model, key = served_model("aks"), ("m", "1")
    assert bench.pool.pressure(key, now()).level is Level.CALM
    bench.pool.demand(model, Pressure(Level.SATURATED, 10.0))
    assert bench.pool.alarm.is_set()
    bench.pool.alarm.clear()
    bench.pool.demand(model, Pressure(Level.SATURATED, 11.0))
    assert not bench.pool.alarm.is_set()
    bench.pool.demand(model, Pressure(Level.SATURATED, 30.0))
    assert bench.pool.alarm.is_set()
    assert bench.pool.pressure(key, now()).excess_per_s == 30.0
    await asyncio.sleep(3.5)
    assert bench.pool.pressure(key, now()).level is Level.CALM
    bench.pool.demand(replace(model, offload=()), Pressure(Level.RISING))
    assert bench.pool.pressure(key, now()).level is Level.CALM
    bench.pool.demand(model, Pressure(Level.RISING))
    bench.pool.keep([key])
    assert bench.pool.pressure(key, now()).level is Level.RISING
    bench.pool.keep([])
    assert bench.pool.pressure(key, now()).level is Level.CALM
