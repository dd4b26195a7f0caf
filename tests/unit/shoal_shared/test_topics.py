"""Topics and the names in them: nothing can be smuggled in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_shared.names import checked_name, is_name
from shoal_shared.topics import DeviceTopic, Topics

TOPICS = Topics("east")
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
HOSTILE = [
    "",
    "a/b",
    "a+",
    "+",
    "#",
    "a#",
    "..",
    ".",
    ".a",
    "-a",
    "$SYS",
    "a b",
    "a\0",
    "a\n",
    "é",
    "a" * 65,
    "../../etc/passwd",
    "a%2Fb",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_none(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValueError, match=r"device .* is not valid: use 1 to 64 letters"):
        checked_name(name, "device")
    with pytest.raises(ValueError, match="fleet"):
        Topics(name)
    with pytest.raises(ValueError, match="device"):
        TOPICS.device(name, DeviceTopic.INFER)
    with pytest.raises(ValueError, match="gateway"):
        TOPICS.replies(name)


def test_a_wrong_name_is_shown_in_part_only() -> None:
    with pytest.raises(ValueError, match="not valid") as caught:
        checked_name("a" * 10_000, "model")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["a", "0", "jetson-1", "v1.2_3", "a..b", "A" * 64])
def test_names(name: str) -> None:
    assert checked_name(name, "model") == name


@given(NAMES, NAMES, st.sampled_from(DeviceTopic))
def test_device_topics_round_trip(fleet: str, device: str, topic: DeviceTopic) -> None:
    topics = Topics(fleet)
    text = topics.device(device, topic)
    assert text == f"shoal/v1/{fleet}/devices/{device}/{topic.value}"
    assert topics.parse_device(text) == (device, topic)
    assert topics.every_device(topic) == text.replace(f"/{device}/", "/+/", 1) or device == fleet


@given(NAMES, NAMES)
def test_reply_topics(fleet: str, gateway: str) -> None:
    topics = Topics(fleet)
    assert topics.is_reply_topic(topics.replies(gateway))
    assert not topics.is_reply_topic(topics.device(gateway, DeviceTopic.INFER))


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "shoal/v1/east",
        "shoal/v1/east/devices/",
        "shoal/v1/east/devices/d1",
        "shoal/v1/east/devices/d1/",
        "shoal/v1/east/devices/d1/unknown",
        "shoal/v1/east/devices/d1/status/",
        "shoal/v1/east/devices/d1/x/status",
        "shoal/v1/east/devices//status",
        "shoal/v1/east/devices/+/status",
        "shoal/v1/east/devices/#/status",
        "shoal/v1/east/devices/../status",
        "shoal/v1/east/devices/d 1/status",
        "shoal/v1/west/devices/d1/status",
        "shoal/v2/east/devices/d1/status",
        "/shoal/v1/east/devices/d1/status",
        "x/shoal/v1/east/devices/d1/status",
        "shoal/v1/east/gateways/d1/status",
    ],
)
def test_topics_of_no_device(topic: str) -> None:
    assert TOPICS.parse_device(topic) is None


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "shoal/v1/east/gateways/g1",
        "shoal/v1/east/gateways/g1/",
        "shoal/v1/east/gateways/g1/replies/",
        "shoal/v1/east/gateways/g1/x/replies",
        "shoal/v1/east/gateways//replies",
        "shoal/v1/east/gateways/+/replies",
        "shoal/v1/east/gateways/../replies",
        "shoal/v1/west/gateways/g1/replies",
        "x/shoal/v1/east/gateways/g1/replies",
        "shoal/v1/east/devices/d1/desired",
    ],
)
def test_topics_that_no_device_may_answer_on(topic: str) -> None:
    assert not TOPICS.is_reply_topic(topic)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for topic in (text, f"{TOPICS.root}/devices/{text}", f"{TOPICS.root}/devices/{text}/status"):
        parsed = TOPICS.parse_device(topic)
        if parsed is not None:
            assert TOPICS.device(*parsed) == topic
