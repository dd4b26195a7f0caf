"""Pipelines whose devices die, go silent, slow down or compute nonsense under load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pipelines import Group, chain, load
from support.processes import ControlPlane, free_port, start_mosquitto, until

SCARCE_MIB = 48
"""Memory for one stage, not for two."""
SLOW_LINK = 125_000.0
"""1 Mbit/s, in bytes a second."""

pytestmark = pytest.mark.xdist_group("pipeline-faults")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("pipeline-faults")
    port = free_port()
    broker = start_mosquitto(folder, port)
    try:
        plane = ControlPlane(folder, broker_port=port, external_broker=True)
        yield plane
        plane.process.stop()
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def boards(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Three boards, of which each test finds all in order."""
    group = Group(plane, tmp_path_factory.mktemp("boards"), "press")
    try:
        group.add("a", "b", "c")
        yield group
    finally:
        group.close()


@pytest.fixture
def group(boards: Group) -> Iterator[Group]:
    boards.wait_online()
    yield boards
    boards.mend()


def test_no_request_is_lost_when_a_stage_is_killed(group: Group, tmp_path: Path) -> None:
    before = group.deploy(chain(tmp_path / "chain.onnx"), "--shards", "2")
    with load(group) as requests:
        victim = group.holders(1)[0]
        victim.process.kill()
        requests.more(200, "after the kill")
    assert requests.wrong() == []
    assert group.without(victim)["epoch"] > before["epoch"]


def test_nobody_gets_the_nan_of_a_broken_stage(group: Group, tmp_path: Path) -> None:
    group.deploy(chain(tmp_path / "chain.onnx"), "--shards", "2")
    with load(group) as requests:
        broken = group.holders(0)[0]
        broken.fault("nan")
        requests.more(100, "with a broken device")
    assert requests.wrong() == []
    group.without(broken)
    told = group.told()
    assert any(f"avoids {broken.name}: stage 0" in t and "computed NaN" in t for t in told), told


def test_requests_leave_a_stage_that_is_cut_off(group: Group, tmp_path: Path) -> None:
    before = group.deploy(chain(tmp_path / "chain.onnx"), "--shards", "2")
    with load(group) as requests:
        frozen = group.holders(1)[0]
        frozen.freeze()
        requests.more(100, "with a frozen device")
    assert requests.wrong() == []
    assert group.without(frozen)["epoch"] > before["epoch"]


def test_a_slow_stage_is_left_out(group: Group, tmp_path: Path) -> None:
    group.deploy(chain(tmp_path / "chain.onnx"), "--shards", "2")
    with load(group) as requests:
        slow = group.holders(0)[0]
        slow.fault("slow")
        group.without(slow)
        requests.more(100, "without the slow device")
    assert requests.wrong() == []
    told = group.told()
    assert any(f"avoids {slow.name}" in t and "too slow" in t for t in told), told


def test_requests_leave_a_link_that_became_slow(group: Group, tmp_path: Path) -> None:
    group.deploy(chain(tmp_path / "chain.onnx", rows=64), "--shards", "2")
    with load(group, threads=2) as requests:
        slow = group.holders(0)[0]
        slow.link.bytes_per_s = SLOW_LINK
        group.without(slow, 60)
        requests.more(50, "over other links")
    assert requests.wrong() == []


def test_without_a_spare_requests_wait_for_another_device(
    plane: ControlPlane, tmp_path: Path
) -> None:
    group = Group(plane, tmp_path, "scarce")
    try:
        group.add("a", "b", memory_mib=SCARCE_MIB)
        before = group.deploy(chain(tmp_path / "chain.onnx"), "--shards", "2")
        assert before["fallbacks"] == []
        with load(group) as requests:
            victim = group.holders(1)[0]
            victim.process.kill()
            until(lambda: "needs 2 devices" in group.plan()["reason"], "the reason")
            waiting = requests.count
            group.add("c", memory_mib=SCARCE_MIB)
            assert requests.count == waiting
            requests.more(50, "with the new device")
        assert requests.wrong() == []
        assert group.without(victim)["epoch"] > before["epoch"]
    finally:
        group.close()
