from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet import FakeClock, capabilities, replica, reported, status
from support.partition import problems
from support.plans import digest_of

from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.planner.partition.problem import MEMORY_SHARE, Partition, Problem
from shoal_controlplane.planner.partition.solve import solve
from shoal_controlplane.plans.fallbacks import fallbacks
from shoal_controlplane.plans.plan import Part, Plan, Wiring, part_key
from shoal_controlplane.plans.wiring import (
    is_ready,
    lacking,
    loads,
    pipeline,
    stage_report,
)
from shoal_controlplane.plans.wiring import replica as place_of
from shoal_shared.messages import RoleGoal
from shoal_shared.status import ReplicaState

NONE = ({}, False)


def wiring(epoch: int, *devices: tuple[str, ...]) -> Wiring:
    return Wiring(
        epoch=epoch,
        devices=devices,
        stage_ms=(3.0,) * len(devices),
        bottleneck_ms=3.0,
        latency_ms=10.0,
    )


def part(first: int, last: int, passes: Sequence[str] = ()) -> Part:
    return Part(
        first=first,
        last=last,
        digest=digest_of(f"{first} {last}"),
        size=1000,
        shapes={"x": (1, 4)},
        passes=tuple(passes),
        memory_bytes=10 * last,
    )


PLAN = Plan(
    name="p",
    model="cat",
    version="1",
    digest=digest_of("cat"),
    parts=(part(0, 1), part(1, 3, ["skip"])),
    current=wiring(1, ("a",), ("b", "c")),
    fallbacks={"a": wiring(2, ("b",), ("b", "c"))},
    credits=5,
    compression="fp16",
)


def test_what_devices_are_asked_for() -> None:
    found = loads([PLAN], lambda name: ({"threads": 2}, name == "p"))
    assert set(found) == {"a", "b", "c"}
    (key,) = found["a"].models
    assert key == part_key("cat", "1", PLAN.parts[0].digest)
    goal = found["a"].models[key]
    assert (goal.deployment, goal.digest, goal.size, goal.max_batch) == (
        "p",
        PLAN.parts[0].digest,
        1000,
        1,
    )
    assert goal.options == {"threads": 2, "profile_shapes": {"x": [1, 4]}}
    assert goal.require_accelerator
    [role] = found["a"].roles
    assert role == RoleGoal(
        plan="p",
        epoch=1,
        stage=0,
        replica=0,
        model="cat",
        version=key[1],
        next=(0.5, 0.5),
        passes=(),
        credits=5,
        compression="fp16",
    )
    assert found["a"].ahead == []
    [second] = found["c"].roles
    assert (second.stage, second.replica, second.next, second.passes) == (1, 1, (), ("skip",))
    assert [(r.epoch, r.stage) for r in found["b"].roles] == [(1, 1)]
    assert [(r.epoch, r.stage, r.replica) for r in found["b"].ahead] == [(2, 0, 0), (2, 1, 0)]
    assert sum(found["b"].memory.values()) == 40


def test_models_that_two_plans_share_are_asked_for_once() -> None:
    other = msgspec.structs.replace(PLAN, current=wiring(9, ("a",), ("b",)), fallbacks={})
    found = loads([PLAN, other], lambda _: NONE)
    assert len(found["a"].models) == 1
    assert [role.epoch for role in found["a"].roles] == [1, 9]
    assert sum(found["a"].memory.values()) == 10


def test_an_epoch_as_a_place_to_send_to() -> None:
    found = pipeline(PLAN, PLAN.fallbacks["a"])
    assert (found.plan, found.epoch, found.stages) == ("p", 2, (("b",), ("b", "c")))
    assert (found.shares, found.credits, found.stage_ms) == ((1.0,), 5, (3.0, 3.0))
    place = place_of(PLAN, PLAN.current)
    assert place.device == "p@1"
    assert place.profile.milliseconds(1) == 10.0
    assert place.profile.milliseconds(3) == 16.0, "each further request takes a bottleneck more"


class Devices:
    def __init__(self) -> None:
        clock = FakeClock()
        self.fleet = LiveFleet(clock, clock.wall)
        self.wired = {(name, ("p", 1)): 4 for name in "abc"}

    def report(
        self, name: str, *stages: int, goal: int = 4, state: ReplicaState = ReplicaState.READY
    ) -> None:
        self.fleet.observe(name, capabilities())
        self.fleet.observe(name, status())
        models = []
        for stage in stages:
            digest = PLAN.parts[stage].digest
            model, version = part_key("cat", "1", digest)
            models.append(replica(state, model, version, digest=digest))
        self.fleet.observe(name, reported(*models, goal=goal))

    def lacking(self) -> list[str]:
        found = lacking(PLAN, PLAN.current, self.fleet.get, self.wired)
        assert is_ready(PLAN, PLAN.current, self.fleet.get, self.wired) is not bool(found)
        return found


