"""Pipelines whose devices die, go silent, slow down or compute nonsense under load."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pipelines import Board, Group, chain, load
from support.processes import ControlPlane, free_port, start_mosquitto, until
from support.relay import Relay

SCARCE_MIB = 48
"""Memory for one stage, not for two."""
SLOW_LINK = 125_000.0
"""1 Mbit/s, in bytes a second."""
NUMBERS = itertools.count(1)

pytestmark = pytest.mark.xdist_group("pipeline-faults")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane for all tests; each has boards and a model of its own."""
    folder = tmp_path_factory.mktemp("pipeline-faults")
    port = free_port()
    broker = start_mosquitto(folder, port)
    try:
        plane = ControlPlane(folder, broker_port=port, external_broker=True)
        yield plane
        plane.process.stop()
    finally:
        broker.stop()


@pytest.fixture
def group(plane: ControlPlane, tmp_path: Path) -> Iterator[Group]:
    group = Group(plane, tmp_path, f"group-{next(NUMBERS)}")
    yield group
    group.close()


def leaves(group: Group, board: Board, timeout_s: float = 30.0) -> dict[str, Any]:
    """The plan once it is ready without a board."""

    def left() -> dict[str, Any] | None:
        plan = group.plan()
        used = {device for stage in plan["stages"] for device in stage["devices"]}
        return plan if plan["state"] == "ready" and board.name not in used else None

    return until(left, f"a plan without {board.name}", timeout_s)


def events(group: Group) -> list[str]:
    """What was told of the group's plan."""
    body = group.plane.get("/api/v1/events?limit=200")[1]
    return [e["message"] for e in body["items"] if group.name in e["message"]]


def test_no_request_is_lost_when_a_stage_is_killed(group: Group) -> None:
    group.add("a", "b", "c")
    before = group.deploy(chain(group.folder / "chain.onnx"), "--shards", "2")
    with load(group) as requests:
        victim = group.holders(1)[0]
        victim.process.kill()
        requests.more(200, "after the kill")
    assert requests.wrong() == []
    assert leaves(group, victim)["epoch"] > before["epoch"]


def test_without_a_spare_requests_wait_for_another_device(group: Group) -> None:
    group.add("a", "b", memory_mib=SCARCE_MIB)
    before = group.deploy(chain(group.folder / "chain.onnx"), "--shards", "2")
    assert before["fallbacks"] == []
    with load(group) as requests:
        victim = group.holders(1)[0]
        victim.process.kill()
        until(lambda: "needs 2 devices" in group.plan()["reason"], "the reason")
        answered = requests.count
        group.add("c", memory_mib=SCARCE_MIB)
        requests.more(50, "with the new device")
    assert answered <= requests.before + 2 * requests.threads
    assert requests.wrong() == []
    assert leaves(group, victim)["epoch"] > before["epoch"]


def test_nobody_gets_the_nan_of_a_broken_stage(group: Group) -> None:
    group.add("a", "b", "c")
    group.deploy(chain(group.folder / "chain.onnx"), "--shards", "2")
    with load(group) as requests:
        broken = group.holders(0)[0]
        broken.fault("nan")
        requests.more(100, "with a broken device")
    assert requests.wrong() == []
    leaves(group, broken)
    assert any(broken.name in told and "computed NaN" in told for told in events(group)), events(
        group
    )


def test_requests_leave_a_stage_that_is_cut_off(group: Group) -> None:
    group.add("a", "b", "c")
    before = group.deploy(chain(group.folder / "chain.onnx"), "--shards", "2")
    with load(group) as requests:
        frozen = group.holders(1)[0]
        frozen.freeze()
        requests.more(100, "with a frozen device")
    assert requests.wrong() == []
    assert leaves(group, frozen)["epoch"] > before["epoch"]


def test_a_slow_stage_is_left_out(group: Group) -> None:
    group.add("a", "b", "c")
    group.deploy(chain(group.folder / "chain.onnx"), "--shards", "2")
    with load(group) as requests:
        slow = group.holders(0)[0]
        slow.fault("slow")
        leaves(group, slow)
        requests.more(100, "without the slow device")
    assert requests.wrong() == []
    assert any(slow.name in told and "too slow" in told for told in events(group)), events(group)


@pytest.mark.parametrize("threads", [1, 8])
def test_requests_leave_a_link_that_became_slow(group: Group, threads: int) -> None:
    relays = [Relay(group.plane.broker_port) for _ in range(3)]
    try:
        for name, relay in zip("abc", relays, strict=True):
            group.add(name, broker_port=relay.port)
        group.deploy(chain(group.folder / "chain.onnx", rows=64), "--shards", "2")
        with load(group, threads) as requests:
            slow = group.holders(0)[0]
            relays["abc".index(slow.name[-1])].bytes_per_s = SLOW_LINK
            leaves(group, slow, 60)
            requests.more(100, "over other links")
        assert requests.wrong() == []
        print(requests.longest_s(), requests.count)
        print(events(group))
        assert 0
    finally:
        for relay in relays:
            relay.close()
