from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fleet import (
    MB,
    OFFLINE,
    FakeClock,
    capabilities,
    replica,
    reported,
    status,
    telemetry,
)
from support.plans import digest_of
from support.virtual_time import virtual_time

from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.planner.cuts.analysis import BoundaryTensor, StageFile
from shoal_controlplane.planner.partition.problem import MEMORY_SHARE
from shoal_controlplane.planner.snapshot import memory_estimate
from shoal_controlplane.plans.measuring import (
    AT_ONCE,
    PATIENCE_S,
    Pulse,
    as_part,
    groups,
    measure,
    measured_parts,
)
from shoal_controlplane.plans.plan import part_key
from shoal_shared.messages import ModelGoal
from shoal_shared.status import ReplicaState

PLENTY = 10**12


def file(n: int, size: int = 1000) -> StageFile:
    tensor = BoundaryTensor("x", "FP32", (1, 4), 16)
    return StageFile(n, n + 1, "f", digest_of(str(n)), size, (tensor,), ("y",), ("skip",))


class Bench:
    """One device, and whoever has it measure files."""

    def __init__(self) -> None:
        clock = FakeClock()
        self.fleet = LiveFleet(clock, clock.wall)
        self.fleet.observe("d", capabilities())
        self.fleet.observe("d", status())
        self.pulse = Pulse()
        self.fleet.listen(lambda *_: self.pulse.beat())
        self.asked: list[tuple[ModelGoal, ...]] = []

    async def begin(self, count: int, free: int = PLENTY) -> asyncio.Task[bool]:
        task = asyncio.create_task(
            measure(
                self.fleet,
                "d",
                "p",
                ("cat", "1"),
                [file(n) for n in range(count)],
                free,
                {"threads": 1},
                lambda _, goals: self.asked.append(goals),
                self.pulse,
            )
        )
        await asyncio.sleep(0)
        return task

    async def report(self, *states: ReplicaState, first: int = 0) -> None:
        models = []
        for n, state in enumerate(states, first):
            model, version = part_key("cat", "1", file(n).digest)
            models.append(replica(state, model, version, digest=file(n).digest))
        self.fleet.observe("d", reported(*models))
        await asyncio.sleep(0)
        await asyncio.sleep(0)


READY, FAILED, LOADING = ReplicaState.READY, ReplicaState.FAILED, ReplicaState.LOADING


@virtual_time
async def test_parts_are_measured_in_groups_and_taken_back() -> None:
    bench = Bench()
    task = await bench.begin(AT_ONCE + 1)
    assert [len(goals) for goals in bench.asked] == [AT_ONCE]
    [goal, *_] = bench.asked[0]
    assert (goal.deployment, goal.digest) == ("p", file(0).digest)
    assert goal.options == {"threads": 1, "profile_shapes": {"x": [1, 4]}}
    await bench.report(*[READY] * (AT_ONCE - 1), LOADING)
    assert len(bench.asked) == 1, "one is not done"
    await bench.report(*[READY] * AT_ONCE)
    assert [len(goals) for goals in bench.asked] == [AT_ONCE, 1]
    await bench.report(READY, first=AT_ONCE)
    assert await task
    assert bench.asked[-1] == ()


@virtual_time
async def test_a_part_that_fails_does_not_hold_up_the_others() -> None:
    bench = Bench()
    task = await bench.begin(AT_ONCE + 1)
    await bench.report(FAILED, *[READY] * (AT_ONCE - 1))
    assert len(bench.asked) == 2
    await bench.report(READY, first=AT_ONCE)
    assert not await task
    assert bench.asked[-1] == ()


@pytest.mark.parametrize("how", ["offline", "removed"])
def test_a_device_that_goes(how: str) -> None:
    @virtual_time
    async def test() -> None:
        bench = Bench()
        task = await bench.begin(2)
        if how == "offline":
            bench.fleet.observe("d", status(OFFLINE))
        else:
            bench.fleet.remove("d")
        assert not await task
        assert bench.asked[-1] == ()

    test()


@virtual_time
async def test_a_device_that_takes_too_long() -> None:
    bench = Bench()
    task = await bench.begin(2)
    before = asyncio.get_running_loop().time()
    assert not await task
    assert asyncio.get_running_loop().time() - before == pytest.approx(PATIENCE_S)
    assert bench.asked[-1] == ()


@virtual_time
async def test_a_job_is_taken_back_when_it_is_called_off() -> None:
    bench = Bench()
    task = await bench.begin(2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert bench.asked[-1] == ()


@given(
    sizes=st.lists(st.integers(1, 200), max_size=20),
    free=st.integers(0, 1000),
)
def test_groups_hold_what_fits(sizes: list[int], free: int) -> None:
    files = [file(n, size * MB) for n, size in enumerate(sizes)]
    found = list(groups(files, free * MB))
    room = MEMORY_SHARE * free * MB
    fitting = [f for f in files if memory_estimate(f.size) <= room]
    assert [f for group in found for f in group] == fitting
    for group in found:
        assert 1 <= len(group) <= AT_ONCE
        assert sum(memory_estimate(f.size) for f in group) <= room


def test_a_file_as_a_part() -> None:
    part = as_part(file(3), 77)
    assert (part.first, part.last, part.digest, part.size) == (3, 4, file(3).digest, 1000)
    assert (part.shapes, part.passes, part.memory_bytes) == ({"x": (1, 4)}, ("skip",), 77)


def test_what_was_measured_counts_for_the_type_of_board() -> None:
    bench = Bench()
    model, version = part_key("cat", "1", file(0).digest)

    def found(*digests: str, **changes: Any) -> list[str]:
        facts: dict[str, Any] = {"digest": file(0).digest, "runtime": "ort"} | changes
        state = facts.pop("state", READY)
        bench.fleet.observe("d", reported(replica(state, model, version, **facts)))
        device = bench.fleet.get("d")
        assert device is not None
        return [f"{m.digest} {m.board} {m.runtime}" for m in measured_parts(device, digests)]

    wanted = [f"{file(0).digest} jetson/orin-nano ort"]
    assert found(file(0).digest, file(1).digest) == wanted
    assert found(file(1).digest) == []
    assert found(file(0).digest, profile=None) == []
    assert found(file(0).digest, state=FAILED) == []
    assert found(file(0).digest) == wanted
    bench.fleet.observe("d", telemetry(throttled=True))
    assert found(file(0).digest) == [], "these are its own figures now"
    bench.fleet.observe("d", telemetry(1))
    assert found(file(0).digest) == wanted
    bench.fleet.observe("d", status(OFFLINE))
    assert found(file(0).digest) == []