def test_an_epoch_is_ready_when_all_its_devices_are() -> None:
    devices = Devices()
    assert devices.lacking() == ["a", "b", "c"]
    devices.report("a", 0)
    devices.report("b", 1)
    devices.report("c", 1, state=ReplicaState.PROFILING)
    assert devices.lacking() == ["c"]
    devices.report("c", 1)
    assert devices.lacking() == []
    devices.fleet.edit("a", {}, cordoned=True, revision=2)
    assert devices.lacking() == ["a"]
    devices.fleet.edit("a", {}, cordoned=False, revision=3)
    devices.fleet.observe("b", status(boot="b2"))
    assert devices.lacking() == ["b"], "it has lost its stage in the boot"


def test_a_device_must_have_seen_its_role() -> None:
    devices = Devices()
    devices.report("a", 0)
    devices.report("b", 1)
    devices.report("c", 1, goal=3)
    assert devices.lacking() == ["c"]
    del devices.wired["a", ("p", 1)]
    assert devices.lacking() == ["a", "c"]


def test_another_file_under_the_same_name_is_no_stage() -> None:
    devices = Devices()
    model, version = part_key("cat", "1", PLAN.parts[0].digest)
    devices.report("a")
    other = replica(ReplicaState.READY, model, version, digest=digest_of("something else"))
    devices.fleet.observe("a", reported(other, goal=5))
    device = devices.fleet.get("a")
    assert device is not None
    assert stage_report(PLAN, 0, device) is None


def made(problem: Problem, best: Partition, name: str, epoch: int) -> Plan:
    """A plan as it is wired for a partition."""

    def wired(number: int, found: Partition) -> Wiring:
        return Wiring(
            epoch=number,
            devices=tuple(stage.devices for stage in found.stages),
            stage_ms=tuple(stage.compute_ms for stage in found.stages),
            bottleneck_ms=found.bottleneck_ms,
            latency_ms=found.latency_ms,
        )

    ways = fallbacks(problem, best)
    return Plan(
        name=name,
        model="a-model-with-a-name",
        version="2024.11.24",
        digest=digest_of(name),
        parts=tuple(
            msgspec.structs.replace(
                part(s.first, s.last, ["skip"]),
                digest=digest_of(f"{name} {s.first}"),
                memory_bytes=s.memory_bytes,
            )
            for s in best.stages
        ),
        current=wired(epoch, best),
        fallbacks={lost: wired(epoch + 1 + n, way) for n, (lost, way) in enumerate(ways.items())},
    )


@settings(max_examples=150, deadline=None)
@given(problem=problems(max_segments=5, max_devices=5), names=st.integers(1, 3))
def test_every_epoch_is_whole(problem: Problem, names: int) -> None:
    best = solve(problem).best
    if best is None:
        return
    plans = [made(problem, best, f"plan{n}", 20 * n + 1) for n in range(names)]
    found = loads(plans, lambda _: NONE)
    roles = {d: [*load.roles, *load.ahead] for d, load in found.items()}
    for plan in plans:
        assert plan.bounds == (0, *(s.last for s in best.stages))
        for number, epoch in enumerate(plan.wirings):
            mine = [
                (d, r) for d in roles for r in roles[d] if (r.plan, r.epoch) == _key(plan, epoch)
            ]
            places = {(r.stage, r.replica): d for d, r in mine}
            assert len(places) == len(mine), "one reader for each replica of a stage"
            assert places == {
                (stage, index): device
                for stage, devices in enumerate(epoch.devices)
                for index, device in enumerate(devices)
            }
            for _, role in mine:
                following = epoch.devices[role.stage + 1 : role.stage + 2]
                if following:
                    assert len(role.next) == len(following[0])
                    assert math.isclose(sum(role.next), 1)
                else:
                    assert role.next == ()
                assert role.passes == plan.parts[role.stage].passes
                assert (role.model, role.version) == part_key(
                    *plan.key, plan.parts[role.stage].digest
                )
            if number:
                [lost] = [d for d, w in plan.fallbacks.items() if w is epoch]
                assert lost not in epoch.members
    if names == 1:
        kinds = {d: kind for kind in problem.types for d in kind.devices}
        for device, load in found.items():
            same = all(s.kind == best.stages[0].kind for s in best.stages)
            if same and len(problem.types) == 1:
                limit = MEMORY_SHARE * kinds[device].memory_bytes
                assert sum(load.memory.values()) <= limit


def _key(plan: Plan, epoch: Wiring) -> tuple[str, int]:
    return plan.name, epoch.epoch
