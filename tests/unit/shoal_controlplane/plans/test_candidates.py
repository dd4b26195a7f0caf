from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fleet import MB, OFFLINE, ONLINE, capabilities, replica, reported, telemetry

from shoal_controlplane.devices.live import Device
from shoal_controlplane.plans.candidates import (
    Candidate,
    admitted,
    free_memory,
    grouped,
    kind_of,
    preferred,
)
from shoal_controlplane.plans.links import DeviceLink
from shoal_shared.messages import Accelerator, Board, RuntimeInfo
from shoal_shared.status import ReplicaState

KEY = ("cat", "1")
CUDA = RuntimeInfo(
    name="onnxruntime", version="1", formats=("onnx",), providers=("CUDAExecutionProvider",)
)
TFLITE = RuntimeInfo(name="litert", version="2", formats=("tflite",))


def device(name: str = "d1", **changes: Any) -> Device:
    able = changes.pop("able", {})
    facts: dict[str, Any] = {
        "first_seen": 0.0,
        "last_seen": 0.0,
        "since": 0.0,
        "presence": ONLINE,
        "boot_id": "b1",
        "capabilities": capabilities(**able) if able is not None else None,
    }
    return Device(name, **facts | changes)


def candidate(name: str, memory: int = 500 * MB, **link: float) -> Candidate:
    return Candidate(device(name), memory, DeviceLink(**link))  # type: ignore[arg-type]


def admit(devices: list[Device], **changes: Any) -> tuple[list[str], str]:
    facts: dict[str, Any] = {
        "select": {},
        "exclude": (),
        "require_accelerator": False,
        "wanted": 1,
    }
    found, reason = admitted(devices, KEY, **facts | changes)
    return [d.id for d in found], reason


def test_free_memory_is_what_others_and_the_fleet_leave() -> None:
    runs = replica(memory_bytes=60 * MB)
    comes = replica(ReplicaState.FETCHING, "dog", memory_bytes=500 * MB)
    d = device(
        able={"memory_bytes": 1000 * MB},
        telemetry=telemetry(memory_used_bytes=260 * MB),
        reported=reported(runs, comes),
    )
    assert free_memory(d, 0) == 800 * MB
    assert free_memory(d, 100 * MB) == 700 * MB
    assert free_memory(d, 2000 * MB) == 0


def test_free_memory_of_a_device_that_has_not_told_all() -> None:
    assert free_memory(device(), 0) == 1000 * MB
    assert free_memory(device(able=None), 0) == 0
    more = device(telemetry=telemetry(memory_used_bytes=0), reported=reported(replica()))
    assert free_memory(more, 0) == 1000 * MB


def test_who_may_take_part() -> None:
    devices = [
        device("a"),
        device("b", operator_labels={"zone": "x"}),
        device("c", cordoned=True),
        device("d", presence=OFFLINE),
        device("e", able={"runtimes": (TFLITE,)}),
        device("f", able=None),
        device("g", able={"runtimes": (CUDA,)}),
    ]
    assert admit(devices) == (["a", "b", "g"], "")
    assert admit(devices, exclude={"a"}) == (["b", "g"], "")
    assert admit(devices, select={"zone": "x"}) == (["b"], "")
    assert admit(devices, require_accelerator=True) == (["g"], "")
    assert admit(devices, wanted=3) == (["a", "b", "g"], "")


@pytest.mark.parametrize(
    ("devices", "changes", "sentence"),
    [
        ([], {}, "no device has joined the fleet yet"),
        ([device()], {"select": {"zone": "x"}}, "no device has zone=x"),
        ([device(able={"runtimes": (TFLITE,)})], {}, "no device has a runtime for onnx"),
        (
            [device()],
            {"require_accelerator": True},
            "needs a device with an accelerator, the one that has a runtime for onnx has none",
        ),
        (
            [device(cordoned=True)],
            {},
            "every device that has a runtime for onnx is cordoned",
        ),
        ([device(presence=OFFLINE)], {}, "no device that has a runtime for onnx is online"),
        ([device()], {"wanted": 3}, "needs 3 devices, there is 1"),
        (
            [device("a"), device("b")],
            {"wanted": 2, "exclude": {"b", "z"}},
            "needs 2 devices, but without b, left out on purpose, there is 1",
        ),
        (
            [device("a"), device("b")],
            {"exclude": {"b", "a"}},
            "needs 1 device, but without a and b, left out on purpose, there is 0",
        ),
    ],
)
def test_why_nobody_may(devices: list[Device], changes: dict[str, Any], sentence: str) -> None:
    found, reason = admit(devices, **changes)
    assert reason == sentence
    assert len(found) < changes.get("wanted", 1)


