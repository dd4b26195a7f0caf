"""Requests through pipelines: credits, epochs, and what happens when a stage goes, in virtual
time."""

from __future__ import annotations

import asyncio
import random

import pytest
from support.gateway import Sent, Task, World, begin, failure, nothing_left, pipeline
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.errors import GatewayStatus
from shoal_controlplane.gateway.pipelines import BAD_REPLIES, MAX_WAITING
from shoal_shared.oip import InferReply, Tensor


def epoch_of(sent: Sent) -> int:
    return int(sent.request.parameters["epoch"])


def answer(world: World, sent: Sent, *service_ms: float) -> None:
    """The last stage answers, with what each stage took."""
    first = sent.request.inputs[0]
    trace = [[f"d{i + 1}", 0, round(ms * 1e3)] for i, ms in enumerate(service_ms)]
    world.link.reply(
        sent,
        InferReply(
            [Tensor("y", first.datatype, first.data)],
            parameters={"service_us": 1000, "batch": 1, "epoch": epoch_of(sent), "trace": trace},
        ),
    )


def world_of(*places: tuple[int, tuple[str, ...]], window: int = 4) -> World:
    world = World()
    world.serve(*(pipeline("cat", epoch, *stages, window=window) for epoch, stages in places))
    return world


@virtual_time
async def test_a_request_goes_to_the_first_stage_with_its_epoch() -> None:
    world = world_of((7, ("d1", "d2")))
    task = await begin(world)
    (sent,) = world.link.sent
    assert sent.device == "cat@7"
    assert sent.message.topic.endswith("/plans/cat/7/0")
    assert epoch_of(sent) == 7
    answer(world, sent)
    reply, ticket = await task
    assert reply.outputs[0].data.tolist() == [[1, 2, 3]]
    assert ticket.device == "cat@7"
    assert nothing_left(world)


@virtual_time
async def test_no_more_requests_are_under_way_than_there_are_credits() -> None:
    world = world_of((1, ("d1", "d2")), window=3)
    tasks = [await begin(world) for _ in range(8)]
    assert len(world.link.sent) == 3
    for done in range(8):
        answer(world, world.link.sent[done])
        await asyncio.sleep(0)
        assert len(world.link.sent) == min(8, done + 4)
    await asyncio.gather(*tasks)
    assert nothing_left(world)


@virtual_time
async def test_who_gives_up_while_waiting_for_a_credit_leaves_it_to_the_next() -> None:
    world = world_of((1, ("d1", "d2")), window=1)
    first, second, third = [await begin(world) for _ in range(3)]
    second.cancel()
    await asyncio.sleep(0)
    answer(world, world.link.sent[0])
    await first
    assert len(world.link.sent) == 2
    answer(world, world.link.sent[1])
    await third
    assert nothing_left(world)


@virtual_time
async def test_a_request_that_waits_too_long_for_a_credit_meets_its_deadline() -> None:
    world = world_of((1, ("d1", "d2")), window=1)
    first = await begin(world, timeout_s=20.0)
    second = await begin(world, timeout_s=0.1)
    assert (await failure(second)).status is GatewayStatus.DEADLINE
    answer(world, world.link.sent[0])
    await first
    assert nothing_left(world)


@virtual_time
async def test_only_so_many_wait() -> None:
    world = world_of((1, ("d1", "d2")), window=1)
    tasks = [await begin(world, timeout_s=1e4) for _ in range(MAX_WAITING + 2)]
    error = await failure(tasks[-1])
    assert error.status is GatewayStatus.EXHAUSTED
    assert error.retry_after_s is not None
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert nothing_left(world)


