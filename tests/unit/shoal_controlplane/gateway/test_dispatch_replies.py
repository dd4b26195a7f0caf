"""Replies that are late, forged, or cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from support.gateway import TOPICS, Sent, World, begin, failure, nothing_left, row
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.call import MAX_FIGURE
from shoal_controlplane.gateway.errors import GatewayStatus
from shoal_shared.publish import Message
from shoal_shared.status import InferCode


@virtual_time
async def test_correlation_data_cannot_be_guessed_or_met_again() -> None:
    keys = set()
    for _ in range(2):  # a second gateway of the same name, as after a restart
        world = World("d1")
        tasks = [await begin(world) for _ in range(50)]
        keys |= {sent.message.correlation for sent in world.link.sent}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert len(keys) == 100
    assert len({key[:4] for key in keys if key}) == 100


@virtual_time
async def test_late_forged_and_replayed_replies_are_ignored() -> None:
    world = World("d1")
    task = await begin(world)
    (sent,) = world.link.sent
    for forged in (None, b"", b"\0" * 8, b"x" * 100):
        world.link.deliver(sent, b"{}", correlation=forged)
    assert not task.done()
    world.link.answer(sent)
    world.link.answer(sent, row(9, name="y"))
    world.link.refuse(sent, InferCode.INTERNAL)
    reply, _ = await task
    assert reply.outputs[0].data.tolist() == [[1, 2, 3]]
    world.link.answer(sent)
    assert nothing_left(world)


Spoil = Callable[[World, Sent], None]


def _parameters(**parameters: object) -> Spoil:
    return lambda world, sent: world.link.answer(sent, **parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w, s: w.link.deliver(s, b""),
        lambda w, s: w.link.deliver(s, b"\xff" * 40),
        lambda w, s: w.link.deliver(s, b"[" * 100_000),
        lambda w, s: w.link.deliver(
            s, b"{}", user_properties={"Inference-Header-Content-Length": "x"}
        ),
        lambda w, s: w.link.deliver(
            s, b"{}", user_properties={"Inference-Header-Content-Length": "9" * 5000}
        ),
        lambda w, s: w.link.deliver(
            s, b"{}", user_properties={"Inference-Header-Content-Length": "3"}
        ),
        lambda w, s: w.link.deliver(s, b'{"error": "x", "code": "unheard of"}'),
        lambda w, s: w.link.deliver(s, b'{"parameters": {"service_us": 1e308}}'),
        _parameters(service_us=-1),
        _parameters(queue_depth=MAX_FIGURE + 1),
        _parameters(batch=10**400),
        _parameters(batch="1"),
        _parameters(batch=True),
        _parameters(queue_depth=None),
    ],
)
def test_a_reply_that_cannot_be_read_is_the_devices_fault(spoil: Spoil) -> None:
    @virtual_time
    async def test() -> None:
        world = World("d1", "d2")
        task = await begin(world)
        first = world.link.sent[0]
        spoil(world, first)
        assert world.failures(first.device) == 1
        world.link.answer(world.link.sent[1])
        await task
        assert nothing_left(world)

    test()


@virtual_time
async def test_replies_that_cannot_be_read_everywhere() -> None:
    world = World("d1")
    task = await begin(world)
    world.link.deliver(world.link.sent[0], b"?")
    error = await failure(task)
    assert error.status is GatewayStatus.INTERNAL
    assert str(error) == "device d1 sent a reply that cannot be read"


@virtual_time
async def test_messages_on_the_reply_topic_that_are_no_replies() -> None:
    world = World("d1")
    task = await begin(world)
    handler = world.link._handlers[TOPICS.replies("g1")]
    handler(Message(TOPICS.replies("g1"), b"hello"))
    world.link.answer(world.link.sent[0])
    await task


NOT_HERE = "this device did not compile cat:1 for x [1, 3]"


@virtual_time
async def test_a_shape_that_one_device_did_not_compile_goes_to_another() -> None:
    world = World("d1", "d2")
    for _ in range(5):
        task = await begin(world)
        first = world.link.sent[-1]
        world.link.refuse(first, InferCode.NOT_FOUND, NOT_HERE)
        second = world.link.sent[-1]
        assert second.device != first.device
        world.link.answer(second)
        _, ticket = await task
        assert ticket.device == second.device
        assert world.ejected() == []
        assert world.failures(first.device) == 0
    assert nothing_left(world)
    # Requests of other shapes still go to both.
    tasks = [await begin(world) for _ in range(8)]
    assert {sent.device for sent in world.link.sent[-8:]} == {"d1", "d2"}
    for sent in world.link.sent[-8:]:
        world.link.answer(sent)
    await asyncio.gather(*tasks)


@virtual_time
async def test_a_shape_that_no_device_compiled_is_refused_in_the_devices_words() -> None:
    world = World("d1", "d2")
    task = await begin(world)
    for _ in range(2):
        world.link.refuse(world.link.sent[-1], InferCode.NOT_FOUND, NOT_HERE)
    error = await failure(task)
    assert error.status is GatewayStatus.UNAVAILABLE
    assert NOT_HERE in str(error)
    assert {sent.device for sent in world.link.sent} == {"d1", "d2"}
    assert world.ejected() == []
    assert nothing_left(world)
