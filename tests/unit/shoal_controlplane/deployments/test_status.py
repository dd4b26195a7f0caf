from __future__ import annotations

from dataclasses import replace

import pytest
from support.fleet import DIGEST, OFFLINE, ONLINE, replica, reported

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.status import Summary, summarise
from shoal_controlplane.devices.live import Device
from shoal_controlplane.planner.snapshot import Placed
from shoal_shared.status import DeploymentState, ReplicaState

CAT = Deployment("cat", "cat", "1", 2, {}, 0.0)
S = ReplicaState


def device(name: str, state: ReplicaState | None, **changes: object) -> Device:
    made = Device(name, 0.0, 0.0, 0.0, presence=ONLINE, boot_id="b1")
    if state is not None:
        made = replace(made, reported=reported(replica(state, reason="no memory")))
    return replace(made, **changes)  # type: ignore[arg-type]


def summary(
    *devices: Device, deployment: Deployment = CAT, reason: str = "", wanted: int = 2
) -> Summary:
    fleet = {d.id: d for d in devices}
    placed = Placed(frozenset(fleet), wanted, reason)
    return summarise(deployment, DIGEST, placed, frozenset(fleet), frozenset(fleet), fleet.get)


@pytest.mark.parametrize(
    ("states", "completed", "expected"),
    [
        ([S.READY, S.READY], False, DeploymentState.READY),
        ([S.READY, S.LOADING], False, DeploymentState.PROGRESSING),
        ([S.READY, S.LOADING], True, DeploymentState.DEGRADED),
        ([S.READY, S.FAILED], True, DeploymentState.DEGRADED),
        ([S.LOADING, S.FAILED], False, DeploymentState.FAILED),
        ([S.FETCHING, S.QUEUED], False, DeploymentState.PROGRESSING),
        ([None, S.QUEUED], False, DeploymentState.PROGRESSING),
        ([None, None], False, DeploymentState.PENDING),
        ([], False, DeploymentState.PENDING),
    ],
)
def test_states(
    states: list[ReplicaState | None], completed: bool, expected: DeploymentState
) -> None:
    devices = [device(f"d{n}", state) for n, state in enumerate(states)]
    found = summary(*devices, deployment=replace(CAT, completed=completed))
    assert found.state is expected
    assert found.ready == states.count(S.READY)
    assert found.wanted == 2


def test_reason_of_a_failure_names_the_device() -> None:
    found = summary(device("d1", S.FAILED), device("d2", S.FAILED))
    assert found.reason == "d1: no memory (and 1 more)"


def test_reason_of_the_planner_shows_while_not_ready() -> None:
    assert summary(reason="no device fits").reason == "no device fits"
    ready = [device("d1", S.READY), device("d2", S.READY)]
    assert summary(*ready, reason="no device fits").reason == ""


def test_replica_counts_only_on_a_live_open_device_with_the_right_artifact() -> None:
    ready = device("d1", S.READY)
    for bad in (
        replace(ready, presence=OFFLINE),
        replace(ready, cordoned=True),
        replace(ready, boot_id="b2"),
        replace(ready, reported=reported(replica(digest="sha256:other"))),
        replace(ready, reported=reported(replica(version="2"))),
    ):
        found = summary(bad)
        assert found.ready == 0
        assert found.placements[0].state is S.QUEUED
        assert found.placements[0].reason


def test_model_that_is_gone_fails_the_deployment() -> None:
    found = summarise(CAT, None, None, frozenset(), frozenset(), lambda name: None)
    assert found.state is DeploymentState.FAILED
    assert "push it again" in found.reason


def test_before_the_planner_spoke_all_means_what_is_assigned() -> None:
    every = replace(CAT, replicas=None)
    d1 = frozenset({"d1"})
    found = summarise(every, DIGEST, None, d1, d1, lambda name: device(name, S.READY))
    assert (found.state, found.wanted) == (DeploymentState.READY, 1)
    waiting = summarise(every, DIGEST, None, frozenset(), frozenset(), lambda name: None)
    assert waiting.state is DeploymentState.PENDING


def test_replica_counts_only_once_the_gateway_knows_it() -> None:
    d1 = frozenset({"d1"})
    one = replace(CAT, replicas=1)
    placed = Placed(d1, 1)
    found = summarise(one, DIGEST, placed, d1, frozenset(), lambda name: device(name, S.READY))
    assert (found.ready, found.state) == (0, DeploymentState.PROGRESSING)
    assert found.reason == "d1: the gateway is about to use it"