@virtual_time
async def test_when_a_stage_goes_the_next_epoch_takes_over_at_once() -> None:
    world = world_of((7, ("d1", "d2")), (8, ("d1", "d3")), (9, ("d3", "d2")), window=2)
    tasks = [await begin(world) for _ in range(3)]
    old = list(world.link.sent)
    world.dispatcher.device_gone("d2")
    assert [sent.device for sent in world.link.sent[2:]] == ["cat@8", "cat@8"]
    for sent in old:
        answer(world, sent)  # Too late: of an epoch that was abandoned.
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    for number in range(2, 5):
        answer(world, world.link.sent[number])
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert nothing_left(world)


@virtual_time
async def test_an_abandoned_epoch_is_not_used_again_when_its_device_is_back() -> None:
    world = world_of((7, ("d1", "d2")), (8, ("d1", "d3")))
    world.dispatcher.device_gone("d2")
    first = await begin(world)
    world.dispatcher.device_back("d2")
    second = await begin(world)
    assert [sent.device for sent in world.link.sent] == ["cat@8", "cat@8"]
    third = await begin(world)
    world.dispatcher.device_gone("d3")
    # Nothing is left of the plan but epochs that were abandoned.
    for task in (first, second, third):
        assert (await failure(task)).status is GatewayStatus.UNAVAILABLE
    assert nothing_left(world)


@virtual_time
async def test_a_sharded_models_requests_wait_for_the_next_plan() -> None:
    world = world_of((7, ("d1", "d2")))
    under_way = await begin(world, sharded=True)
    world.dispatcher.device_gone("d2")
    new = await begin(world, sharded=True)
    await asyncio.sleep(1.0)
    assert not under_way.done()
    assert not new.done()
    world.serve(pipeline("cat", 9, "d1", "d3"))
    assert [sent.device for sent in world.link.sent[1:]] == ["cat@9", "cat@9"]
    for sent in world.link.sent[1:]:
        answer(world, sent)
    await asyncio.gather(under_way, new)
    assert nothing_left(world)


@virtual_time
async def test_a_sequence_is_not_sent_twice() -> None:
    world = world_of((7, ("d1", "d2")), (8, ("d1", "d3")))
    task = await begin(world, idempotent=False)
    world.dispatcher.device_gone("d2")
    assert (await failure(task)).status is GatewayStatus.UNAVAILABLE
    assert len(world.link.sent) == 1
    assert nothing_left(world)


@virtual_time
async def test_a_silent_pipeline_is_asked_and_a_cut_off_stage_found() -> None:
    world = world_of((7, ("d1", "d2")), (8, ("d1", "d3")), window=2)
    world.there = {"d1", "d3"}
    told: list[tuple[int, str, str]] = []
    world.dispatcher.pipelines.listeners.append(
        lambda p, device, reason: told.append((p.epoch, device, reason))
    )
    first = await begin(world)
    await asyncio.sleep(3.0)
    assert told == [(7, "d2", "device d2 does not answer")]
    later = await begin(world)
    assert world.link.sent[-1].device == "cat@8"
    for sent in world.link.sent:
        if sent.device == "cat@8":
            answer(world, sent)
    await asyncio.gather(first, later)
    assert nothing_left(world)


@virtual_time
async def test_a_reply_of_another_epoch_is_no_answer() -> None:
    world = world_of((7, ("d1", "d2")))
    task = await begin(world)
    (sent,) = world.link.sent
    sent.request.parameters["epoch"] = 6
    answer(world, sent)
    error = await failure(task)
    assert "cannot be read" in str(error)
    assert nothing_left(world)


@virtual_time
async def test_a_stage_that_is_slow_time_after_time_ends_its_epoch() -> None:
    world = world_of((7, ("d1", "d2")), (8, ("d1", "d3")))
    told: list[tuple[str, str]] = []
    world.dispatcher.pipelines.listeners.append(
        lambda _, device, reason: told.append((device, reason))
    )
    for _ in range(BAD_REPLIES - 1):
        task = await begin(world)
        answer(world, world.link.sent[-1], 10.0, 100.0)
        await task
    task = await begin(world)
    answer(world, world.link.sent[-1], 10.0, 12.0)  # Once well: it starts anew.
    await task
    assert not told
    for _ in range(BAD_REPLIES):
        task = await begin(world)
        answer(world, world.link.sent[-1], 10.0, 100.0)
        await task
    assert told == [("d2", "stage 1 is 10 times too slow")]
    task = await begin(world)
    assert world.link.sent[-1].device == "cat@8"
    answer(world, world.link.sent[-1])
    await task
    assert nothing_left(world)


