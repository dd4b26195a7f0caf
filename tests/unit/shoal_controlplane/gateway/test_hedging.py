"""Requests that are late, in virtual time: a second device, the budget, and who is cancelled."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway import Sent, Task, World, begin, nothing_left, pipeline, replica, row
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.call import MIN_SILENCE_S, Call
from shoal_controlplane.gateway.hedging import BURST, FLOOR_MS, SHARE, Hedging, late_after_ms
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_shared.oip import InferRequest
from shoal_shared.profiles import fit
from shoal_shared.status import InferCode

SERVICE_S = 0.010


async def warm(world: World, requests: int = 60) -> None:
    """Answer requests one after the other, each in the time that is expected of it."""
    for _ in range(requests):
        task = await begin(world)
        await asyncio.sleep(SERVICE_S)
        world.link.answer(world.link.sent[-1])
        await task
    world.link.sent.clear()


async def hedged(world: World) -> tuple[Task, Sent, Sent]:
    """A request whose first device is late, so that a second one was asked."""
    task = await begin(world)
    await asyncio.sleep(MIN_SILENCE_S / 4)
    first, second = world.link.sent[-2:]
    assert first.message.correlation != second.message.correlation
    return task, first, second


@virtual_time
async def test_a_late_request_goes_to_a_second_device_and_the_first_is_told_to_drop_it() -> None:
    world = World("d1", "d2")
    await warm(world)
    task, first, second = await hedged(world)
    assert {first.device, second.device} == {"d1", "d2"}
    assert world.dispatcher.hedges.sent == 1
    world.link.answer(second, row(2, name="y"))
    reply, ticket = await task
    assert (ticket.device, reply.outputs[0].data.tolist()) == (second.device, [[2]])
    assert world.dispatcher.hedges.won == 1
    assert world.link.cancelled == [first]
    assert world.failures(first.device) == 0
    assert nothing_left(world)


@virtual_time
async def test_the_first_device_may_win_yet() -> None:
    world = World("d1", "d2")
    await warm(world)
    task, first, second = await hedged(world)
    world.link.answer(first)
    assert (await task)[1].device == first.device
    hedges = world.dispatcher.hedges
    assert (hedges.sent, hedges.won) == (1, 0)
    assert world.link.cancelled == [second]
    assert world.failures(first.device) == world.failures(second.device) == 0
    assert nothing_left(world)


@virtual_time
async def test_the_late_answer_of_the_loser_teaches_the_router_and_nobody_else() -> None:
    world = World("d1", "d2")
    await warm(world)
    task, first, second = await hedged(world)
    world.link.answer(second)
    await task
    work = world.router._devices[first.device].work["cat:1"]
    world.link.answer(first, service_us=1_000_000)
    assert work.factor(world.clock()) > 20
    world.link.answer(first)
    world.link.refuse(first, InferCode.INTERNAL)
    assert nothing_left(world)
    assert world.ejected() == []


@virtual_time
async def test_without_budget_there_is_no_hedge_but_another_attempt_after_silence() -> None:
    world = World("d1", "d2")
    task = await begin(world)
    await asyncio.sleep(MIN_SILENCE_S * 0.9)
    assert len(world.link.sent) == 1
    await asyncio.sleep(MIN_SILENCE_S * 0.2)
    assert len(world.link.sent) == 2
    world.link.answer(world.link.sent[1])
    await task
    assert world.dispatcher.hedges.sent == 0


@virtual_time
async def test_silence_of_both_devices_is_blamed_on_both() -> None:
    world = World("d1", "d2", "d3")
    await warm(world)
    task, first, second = await hedged(world)
    await asyncio.sleep(MIN_SILENCE_S)
    third = world.link.sent[-1]
    assert len({first.device, second.device, third.device}) == 3
    assert world.failures(first.device) == 1
    world.link.answer(third)
    await task
    assert {s.device for s in world.link.cancelled} == {first.device, second.device}
    assert nothing_left(world)


@virtual_time
async def test_no_second_device_where_it_would_be_slower_than_the_first() -> None:
    world = World("d1")
    await warm(world)
    world.replicas = (replica("d1"), replica("d2", profile=fit([(1, 1000.0)])))
    task = await begin(world)
    await asyncio.sleep(MIN_SILENCE_S * 0.9)
    (sent,) = world.link.sent
    world.link.answer(sent)
    await task
    assert nothing_left(world)


@pytest.mark.parametrize("kind", ["sequence", "pipeline", "the caller's"])
def test_what_is_never_hedged(kind: str) -> None:
    @virtual_time
    async def test() -> None:
        world = World("d1", "d2")
        await warm(world)
        if kind == "pipeline":
            world.serve(pipeline("p1", 1, "d1"))
            task = await begin(world)
            world.serve(pipeline("p1", 1, "d1"), replica("d2"))
        elif kind == "sequence":
            task = await begin(world, idempotent=False)
        else:
            request = InferRequest([row(1, 2, 3)], [], "cat", "1")
            deadline = world.clock() + 10
            call = world.dispatcher.call(request, lambda: world.replicas, 1, deadline, hedges=False)
            task = asyncio.create_task(call)
        await asyncio.sleep(MIN_SILENCE_S * 0.9)
        assert len(world.link.sent) == 1
        world.link.answer(world.link.sent[0], **({"epoch": 1} if kind == "pipeline" else {}))
        await task
        assert world.link.cancelled == []
        assert nothing_left(world)

    test()


@virtual_time
async def test_a_caller_that_goes_cancels_its_request_wherever_it_is() -> None:
    world = World("d1", "d2")
    await warm(world)
    task, first, second = await hedged(world)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert world.link.cancelled == [first, second]
    assert nothing_left(world)


@virtual_time
async def test_what_the_deadline_ends_is_not_cancelled_too() -> None:
    world = World("d1")
    task = await begin(world, timeout_s=0.05)
    await asyncio.gather(task, return_exceptions=True)
    assert len(world.link.sent) == 1
    assert world.link.cancelled == []


@virtual_time
async def test_a_cancel_without_a_session_is_dropped() -> None:
    world = World("d1")
    task = await begin(world)
    world.link.connected = False
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert nothing_left(world)


@virtual_time
async def test_the_budget_holds_when_a_device_hangs_under_load() -> None:
    world = World("d1", "d2")
    await warm(world)
    requests, tasks = 60, []
    for _ in range(1000):
        task = await begin(world)
        tasks.append(task)
        requests += 1
        await asyncio.sleep(0.002)
        for sent in world.link.sent:
            if sent.device == "d2":
                world.link.answer(sent)
        world.link.sent = [sent for sent in world.link.sent if sent.device == "d1"]
        assert world.dispatcher.hedges.sent <= SHARE * requests
    await asyncio.sleep(5)
    for sent in world.link.sent:
        world.link.answer(sent)
    await asyncio.gather(*tasks)
    assert world.dispatcher.hedges.sent > 0
    assert nothing_left(world)


class _Call:
    """As much of a call as the budget looks at."""

    def __init__(self) -> None:
        self.model, self.items, self.attempts_left = "cat:1", 1, 2
        self.tried = {"d1"}
        self.hedges, self.hedge = True, None
        self.answer: Future[None] = Future()

    @staticmethod
    def replicas() -> tuple[object, ...]:
        return (replica("d1"), replica("d2"))


@given(st.lists(st.sampled_from(["request", "late"]), max_size=600), st.integers(0, 600))
def test_hedges_never_exceed_their_share(steps: list[str], quiet: int) -> None:
    hedging, router, requests = Hedging(), Router(), 0
    first = router.pick("cat:1", [replica("d1")], 1, 0.0)
    assert first is not None
    call: Call = _Call()  # type: ignore[assignment]
    since: list[int] = []
    for step in ["request"] * quiet + steps:
        if step == "request":
            requests += 1
            hedging.request()
            since = [n + 1 for n in since]
        else:
            second = hedging.second(router, call, first, 10.0)
            if second is not None:
                hedging.count(call, second)
                router.withdrawn(second)
                since.append(0)
        assert hedging.sent <= SHARE * requests + 1e-6
        # Nor in any stretch of requests, but for the burst.
        for count, length in enumerate(reversed(since), 1):
            assert count <= BURST + SHARE * length + 1e-6


def test_nothing_is_late_before_timers_can_tell() -> None:
    assert late_after_ms(Ticket("d", "m:1", 1, 0.1, 0.0)) == FLOOR_MS
    assert late_after_ms(Ticket("d", "m:1", 1, 1.0, 0.0, round_trip_ms=30.0)) == 60.0
    assert late_after_ms(Ticket("d", "m:1", 1, 10.0, 0.0, p95_ms=25.0)) == 25.0
