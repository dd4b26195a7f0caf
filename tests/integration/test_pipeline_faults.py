"""Pipelines whose devices die, go silent, slow down or compute nonsense under load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pipelines import Group, X, chain, load, reference
from support.processes import ControlPlane, free_port, start_mosquitto, until

SCARCE_MIB = 48
"""Memory for one stage, not for two."""

pytestmark = pytest.mark.xdist_group("pipeline-faults")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane for all tests; each has boards of its own."""
    folder = tmp_path_factory.mktemp("pipeline-faults")
    port = free_port()
    broker = start_mosquitto(folder, port)
    plane = ControlPlane(folder, broker_port=port, external_broker=True)
    chain(folder / "chain.onnx")
    for name in ("killed", "nan", "frozen", "slow", "scarce"):
        done = plane.shoal("model", "push", str(folder / "chain.onnx"), "--name", name)
        assert done.returncode == 0, done.stderr
    yield plane
    plane.process.stop()
    broker.stop()


@pytest.fixture
def group(request: pytest.FixtureRequest, plane: ControlPlane, tmp_path: Path) -> Iterator[Group]:
    group = Group(plane, tmp_path, request.param)
    yield group
    group.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory):
    return reference(chain(tmp_path_factory.mktemp("model") / "chain.onnx"), X)


@pytest.mark.parametrize("group", ["killed"], indirect=True)
def test_no_request_is_lost_when_a_stage_is_killed(group: Group, expected) -> None:
    group.add("a", "b", "c")
    before = group.deploy("killed", "--shards", "2")
    assert len(before["stages"]) == 2
    with load(group.plane, "killed") as requests:
        [victim] = group.holders("killed", 1)
        victim.process.kill()
        requests.more(200, "after the kill")
    assert requests.wrong(expected) == []
    until(lambda: group.plan("killed")["state"] == "ready", "a plan that is ready")
    after = group.plan("killed")
    assert after["epoch"] > before["epoch"]
    assert victim.name not in [d for stage in after["stages"] for d in stage["devices"]]


@pytest.mark.parametrize("group", ["scarce"], indirect=True)
def test_without_a_spare_requests_wait_for_another_device(group: Group, expected) -> None:
    group.add("a", "b", memory_mib=SCARCE_MIB)
    before = group.deploy("scarce", "--shards", "2")
    assert before["fallbacks"] == []
    with load(group.plane, "scarce") as requests:
        [victim] = group.holders("scarce", 1)
        victim.process.kill()
        until(lambda: group.plan("scarce")["state"] != "ready", "the plan's end")
        answered = requests.count
        until(lambda: "needs 2 devices" in group.plan("scarce")["reason"], "the reason")
        assert requests.count == answered
        group.add("c", memory_mib=SCARCE_MIB)
        requests.more(50, "with the new device")
    assert requests.wrong(expected) == []
    after = group.plan("scarce")
    assert after["state"] == "ready"
    assert after["epoch"] > before["epoch"]


@pytest.mark.parametrize("group", ["nan"], indirect=True)
def test_nobody_gets_the_nan_of_a_broken_stage(group: Group, expected) -> None:
    group.add("a", "b", "c")
    group.deploy("nan", "--shards", "2")
    with load(group.plane, "nan") as requests:
        [broken] = group.holders("nan", 0)
        broken.fault("nan")
        requests.more(100, "with a broken device")
    assert requests.wrong(expected) == []
    print(group.plan("nan"))
    print(group.plane.get("/api/v1/events?limit=50"))
    print(group.plane.process.output[-3000:])
    assert 0


@pytest.mark.parametrize("group", ["frozen"], indirect=True)
def test_requests_leave_a_stage_that_is_cut_off(group: Group, expected) -> None:
    group.add("a", "b", "c")
    before = group.deploy("frozen", "--shards", "2")
    with load(group.plane, "frozen") as requests:
        [frozen] = group.holders("frozen", 1)
        frozen.freeze()
        requests.more(100, "with a frozen device", 10)
    assert requests.wrong(expected) == []
    until(lambda: group.plan("frozen")["epoch"] > before["epoch"], "another epoch")
    print(requests.longest_s())
    print(group.plan("frozen"))
    print(group.plane.process.output[-3000:])
    assert 0


@pytest.mark.parametrize("group", ["slow"], indirect=True)
def test_a_slow_stage_is_left_out(group: Group, expected) -> None:
    group.add("a", "b", "c")
    before = group.deploy("slow", "--shards", "2")
    with load(group.plane, "slow") as requests:
        [slow] = group.holders("slow", 0)
        slow.fault("slow")
        requests.more(100, "with a slow device")
    assert requests.wrong(expected) == []
    print(before)
    print(requests.longest_s())
    print(group.plan("slow"))
    print(group.plane.process.output[-3000:])
    assert 0
