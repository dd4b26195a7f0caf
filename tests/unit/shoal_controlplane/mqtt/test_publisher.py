from __future__ import annotations

import asyncio

import pytest
from support.fleet import FakeLink

from shoal_controlplane.mqtt import publisher as publisher_module
from shoal_controlplane.mqtt.publisher import GoalPublisher
from shoal_shared.messages import Desired, MessageError, ModelGoal, encode_document
from shoal_shared.topics import Topics

TOPIC = "shoal/v1/test/devices/{}/desired"


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def publisher(link: FakeLink) -> GoalPublisher:
    return GoalPublisher(link, Topics("test"))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_goal_is_published_once_retained_with_qos_1(
    link: FakeLink, publisher: GoalPublisher
) -> None:
    link.connect()
    publisher.set("d1", Desired(goal=1))
    publisher.set("d1", Desired(goal=1))
    assert link.published == [(TOPIC.format("d1"), encode_document(Desired(goal=1)), 1, True)]
    publisher.set("d1", Desired(goal=2))
    assert len(link.published) == 2


async def test_all_goals_are_published_again_when_the_link_is_back(
    link: FakeLink, publisher: GoalPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "BURST", 2)
    for n in range(5):
        publisher.set(f"d{n}", Desired(goal=n + 1))
    assert link.published == []
    link.connect()
    await settle()
    assert [topic for topic, *_ in link.published] == [TOPIC.format(f"d{n}") for n in range(5)]
    link.connect(False)
    publisher.set("d0", Desired(goal=9))
    link.connect()
    await settle()
    assert len(link.published) == 10
    assert link.published[5][1] == encode_document(Desired(goal=9))


async def test_forgotten_device_is_cleared_and_not_published_again(
    link: FakeLink, publisher: GoalPublisher
) -> None:
    link.connect()
    publisher.set("d1", Desired(goal=1))
    publisher.forget("d1")
    assert (TOPIC.format("d1"), b"", 1, True) in link.published
    link.published.clear()
    link.connect()
    await settle()
    assert link.published == []


async def test_goal_that_is_too_large_leaves_the_one_before(
    link: FakeLink, publisher: GoalPublisher
) -> None:
    link.connect()
    publisher.set("d1", Desired(goal=1))
    model = ModelGoal(
        deployment="d", model="m" * 9000, version="1", digest="x", size=1, format="onnx"
    )
    with pytest.raises(MessageError, match="limit"):
        publisher.set("d1", Desired(goal=2, models=(model,)))
    link.published.clear()
    link.connect()
    await settle()
    assert [payload for _, payload, _, _ in link.published] == [encode_document(Desired(goal=1))]