@pytest.mark.parametrize("trace", [None, 5, [5], [["d1"]], [["d1", 0, "x"]], [["d1", 0, None]]])
@virtual_time
async def test_a_trace_that_is_none_changes_nothing(trace: object) -> None:
    world = world_of((7, ("d1", "d2")))
    task = await begin(world)
    (sent,) = world.link.sent
    first = sent.request.inputs[0]
    parameters = {"service_us": 1, "batch": 1, "epoch": 7, "trace": trace}
    output = Tensor("y", first.datatype, first.data)
    world.link.reply(sent, InferReply([output], parameters=parameters))
    await task
    assert nothing_left(world)


@virtual_time
async def test_a_thousand_flaps_and_no_answer_of_a_stale_epoch() -> None:
    """Devices come and go while the control plane wires ever new epochs and old answers arrive
    late. Every request is answered, and only by an epoch that was not abandoned then."""
    rng = random.Random(4)
    world = World()
    names = [f"d{n}" for n in range(5)]
    away: set[str] = set()
    epoch = 0
    abandoned: set[int] = set()
    world.dispatcher.pipelines.listeners.append(lambda p, *_: abandoned.add(p.epoch))
    answered_by: list[int] = []
    tasks: list[Task] = []
    unanswered: list[Sent] = []
    world.link.on_sent = unanswered.append

    def wire() -> None:
        nonlocal epoch
        there = [name for name in names if name not in away]
        places = []
        for _ in range(3):
            if len(there) >= 2:
                epoch += 1
                places.append(pipeline("cat", epoch, *rng.sample(there, 2)))
        kept = [r for r in world.replicas if r.pipeline and r.pipeline.epoch not in abandoned]
        world.serve(*kept[:2], *places)

    def reply_to(sent: Sent) -> None:
        stale = epoch_of(sent) in abandoned
        before = sum(task.done() for task in tasks)
        answer(world, sent)
        if not stale:
            answered_by.append(epoch_of(sent))
        assert before <= sum(task.done() for task in tasks)

    flaps = 0
    while flaps < 1000:
        action = rng.random()
        if action < 0.4:
            name = rng.choice(names)
            flaps += 1
            if name in away:
                away.discard(name)
                world.dispatcher.device_back(name)
            elif len(away) < 3:
                away.add(name)
                world.dispatcher.device_gone(name)
        elif action < 0.6:
            wire()
        elif action < 0.8 and len(tasks) < 400:
            tasks.append(await begin(world, timeout_s=1e5, sharded=True))
        elif unanswered:
            sent = unanswered.pop(rng.randrange(len(unanswered)))
            stale = epoch_of(sent) in abandoned
            done = {id(task) for task in tasks if task.done()}
            reply_to(sent)
            await asyncio.sleep(0)
            fresh = [task for task in tasks if task.done() and id(task) not in done]
            # What comes from an abandoned epoch answers nobody.
            assert not (stale and fresh)
        await asyncio.sleep(0)
    away.clear()
    for name in names:
        world.dispatcher.device_back(name)
    for _ in range(200):
        wire()
        await asyncio.sleep(0)
        for sent in list(unanswered):
            unanswered.remove(sent)
            reply_to(sent)
        await asyncio.sleep(0)
        if all(task.done() for task in tasks):
            break
    results = await asyncio.gather(*tasks, return_exceptions=True)
    lost = [r for r in results if isinstance(r, BaseException)]
    assert not lost, lost[:3]
    assert len(answered_by) >= len(tasks) > 100
    assert len(abandoned) > 50
