from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from support.plans import digest_of

from shoal_controlplane.deployments.deployment import AUTO, Deployment
from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.entry import Entry, asked
from shoal_controlplane.plans.plan import Part, Plan, Wiring

DEPLOYMENT = Deployment("cat", "cat", "1", 1, {"a": "1", "b": "2"}, 5.0, shards=2)


def plan(*epochs: int) -> Plan:
    wirings = [
        Wiring(epoch=n, devices=(("d",),), stage_ms=(1.0,), bottleneck_ms=1.0, latency_ms=1.0)
        for n in epochs
    ]
    return Plan(
        name="cat",
        model="cat",
        version="1",
        digest=digest_of("cat"),
        asked=asked(DEPLOYMENT),
        parts=(Part(first=0, last=1, digest=digest_of("p"), size=1, shapes={}),),
        current=wirings[0],
        fallbacks={str(w.epoch): w for w in wirings[1:]},
    )


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"shards": AUTO},
        {"objective": Objective.LATENCY},
        {"shapes": {"x": (1, 4)}},
        {"select": {"a": "1"}},
        {"require_accelerator": True},
    ],
)
def test_what_asks_for_another_plan(change: dict[str, Any]) -> None:
    entry = Entry(DEPLOYMENT, plan=plan(1))
    assert entry.is_current
    entry.deployment = replace(DEPLOYMENT, **change)
    assert not entry.is_current


def test_what_does_not() -> None:
    same = replace(DEPLOYMENT, select={"b": "2", "a": "1"}, revision=9, completed=True, replicas=3)
    assert asked(same) == asked(DEPLOYMENT)
    assert Entry(same, plan=plan(1)).is_current
    assert not Entry(same).is_current


def test_the_number_of_stages() -> None:
    assert Entry(DEPLOYMENT).stages == 2
    assert Entry(replace(DEPLOYMENT, shards=AUTO)).stages is None
    assert Entry(replace(DEPLOYMENT, shards=None)).stages is None


def test_plans_and_their_epochs() -> None:
    first, second = plan(1, 2, 3), plan(7)
    entry = Entry(DEPLOYMENT, plan=second, draining=first, abandoned={2, 7})
    assert entry.plans == (second, first)
    assert [w.epoch for w in entry.usable(first)] == [1, 3]
    assert entry.usable(second) == ()


def test_since_tells_of_the_state_and_not_of_its_reason() -> None:
    entry = Entry(DEPLOYMENT, since=1.0)
    entry.turn(PlanState.LOADING, 5.0, "d1 loads its stage")
    entry.turn(PlanState.LOADING, 9.0, "d2 loads its stage")
    assert (entry.since, entry.reason) == (5.0, "d2 loads its stage")


def test_devices_are_avoided_for_a_while() -> None:
    entry = Entry(DEPLOYMENT, avoid={"a": 10.0, "b": 20.0})
    assert entry.avoided(5.0) == {"a", "b"}
    assert entry.avoided(10.0) == {"b"}
    assert entry.avoid == {"b": 20.0}


def test_when_waiting_longer_makes_no_sense() -> None:
    entry = Entry(DEPLOYMENT)
    assert not entry.is_decided, "nobody has looked yet"
    entry.turn(PlanState.MEASURING, 1.0, "parts of the model are measured on d1")
    assert not entry.is_decided
    entry.turn(PlanState.PENDING, 1.0, "2 devices are missing")
    assert entry.is_decided
    entry.turn(PlanState.CUTTING, 1.0)
    entry.candidate = plan(1)
    assert entry.is_decided


def test_plans_of_earlier_formats_are_still_read() -> None:
    old = msgspec.json.decode(msgspec.json.encode(plan(1)))
    del old["asked"]
    read = msgspec.json.decode(msgspec.json.encode(old), type=Plan)
    assert not Entry(DEPLOYMENT, plan=read).is_current
