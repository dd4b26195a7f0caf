"""Stages that fail or are slow and links that are slow, as the gateway sees them in replies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.gateway import Sent, World, begin, failure, nothing_left, pipeline
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.errors import GatewayStatus
from shoal_controlplane.gateway.pipelines import BAD_REPLIES, DOUBT_S, Pipelines
from shoal_controlplane.gateway.table import Pipeline
from shoal_controlplane.gateway.waiting import MAX_OVERDUE
from shoal_shared.oip import InferReply, Tensor

NAN = "stage 1 of plan cat computed NaN on this device"


def answer(world: World, sent: Sent, *steps: tuple[str, float]) -> None:
    """The last stage answers; the stages took so many ms."""
    first = sent.request.inputs[0]
    parameters: dict[str, Any] = {
        "epoch": sent.request.parameters["epoch"],
        "trace": [[device, 0, round(ms * 1e3)] for device, ms in steps],
    }
    output = Tensor("y", first.datatype, first.data)
    world.link.reply(sent, InferReply([output], parameters=parameters))


def break_down(world: World, sent: Sent, device: str) -> None:
    """A stage says that its device computed nonsense."""
    parameters = {"epoch": sent.request.parameters["epoch"], "device": device, "stage": 1}
    world.link.reply(sent, InferReply([], parameters=parameters, error=NAN, code="internal"))


def told_of(world: World) -> list[tuple[int, str, str]]:
    told: list[tuple[int, str, str]] = []
    world.dispatcher.pipelines.listeners.append(lambda p, d, r: told.append((p.epoch, d, r)))
    return told


@virtual_time
async def test_a_device_that_fails_is_left_out_once_others_answer_the_same_time_and_again() -> None:
    world = World()
    world.serve(
        pipeline("cat", 7, "d1", "d2"),
        pipeline("cat", 8, "d2", "d3"),
        pipeline("cat", 9, "d1", "d3"),
    )
    told = told_of(world)
    for _ in range(BAD_REPLIES):
        assert not told
        task = await begin(world)
        assert world.link.sent[-1].device == "cat@7"
        break_down(world, world.link.sent[-1], "d2")
        # Not to another epoch of the same device, which would fail, too.
        assert world.link.sent[-1].device == "cat@9"
        answer(world, world.link.sent[-1], ("d1", 10), ("d3", 10))
        await task
    assert (7, "d2", NAN) in told
    task = await begin(world)
    assert world.link.sent[-1].device == "cat@9"
    answer(world, world.link.sent[-1])
    await task
    assert nothing_left(world)


@virtual_time
async def test_an_input_with_which_all_fail_is_held_against_nobody() -> None:
    world = World()
    world.serve(pipeline("cat", 7, "d1", "d2"), pipeline("cat", 9, "d1", "d3"))
    told = told_of(world)
    for _ in range(BAD_REPLIES + 1):
        task = await begin(world)
        break_down(world, world.link.sent[-1], "d2")
        break_down(world, world.link.sent[-1], "d3")
        error = await failure(task)
        assert error.status is GatewayStatus.INTERNAL
        assert str(error) == f"device d3: {NAN}"
    assert not told
    assert not world.ejected()
    assert nothing_left(world)


@virtual_time
async def test_without_another_epoch_the_error_names_the_device() -> None:
    world = World()
    world.serve(pipeline("cat", 7, "d1", "d2"))
    told = told_of(world)
    for _ in range(BAD_REPLIES + 1):
        task = await begin(world, sharded=True)
        break_down(world, world.link.sent[-1], "d2")
        assert str(await failure(task)) == f"device d2: {NAN}"
    assert not told
    assert nothing_left(world)


@virtual_time
async def test_replies_that_come_too_late_tell_of_a_slow_stage() -> None:
    world = World()
    world.serve(pipeline("cat", 7, "d1", "d2"), pipeline("cat", 9, "d1", "d3"))
    told = told_of(world)
    late: list[Sent] = []
    for _ in range(BAD_REPLIES):
        task = await begin(world)
        late.append(world.link.sent[-1])
        await asyncio.sleep(0.7)
        assert world.link.sent[-1].device == "cat@9"
        answer(world, world.link.sent[-1], ("d1", 10), ("d3", 10))
        await task
    assert not told
    for sent in late:
        answer(world, sent, ("d1", 10), ("d2", 900))
        answer(world, sent, ("d1", 10), ("d2", 900))  # The same twice counts once.
    assert told == [(7, "d2", "stage 1 is 90 times too slow")]
    assert nothing_left(world)


@virtual_time
async def test_what_never_comes_is_forgotten() -> None:
    world = World()
    world.serve(pipeline("cat", 7, "d1", "d2"), pipeline("cat", 9, "d1", "d3"))
    for _ in range(3):
        tasks = [await begin(world) for _ in range(MAX_OVERDUE // 2)]
        while not all(task.done() for task in tasks):
            for sent in [s for s in world.link.sent if s.device == "cat@9"]:
                answer(world, sent)
            world.link.sent.clear()
            await asyncio.sleep(0.1)
    assert len(world.dispatcher._overdue) <= MAX_OVERDUE
    assert nothing_left(world)


@virtual_time
async def test_a_silent_pipeline_whose_devices_answer_has_slow_links() -> None:
    world = World()
    world.serve(pipeline("cat", 7, "d1", "d2"))
    doubted: list[int] = []
    world.dispatcher.pipelines.doubters.append(lambda p: doubted.append(p.epoch))
    task = await begin(world)
    await asyncio.sleep(3.0)
    assert doubted == [7]
    answer(world, world.link.sent[0])
    await task
    assert nothing_left(world)


STAGES = Pipeline("cat", 1, (("d1", "d2"), ("d3",)), (0.5, 0.5), 4, (10.0, 10.0), links_ms=20.0)
OTHER = Pipeline("cat", 2, (("d1",), ("d3",)), (1.0,), 4, (10.0, 10.0), links_ms=20.0)


def trace(first: str, *ms: float) -> list[list[Any]]:
    return [[name, 0, at * 1e3] for name, at in zip((first, "d3"), ms, strict=True)]


@pytest.fixture
def pipelines() -> Pipelines[None]:
    made: Pipelines[None] = Pipelines()
    made.learn([STAGES, OTHER])
    return made


def test_one_of_two_replicas_of_a_stage_is_slow(pipelines: Pipelines[None]) -> None:
    for _ in range(BAD_REPLIES):
        assert not pipelines.is_abandoned(STAGES)
        pipelines.observe(STAGES, trace("d2", 100, 10), 120, 0.0)
        pipelines.observe(STAGES, trace("d1", 10, 10), 30, 0.0)
    assert pipelines.is_abandoned(STAGES)
    assert not pipelines.is_abandoned(OTHER)


def test_slow_links_are_doubted_now_and_then(pipelines: Pipelines[None]) -> None:
    doubted: list[float] = []
    now = 0.0
    pipelines.doubters.append(lambda _: doubted.append(now))
    for _ in range(BAD_REPLIES - 1):
        pipelines.observe(STAGES, trace("d1", 10, 10), 20 + 101, now)
    pipelines.observe(STAGES, trace("d1", 10, 10), 20 + 99, now)  # Once well: it starts anew.
    for _ in range(BAD_REPLIES - 1):
        pipelines.observe(STAGES, trace("d1", 10, 10), 20 + 101, now)
    assert not doubted
    for _ in range(100):
        pipelines.observe(STAGES, trace("d1", 10, 10), 20 + 101, now)
        now += DOUBT_S / 10
    assert len(doubted) == 10


def test_waiting_at_a_stage_is_not_held_against_links(pipelines: Pipelines[None]) -> None:
    doubted: list[Pipeline] = []
    pipelines.doubters.append(doubted.append)
    for _ in range(2 * BAD_REPLIES):
        steps = [["d1", 5e6, 10e3], ["d3", 0, 10e3]]
        pipelines.observe(STAGES, steps, 5020 + 30, 0.0)
    assert not doubted
