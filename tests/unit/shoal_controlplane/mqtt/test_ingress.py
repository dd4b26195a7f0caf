from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.fleet import (
    PROFILE,
    FakeClock,
    FakeLink,
    capabilities,
    replica,
    reported,
    status,
    telemetry,
)

from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.mqtt.ingress import LOG_INTERVAL_S, Ingress
from shoal_shared.messages import Accelerator, Document, encode_document
from shoal_shared.publish import Message
from shoal_shared.topics import Topics

ROOT = "shoal/v1/test/devices"


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.fleet = LiveFleet(self.clock, self.clock.wall, max_devices=3)
        self.link = FakeLink()
        self.ingress = Ingress(self.link, Topics("test"), self.fleet, self.clock)
        self.ingress.start()

    def say(self, topic: str, document: Document | bytes, device: str = "d1") -> None:
        payload = document if isinstance(document, bytes) else encode_document(document)
        self.link.deliver(f"{ROOT}/{device}/{topic}", payload)


@pytest.fixture
def world() -> World:
    return World()


def test_all_that_a_device_says_arrives(world: World) -> None:
    world.say("status", status())
    world.say("capabilities", capabilities())
    world.say("reported", reported(replica()))
    world.say("telemetry", telemetry(3))
    device = world.fleet.get("d1")
    assert device is not None
    assert device.online
    assert device.capabilities == capabilities()
    assert device.reported == reported(replica())
    assert device.telemetry == telemetry(3)
    assert not world.ingress.rejected
    assert {(f.rpartition("/")[2], qos) for f, qos, _ in world.link.handlers} == {
        ("status", 1),
        ("capabilities", 1),
        ("reported", 1),
        ("telemetry", 0),
    }


def mangled(document: Document, **changes: Any) -> bytes:
    return json.dumps(json.loads(encode_document(document)) | changes).encode()


def mangled_replica(**changes: Any) -> bytes:
    document = json.loads(encode_document(reported(replica())))
    document["models"][0] |= changes
    return json.dumps(document).replace("Infinity", "1e999").encode()


BAD_PROFILES = [
    msgspec.structs.replace(PROFILE, **change)
    for change in (
        {"knee": 0},
        {"intercept_ms": -1.0},
        {"slope_ms": -0.1},
        {"samples": ((0, 1.0),)},
        {"samples": ((1, -1.0),)},
    )
]
HOSTILE: list[tuple[str, bytes]] = [
    ("status", b"{"),
    ("status", b"\xff\xfe"),
    ("status", b"[" * 8000),
    ("status", b" " * 9000 + encode_document(status())),
    ("status", mangled(status(), v=2)),
    ("status", mangled(status(), state="asleep")),
    ("status", mangled(status(), boot_id="")),
    ("status", mangled(status(), boot_id="x" * 65)),
    ("status", mangled(status(), boot_id="a\nb")),
    ("telemetry", mangled(telemetry(), seq=-1)),
    ("telemetry", mangled(telemetry(), memory_used_bytes=2**64 - 1)),
    ("telemetry", b'{"seq":1e999}'),
    ("telemetry", mangled(telemetry(), models={"cat:1": [1, -1, 0]})),
    ("capabilities", mangled(capabilities(), memory_bytes=-1)),
    ("capabilities", mangled(capabilities(), cores=10**18 * 10)),
    (
        "capabilities",
        encode_document(
            capabilities(accelerators=(Accelerator(kind="gpu", name="x", memory_bytes=-1),))
        ),
    ),
    *(
        ("capabilities", encode_document(capabilities(accelerators=(accelerator,))))
        for accelerator in (
            Accelerator(kind="gpu", name="x", transfer_bytes_per_s=-1.0),
            Accelerator(kind="gpu", name="x", compute_capability="\n"),
            Accelerator(kind="gpu", name="x", precisions=("x" * 129,)),
        )
    ),
    ("capabilities", mangled(capabilities(), power_mode="\x1b[2J")),
    ("capabilities", mangled(capabilities(), board={"family": "a\0", "model": "b"})),
    ("telemetry", mangled(telemetry(), accelerator_memory_used_bytes=-1)),
    ("reported", encode_document(reported(goal=-1))),
    ("reported", encode_document(reported(replica(model="../../etc")))),
    ("reported", encode_document(reported(replica(memory_bytes=-5)))),
    ("reported", encode_document(reported(replica(golden_error=-0.1)))),
    ("reported", encode_document(reported(replica(load_s=-1.0)))),
    ("reported", mangled_replica(load_s=1e999)),
    ("reported", encode_document(reported(replica(runtime="x" * 129)))),
    ("reported", encode_document(reported(replica(variant="a\0b")))),
    ("reported", encode_document(reported(replica(compiled="\x1b")))),
    ("reported", encode_document(reported(replica(notes=("x" * 2001,))))),
    ("reported", encode_document(reported(replica(notes=("x",) * 65)))),
    ("reported", mangled_replica(placement={"accelerated": 1.5, "proof": "graph"})),
    ("reported", mangled_replica(placement={"accelerated": 1.0, "proof": "faith"})),
    (
        "reported",
        mangled_replica(
            placement={"accelerated": 1.0, "proof": "graph", "nodes": {"CUDA": -1}},
        ),
    ),
    (
        "reported",
        mangled_replica(
            placement={"accelerated": 1.0, "proof": "graph", "nodes": {"CUDA": 2**64 - 1}},
        ),
    ),
    *(("reported", encode_document(reported(replica(profile=p)))) for p in BAD_PROFILES),
]