def test_preferred_takes_turns() -> None:
    items = [(1.0, 9), (2.0, 8), (3.0, 7), (4.0, 6), (5.0, 5)]
    orders = (lambda i: i[0], lambda i: i[1])
    assert preferred(items, 2, lambda _: False, orders) == [(1.0, 9), (5.0, 5)]
    assert preferred(items, 2, lambda i: i[0] == 3.0, orders) == [(3.0, 7), (1.0, 9)]
    assert sorted(preferred(items, 9, lambda _: False, orders)) == items
    assert preferred(items, 1, lambda i: i[0] > 3, orders) == [(4.0, 6)]


def test_like_devices_are_one_type_with_the_least_of_each() -> None:
    (group,) = grouped(
        [
            candidate("a", 500 * MB, up_bytes_per_s=10e6, down_bytes_per_s=11e6, latency_ms=1.0),
            candidate("b", 490 * MB, up_bytes_per_s=11e6, down_bytes_per_s=10e6, latency_ms=1.2),
        ],
        10_000 * MB,
        1 * MB,
        8,
    )
    assert group.devices == ("a", "b")
    assert group.memory_bytes == 490 * MB
    assert (group.link.up_bytes_per_s, group.link.down_bytes_per_s) == (10e6, 10e6)
    assert group.link.latency_ms == 1.2


def groups(*candidates: Candidate, whole: int = 10_000 * MB, most: int = 8) -> list[set[str]]:
    return [set(g.devices) for g in grouped(candidates, whole, 1 * MB, most)]


def test_what_differs_makes_types() -> None:
    assert len(groups(candidate("a", 500 * MB), candidate("b", 400 * MB))) == 2
    assert len(groups(candidate("a", latency_ms=1.0), candidate("b", latency_ms=9.0))) == 2
    slow = candidate("b", up_bytes_per_s=1e6)
    assert len(groups(candidate("a"), slow)) == 2
    hot = Candidate(device("b", telemetry=telemetry(throttled=True)), 500 * MB, DeviceLink())
    assert len(groups(candidate("a"), hot)) == 2
    other = device("b", able={"board": Board(family="jetson", model="agx")})
    assert len(groups(candidate("a"), Candidate(other, 500 * MB, DeviceLink()))) == 2


def test_what_makes_no_difference_makes_no_type() -> None:
    assert len(groups(candidate("a", 900 * MB), candidate("b", 500 * MB), whole=100 * MB)) == 1
    # 1 MB takes 1 ms over one and 1.4 ms over the other.
    assert len(groups(candidate("a", up_bytes_per_s=1e9), candidate("b", up_bytes_per_s=7e8))) == 1


def test_links_are_taken_together_more_widely_rather_than_too_many_types() -> None:
    many = [candidate(f"d{i}", latency_ms=4.0 * 1.4**i) for i in range(4)]
    assert len(groups(*many, most=8)) == 4
    assert len(groups(*many, most=3)) == 2


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2000 * MB), st.floats(1e3, 1e10), st.floats(1e3, 1e10), st.floats(0, 100)
        ),
        max_size=20,
    ),
    st.integers(1, 8),
)
def test_every_candidate_is_in_one_type_and_has_what_it_says(
    facts: list[tuple[int, float, float, float]], most: int
) -> None:
    made = {
        f"d{i}": candidate(
            f"d{i}", memory, up_bytes_per_s=up, down_bytes_per_s=down, latency_ms=latency
        )
        for i, (memory, up, down, latency) in enumerate(facts)
    }
    found = grouped(made.values(), 100 * MB, 1 * MB, most)
    assert sorted(name for group in found for name in group.devices) == sorted(made)
    for group in found:
        for name in group.devices:
            assert made[name].memory_bytes >= group.memory_bytes
            assert made[name].link.up_bytes_per_s >= group.link.up_bytes_per_s
            assert made[name].link.down_bytes_per_s >= group.link.down_bytes_per_s
            assert made[name].link.latency_ms <= group.link.latency_ms


def test_an_accelerator_counts_where_a_runtime_uses_it_or_it_is_simulated() -> None:
    npu = (Accelerator(kind="npu", name="x"),)
    idle = kind_of(device(able={"accelerators": npu}))
    used = kind_of(device(able={"accelerators": npu, "runtimes": (CUDA,)}))
    simulated = kind_of(
        device(
            able={
                "accelerators": npu,
                "board": Board(family="jetson", model="orin-nano", simulated=True),
            }
        )
    )
    assert idle.roof.macs_per_s < used.roof.macs_per_s == simulated.roof.macs_per_s
    assert (idle.accelerated, used.accelerated, simulated.accelerated) == (False, True, False)
    with pytest.raises(ValueError, match="has not told"):
        kind_of(device(able=None))
