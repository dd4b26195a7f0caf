"""States of sharded deployments."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fleet import ONLINE, reported
from support.fleet import replica as report
from support.plans import digest_of

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.status import Summary, summarise_plan
from shoal_controlplane.devices.live import Device
from shoal_controlplane.plans.active import PlanState
from shoal_controlplane.plans.entry import Entry, asked
from shoal_controlplane.plans.plan import Part, Plan, Wiring, part_key
from shoal_shared.status import DeploymentState, ReplicaState

CAT = Deployment("cat", "cat", "1", 1, {}, 0.0, shards=2)
DIGESTS = (digest_of("first"), digest_of("second"))
PLAN = Plan(
    name="cat",
    model="cat",
    version="1",
    digest=digest_of("cat"),
    asked=asked(CAT),
    parts=tuple(
        Part(first=n, last=n + 1, digest=digest, size=1, shapes={})
        for n, digest in enumerate(DIGESTS)
    ),
    current=Wiring(
        epoch=1, devices=(("a",), ("b", "c")), stage_ms=(1, 1), bottleneck_ms=1, latency_ms=2
    ),
)


def device(name: str, stage: int, state: ReplicaState) -> Device:
    model, version = part_key("cat", "1", DIGESTS[stage])
    document = reported(report(state, model, version, digest=DIGESTS[stage], reason="no memory"))
    return Device(name, 0.0, 0.0, 0.0, presence=ONLINE, boot_id="b1", reported=document)


def summary(entry: Entry | None, *devices: Device, deployment: Deployment = CAT) -> Summary:
    return summarise_plan(deployment, True, entry, {d.id: d for d in devices}.get)


STATES = {
    PlanState.PENDING: DeploymentState.PENDING,
    PlanState.MEASURING: DeploymentState.PROGRESSING,
    PlanState.CUTTING: DeploymentState.PROGRESSING,
    PlanState.LOADING: DeploymentState.PROGRESSING,
    PlanState.READY: DeploymentState.READY,
    PlanState.DEGRADED: DeploymentState.DEGRADED,
    PlanState.FAILED: DeploymentState.FAILED,
}


@pytest.mark.parametrize("state", list(PlanState))
@pytest.mark.parametrize("plan", [None, PLAN])
def test_every_state_of_a_plan(state: PlanState, plan: Plan | None) -> None:
    entry = Entry(CAT, plan=plan, state=state, reason="for a reason")
    found = summary(entry)
    if plan is not None or state is not PlanState.READY:
        assert found.state is STATES[state]
    assert found.reason == "for a reason"
    assert found.wanted == (0 if plan is None else 3)


def test_before_there_is_a_plan() -> None:
    for entry in (None, Entry(CAT)):
        found = summary(entry)
        assert (found.state, found.reason) == (
            DeploymentState.PENDING,
            "it has not been planned yet",
        )


def test_stages_count_as_replicas() -> None:
    devices = [
        device("a", 0, ReplicaState.READY),
        device("b", 1, ReplicaState.FAILED),
    ]
    found = summary(Entry(CAT, candidate=PLAN, state=PlanState.LOADING), *devices)
    assert (found.ready, found.wanted) == (1, 3)
    assert [(p.device, p.state, p.reason) for p in found.placements][1:] == [
        ("b", ReplicaState.FAILED, "no memory"),
        ("c", ReplicaState.QUEUED, "the device is offline"),
    ]


def test_what_serves_is_not_what_is_asked_for() -> None:
    after = replace(CAT, version="2")
    entry = Entry(after, plan=PLAN, state=PlanState.READY, reason="there is no room for both")
    found = summary(entry, deployment=after)
    assert (found.state, found.reason) == (
        DeploymentState.PROGRESSING,
        "there is no room for both",
    )


def test_a_model_that_is_gone() -> None:
    found = summarise_plan(CAT, False, Entry(CAT, plan=PLAN), {}.get)
    assert (found.state, found.reason) == (
        DeploymentState.FAILED,
        "model cat:1 is gone: push it again",
    )