@pytest.mark.parametrize(("topic", "payload"), HOSTILE)
def test_hostile_messages_are_counted_and_change_nothing(
    world: World, topic: str, payload: bytes
) -> None:
    world.say("status", status())
    before = world.fleet.get("d1")
    with capture_logs() as lines:
        world.say(topic, payload)
    assert world.fleet.get("d1") is before
    assert world.ingress.rejected == {topic: 1}
    [line] = lines
    assert line["log_level"] == "warning"
    assert line["topic"] == f"{ROOT}/d1/{topic}"
    world.say("telemetry", telemetry(1))
    assert world.fleet.get("d1") is not before, "it goes on"


@pytest.mark.parametrize(
    "topic",
    ["other/topic", f"{ROOT}/d1/desired", f"{ROOT}/d1/nonsense", f"{ROOT}/.hidden/status"],
)
def test_unknown_topics_are_counted(world: World, topic: str) -> None:
    world.ingress.handle(Message(topic, encode_document(status())))
    assert world.ingress.rejected == {"unknown": 1}
    assert len(world.fleet) == 0


def test_log_lines_are_limited_and_say_how_many_were_not_written(world: World) -> None:
    with capture_logs() as lines:
        for _ in range(100):
            world.say("status", b"{")
        world.clock.advance(LOG_INTERVAL_S)
        world.say("status", b"{")
    assert [line["silenced"] for line in lines] == [0, 99]
    assert world.ingress.rejected.total() == 101


def test_cleared_retained_message_is_no_error_and_no_device(world: World) -> None:
    world.say("status", b"")
    assert len(world.fleet) == 0
    assert not world.ingress.rejected


def test_device_beyond_the_limit_is_refused(world: World) -> None:
    with capture_logs() as lines:
        for n in range(5):
            world.say("status", status(), device=f"d{n}")
    assert len(world.fleet) == 3
    assert world.ingress.rejected == {"status": 2}
    assert "full with 3 devices" in lines[0]["reason"]


@given(
    st.sampled_from(["status", "capabilities", "reported", "telemetry", "desired", "x"]),
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["v", "state", "boot_id", "seq", "goal", "models"]), inner
                )
            ),
            max_leaves=10,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_nothing_that_a_device_may_send_raises(topic: str, payload: bytes) -> None:
    World().say(topic, payload)
