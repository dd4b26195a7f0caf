from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from support.fleet import MB
from support.partition import fleet_of
from support.plans import Rooms, digest_of

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.errors import ConflictError
from shoal_controlplane.planner.credits import credits_for, room_for
from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.planner.partition.solve import evaluate
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.draft import Basis
from shoal_controlplane.plans.entry import Entry
from shoal_controlplane.plans.plan import Part, Plan, Wiring
from shoal_controlplane.plans.shaping import SUSTAIN_S, Shaper, held_bytes, repriced

DEPLOYMENT = Deployment("cat", "cat", "1", 1, {}, 5.0, shards=2)


def wiring(epoch: int, *devices: Sequence[str]) -> Wiring:
    return Wiring(
        epoch=epoch,
        devices=tuple(tuple(stage) for stage in devices),
        stage_ms=(1.0,) * len(devices),
        bottleneck_ms=30.0,
        latency_ms=70.0,
    )


def plan(current: Wiring, *ahead: Wiring, bounds: Sequence[int] = (0, 1, 2)) -> Plan:
    return Plan(
        name="cat",
        model="cat",
        version="1",
        digest=digest_of("cat"),
        parts=tuple(
            Part(
                first=first,
                last=last,
                digest=digest_of(f"{first}"),
                size=1,
                shapes={},
                memory_bytes=10**first,
            )
            for first, last in pairwise(bounds)
        ),
        current=current,
        fallbacks={str(w.epoch): w for w in ahead},
    )


def shaper(rooms: Rooms) -> Shaper:
    return rooms.plans._shaper


def test_memory_of_all_that_devices_hold() -> None:
    first = plan(wiring(1, ["a"], ["b"]), wiring(2, ["c"], ["b"]), wiring(3, ["a"], ["c"]))
    again = plan(wiring(4, ["a"], ["c"]))
    entry = Entry(DEPLOYMENT, plan=first, candidate=again)
    assert held_bytes(entry) == {"a": 1, "b": 10, "c": 11}
    assert held_bytes(Entry(DEPLOYMENT)) == {}


def test_a_plan_at_today_s_prices() -> None:
    problem = fleet_of([[10, 20], [8, 9]], [2, 1])
    found = repriced(plan(wiring(1, ["d00"], ["d10"])), problem)
    assert found == evaluate(problem, [(0, 1, 0, ("d00",)), (1, 2, 1, ("d10",))])
    both = repriced(plan(wiring(1, ["d10"], ["d10"])), problem)
    assert both is not None
    assert both.bottleneck_ms == pytest.approx(17, abs=0.1), "one after the other"


@pytest.mark.parametrize(
    ("wired", "bounds"),
    [
        (wiring(1, ["d00"], ["gone"]), (0, 1, 2)),
        (wiring(1, ["d00", "d10"], ["d01"]), (0, 1, 2)),
        (wiring(1, ["d00"], ["d10"]), (0, 1, 3)),
        (wiring(1, ["d00"]), (0, 1)),
    ],
    ids=["a device is gone", "two types in a stage", "more segments", "fewer segments"],
)
def test_what_cannot_be_priced(wired: Wiring, bounds: Sequence[int]) -> None:
    assert repriced(plan(wired, bounds=bounds), fleet_of([[10, 20], [8, 9]], [2, 1])) is None


async def test_a_candidate_is_cut_and_wired(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    entry = Entry(DEPLOYMENT, epoch=7)
    await shaper(rooms).shape(entry, serving=False)
    made, draft, best = entry.candidate, entry.draft, entry.partition
    assert made is not None
    assert draft is not None
    assert best is not None
    assert entry.state is PlanState.CUTTING
    assert (made.key, made.digest, made.created_at) == (
        ("cat", "1"),
        digest_of("cat:1"),
        rooms.clock.wall(),
    )
    assert rooms.cutter.asked == [(0, 2, 4)]
    assert made.bounds == (0, 2, 4)
    assert [w.epoch for w in made.wirings] == [8, 9, 10]
    assert entry.epoch == 10
    assert made.credits == min(credits_for(best), room_for(draft.problem, best))
    more = max(0, made.credits - draft.problem.in_flight)
    for part, stage in zip(made.parts, best.stages, strict=True):
        assert part.memory_bytes == stage.memory_bytes + more * (stage.in_bytes + stage.out_bytes)


async def test_why_there_is_none(rooms: Rooms) -> None:
    rooms.join("d1", "d2", memory=40 * MB)
    with pytest.raises(ConflictError, match="memory"):
        await shaper(rooms).shape(Entry(DEPLOYMENT), serving=False)


async def test_what_serves_keeps_its_memory_until_the_next_is_ready(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    await rooms.create()
    await rooms.run()
    await shaper(rooms).shape(rooms.entry(), serving=True)
    owned = rooms.drafter.asked[-1]["own"]
    assert owned.keys() == held_bytes(rooms.entry()).keys()
    assert set(owned.values()) == {0}
    await shaper(rooms).shape(rooms.entry(), serving=False)
    assert rooms.drafter.asked[-1]["own"] == held_bytes(rooms.entry())


@pytest.mark.parametrize("objective", list(Objective))
async def test_a_plan_on_devices_that_are_not_weighed_counts_as_it_was_wired(
    rooms: Rooms, objective: Objective
) -> None:
    rooms.join("d1", "d2")
    await rooms.create(objective=objective)
    await rooms.run()
    entry, present = rooms.entry(), rooms.entry().plan
    assert present is not None
    rooms.leave("d1")  # Of which the keeper has not heard yet.
    rooms.join("d3")
    await shaper(rooms).shape(entry, serving=True)
    assert entry.gain_since is None
    assert entry.candidate is None
    rooms.drafter.ms = {"d3": 1.0, "d2": 1.0}
    await shaper(rooms).shape(entry, serving=True)
    assert entry.gain_since == rooms.clock()
    assert (entry.again, entry.retry_at) == (True, rooms.clock() + SUSTAIN_S)
    assert entry.candidate is None
    rooms.clock.advance(SUSTAIN_S)
    await shaper(rooms).shape(entry, serving=True)
    assert entry.candidate is not None
    assert entry.gain_since is None


async def test_boards_are_measured_once(rooms: Rooms) -> None:
    rooms.join("d1", "d2")
    rooms.drafter.basis = {"jetson/d1": Basis.SCALED}
    entry = Entry(DEPLOYMENT, measured={"jetson/d1"})
    await shaper(rooms).shape(entry, serving=False)
    assert entry.candidate is not None
    assert rooms.cutter.asked == [(0, 2, 4)]


async def test_devices_that_failed_are_taken_only_if_there_are_no_others(rooms: Rooms) -> None:
    rooms.join("d1", "d2", "d3")
    entry = Entry(DEPLOYMENT, avoid={"d1": rooms.clock() + 1})
    await shaper(rooms).shape(entry, serving=False)
    assert entry.candidate is not None
    assert entry.candidate.current.devices == (("d2",), ("d3",))
    rooms.leave("d3")
    await shaper(rooms).shape(entry, serving=False)
    assert entry.candidate.current.devices == (("d1",), ("d2",))
    rooms.clock.advance(1)
    rooms.join("d3")
    again = replace(DEPLOYMENT, shards=3)
    entry.deployment = again
    await shaper(rooms).shape(entry, serving=False)
    assert rooms.drafter.asked[-1]["exclude"] == set()
