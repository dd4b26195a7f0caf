"""One request over a link on which the test plays the devices, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from support.gateway import TOPICS, World, begin, failure, nothing_left, row
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.call import MAX_ATTEMPTS, MAX_RESENDS, MIN_SILENCE_S
from shoal_controlplane.gateway.errors import GatewayStatus
from shoal_shared.oip import RequestedOutput
from shoal_shared.status import InferCode


@virtual_time
async def test_a_request_as_the_device_gets_it_and_its_answer() -> None:
    world = World("d1")
    task = await begin(world, timeout_s=2.5)
    (sent,) = world.link.sent
    assert sent.device == "d1"
    assert (sent.request.model_name, sent.request.model_version) == ("cat", "1")
    assert sent.request.inputs[0].data.tolist() == [[1, 2, 3]]
    assert sent.request.outputs == [RequestedOutput("y")]
    assert sent.request.parameters == {"timeout": 2_500_000}
    assert sent.message.expiry_s == 3
    assert sent.message.response_topic == TOPICS.replies("g1")
    assert (world.dispatcher.in_flight, world.in_flight()) == (1, {"d1": 1})
    world.link.answer(sent)
    reply, ticket = await task
    assert reply.outputs[0].data.tolist() == [[1, 2, 3]]
    assert ticket.device == "d1"
    assert nothing_left(world)


@virtual_time
async def test_replies_find_their_requests_in_any_order() -> None:
    world = World("d1", "d2")
    tasks = [await begin(world) for _ in range(20)]
    for number, sent in reversed(list(enumerate(world.link.sent))):
        world.link.answer(sent, row(number, name="y"))
    for number, task in enumerate(tasks):
        reply, _ = await task
        assert reply.outputs[0].data.tolist() == [[number]]
    assert nothing_left(world)


@virtual_time
async def test_when_a_device_goes_its_requests_go_elsewhere_at_once() -> None:
    world = World("d1", "d2", "d3")
    tasks = [await begin(world) for _ in range(30)]
    gone = world.link.sent[0].device
    lost = [sent for sent in world.link.sent if sent.device == gone]
    now = world.clock()
    world.dispatcher.device_gone(gone)
    assert world.clock() == now
    again = world.link.sent[30:]
    assert len(again) == len(lost) > 1
    assert gone not in {sent.device for sent in again}
    assert gone not in world.in_flight()
    for sent in list(world.link.sent):
        if sent.device != gone:
            world.link.answer(sent)
    await asyncio.gather(*tasks)
    assert nothing_left(world)


@virtual_time
async def test_no_request_is_lost_while_devices_come_and_go() -> None:
    world = World("d1", "d2", "d3", "d4")
    tasks = [await begin(world) for _ in range(40)]
    gone: set[str] = set()
    for device in ("d1", "d3"):
        world.dispatcher.device_gone(device)
        gone.add(device)
    for sent in list(world.link.sent):
        if sent.device not in gone:
            world.link.answer(sent)
    replies = await asyncio.gather(*tasks)
    assert all(ticket.device not in gone for _, ticket in replies)
    assert nothing_left(world)


@virtual_time
async def test_a_silent_device_is_given_up_and_the_first_answer_wins() -> None:
    world = World("d1", "d2")
    task = await begin(world)
    await asyncio.sleep(MIN_SILENCE_S * 0.9)
    assert len(world.link.sent) == 1
    await asyncio.sleep(MIN_SILENCE_S * 0.2)
    first, second = world.link.sent
    assert first.device != second.device
    assert world.failures(first.device) == 1
    world.link.answer(first, row(1, name="y"))  # late, but still the first
    world.link.answer(second, row(2, name="y"))
    reply, ticket = await task
    assert (ticket.device, reply.outputs[0].data.tolist()) == (first.device, [[1]])
    assert nothing_left(world)
    assert world.failures(second.device) == 0


@virtual_time
async def test_silence_everywhere_ends_at_the_deadline() -> None:
    world = World("d1", "d2", "d3", "d4", "d5")
    began = world.clock()
    error = await failure(await begin(world, timeout_s=30.0))
    assert error.status is GatewayStatus.DEADLINE
    assert world.clock() - began == pytest.approx(30.0, abs=0.01)
    assert MAX_ATTEMPTS <= len(world.link.sent) <= MAX_ATTEMPTS + MAX_RESENDS
    assert nothing_left(world)


@virtual_time
async def test_what_was_lost_on_the_way_to_the_only_device_is_sent_again() -> None:
    world = World("d1")
    task = await begin(world, timeout_s=30.0)
    await asyncio.sleep(5 * MIN_SILENCE_S)
    lost, *again = world.link.sent
    assert 1 <= len(again) <= MAX_RESENDS
    assert {sent.device for sent in again} == {lost.device}
    world.link.answer(again[-1])
    assert (await task)[1].device == "d1"
    assert nothing_left(world)


@virtual_time
async def test_the_time_that_is_left_is_told_to_the_next_device() -> None:
    world = World("d1", "d2")
    task = await begin(world, timeout_s=3.0)
    await asyncio.sleep(1.0)
    second = world.link.sent[1]
    left = second.request.parameters["timeout"]
    assert 2_000_000 < left < 2_600_000
    assert second.message.expiry_s == 3
    world.link.answer(second)
    await task


@virtual_time
async def test_a_deadline_too_short_to_tell_blames_nobody() -> None:
    world = World("d1", "d2")
    for _ in range(10):
        error = await failure(await begin(world, timeout_s=0.05))
        assert error.status is GatewayStatus.DEADLINE
    assert world.ejected() == []
    assert world.failures("d1") == world.failures("d2") == 0
    assert nothing_left(world)


@virtual_time
async def test_a_request_of_a_sequence_is_tried_once() -> None:
    world = World("d1", "d2")
    task = await begin(world, timeout_s=5.0, idempotent=False)
    world.dispatcher.device_gone(world.link.sent[0].device)
    error = await failure(task)
    assert error.status is GatewayStatus.INTERNAL
    assert "went offline" in str(error)

    task = await begin(world, timeout_s=5.0, idempotent=False)
    world.link.refuse(world.link.sent[-1], InferCode.OVERLOADED)
    assert (await failure(task)).status is GatewayStatus.EXHAUSTED

    error = await failure(await begin(world, timeout_s=5.0, idempotent=False))
    assert error.status is GatewayStatus.DEADLINE
    assert len(world.link.sent) == 3
    assert nothing_left(world)


@pytest.mark.parametrize(
    ("code", "status"),
    [(InferCode.INVALID, GatewayStatus.INVALID), (InferCode.EXPIRED, GatewayStatus.DEADLINE)],
)
def test_codes_that_end_a_request(code: InferCode, status: GatewayStatus) -> None:
    @virtual_time
    async def test() -> None:
        world = World("d1", "d2")
        task = await begin(world)
        world.link.refuse(world.link.sent[0], code, "the reason")
        error = await failure(task)
        assert (error.status, str(error)) == (status, "the reason")
        assert len(world.link.sent) == 1
        assert world.failures(world.link.sent[0].device) == 0
        assert nothing_left(world)

    test()


@pytest.mark.parametrize("code", [InferCode.OVERLOADED, InferCode.NOT_FOUND, InferCode.INTERNAL])
def test_codes_after_which_another_device_is_tried(code: InferCode) -> None:
    @virtual_time
    async def test() -> None:
        world = World("d1", "d2")
        task = await begin(world)
        world.link.refuse(world.link.sent[0], code)
        first, second = world.link.sent
        assert first.device != second.device
        world.link.answer(second)
        _, ticket = await task
        assert ticket.device == second.device
        # Another device could do it, so a failure of the runtime was the first one's own.
        assert world.failures(first.device) == (code is InferCode.INTERNAL)
        assert nothing_left(world)

    test()


@pytest.mark.parametrize(
    ("code", "status", "retry_after_s"),
    [
        (InferCode.INTERNAL, GatewayStatus.INTERNAL, None),
        (InferCode.OVERLOADED, GatewayStatus.EXHAUSTED, 1.0),
        (InferCode.NOT_FOUND, GatewayStatus.UNAVAILABLE, 1.0),
    ],
)
def test_when_every_device_fails_the_last_one_is_quoted_and_nobody_blamed(
    code: InferCode, status: GatewayStatus, retry_after_s: float | None
) -> None:
    @virtual_time
    async def test() -> None:
        world = World("d1", "d2")
        task = await begin(world)
        world.link.refuse(world.link.sent[0], code, "one")
        world.link.refuse(world.link.sent[1], code, "two" + "!" * 10_000)
        error = await failure(task)
        assert error.status is status
        assert error.retry_after_s == retry_after_s
        assert str(error).startswith(f"device {world.link.sent[1].device}: two!")
        assert len(str(error)) < 600
        assert world.failures("d1") == world.failures("d2") == 0
        assert nothing_left(world)

    test()


@virtual_time
async def test_without_devices_and_without_a_broker() -> None:
    error = await failure(await begin(World()))
    assert (error.status, error.retry_after_s) == (GatewayStatus.UNAVAILABLE, 1.0)
    assert str(error) == "no device serves cat:1 now"

    world = World("d1")
    world.link.connected = False
    error = await failure(await begin(world))
    assert (error.status, error.retry_after_s) == (GatewayStatus.UNAVAILABLE, 1.0)
    assert "broker" in str(error)
    assert world.failures("d1") == 0
    assert nothing_left(world)


@virtual_time
async def test_the_broker_is_lost_between_two_attempts() -> None:
    world = World("d1", "d2")
    task = await begin(world)
    world.link.connected = False
    error = await failure(task)
    assert error.status is GatewayStatus.UNAVAILABLE
    assert nothing_left(world)


@virtual_time
async def test_what_cannot_meet_its_deadline_is_not_sent() -> None:
    world = World("d1")
    tasks = [await begin(world) for _ in range(30)]
    error = await failure(await begin(world, timeout_s=0.02))
    assert error.status is GatewayStatus.EXHAUSTED
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s < 1
    assert "no device can answer within 20 ms: the earliest would take" in str(error)
    assert len(world.link.sent) == 30
    assert world.in_flight() == {"d1": 30}
    for sent in world.link.sent:
        world.link.answer(sent)
    await asyncio.gather(*tasks)
    assert nothing_left(world)


@virtual_time
async def test_a_deadline_that_has_passed() -> None:
    world = World("d1")
    for timeout_s in (0.0, -1.0):
        assert (await failure(await begin(world, timeout_s))).status is GatewayStatus.DEADLINE
    assert world.link.sent == []


@virtual_time
async def test_cancelled_requests_leave_nothing() -> None:
    world = World("d1", "d2", "d3")
    waiting = [await begin(world) for _ in range(5)]
    await asyncio.sleep(MIN_SILENCE_S * 1.5)  # each is now on two devices
    assert world.dispatcher.in_flight == 10
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert all(task.cancelled() for task in waiting)
    assert nothing_left(world)
    for sent in list(world.link.sent):
        world.link.answer(sent)
    await asyncio.sleep(60)
    assert len(world.link.sent) == 10
    assert nothing_left(world)
