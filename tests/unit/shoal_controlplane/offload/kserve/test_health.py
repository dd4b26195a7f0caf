"""What is said of a model in a cluster."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.offload.kserve.health import is_ready, judge, waiting_pod

Json = dict[str, Any]


def pod(
    ready: bool = False,
    waiting: Json | None = None,
    last: Json | None = None,
    unschedulable: str = "",
    deleted: bool = False,
) -> Json:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    if unschedulable:
        conditions = [{"type": "PodScheduled", "status": "False", "message": unschedulable}]
    container: Json = {"image": "registry.example.com/x:1", "state": {}}
    if waiting:
        container["state"] = {"waiting": waiting}
    if last:
        container["lastState"] = {"terminated": last}
    metadata: Json = {"name": "p"}
    if deleted:
        metadata["deletionTimestamp"] = "now"
    return {
        "metadata": metadata,
        "status": {"conditions": conditions, "containerStatuses": [container]},
    }


def test_all_ready_has_no_reason() -> None:
    health = judge({}, 2, [pod(ready=True), pod(ready=True), pod(ready=True, deleted=True)])
    assert (health.ready, health.wanted, health.reason) == (2, 2, "")


def test_nothing_wanted_is_well() -> None:
    assert judge({}, 0, []).reason == ""


def test_one_that_goes_away_is_not_ready() -> None:
    assert not is_ready(pod(ready=True, deleted=True))


def test_some_ready_is_counted() -> None:
    health = judge({}, 2, [pod(ready=True), pod()])
    assert (health.ready, health.reason) == (1, "1 of 2 replicas are ready")


def test_without_an_address_none_answers() -> None:
    health = judge({}, 1, [pod(ready=True)], address=False)
    assert health.ready == 0
    assert "address" in health.reason


def test_no_room_is_a_quota() -> None:
    pods = [pod(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")]
    assert waiting_pod(pods) == "p"
    events = [
        {"reason": "FailedScheduling", "message": "no"},
        {"reason": "NotTriggerScaleUp", "message": "max node group size reached"},
    ]
    reason = judge({}, 1, pods, events, "node pool gpu has 2 of at most 2 nodes").reason
    assert reason.startswith("quota: ")
    for part in ("nvidia.com/gpu", "max node group size", "node pool gpu"):
        assert part in reason


def test_a_quota_of_the_namespace() -> None:
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "message": 'pods "x" is forbidden: exceeded quota: shoal-gpu',
    }
    reason = judge({"status": {"conditions": [condition]}}, 1, []).reason
    assert reason.startswith("quota: ")
    assert "exceeded quota" in reason


def test_an_image_that_is_not_there() -> None:
    pods = [pod(waiting={"reason": "ImagePullBackOff", "message": "not found"})]
    reason = judge({}, 1, pods).reason
    assert "registry.example.com/x:1" in reason
    assert "not found" in reason


def test_a_server_that_ends() -> None:
    last = {"exitCode": 1, "message": "log\nkserve_server: the model has another digest\n"}
    reason = judge({}, 1, [pod(waiting={"reason": "CrashLoopBackOff"}, last=last)]).reason
    assert "status 1" in reason
    assert "another digest" in reason


def test_what_kserve_says() -> None:
    owner = {"status": {"modelStatus": {"lastFailureInfo": {"message": "no runtime found"}}}}
    assert judge(owner, 1, []).reason == "KServe: no runtime found"
    owner = {"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Why"}]}}
    assert judge(owner, 1, []).reason == "KServe: Why"


@given(st.text(), st.integers(1, 5))
def test_a_reason_is_one_short_line(said: str, wanted: int) -> None:
    reason = judge({}, wanted, [pod(unschedulable=said or "x")]).reason
    assert 0 < len(reason) <= 300
    assert "\n" not in reason
