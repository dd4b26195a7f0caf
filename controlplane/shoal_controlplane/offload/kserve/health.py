"""How a model fares in a cluster, read from what the API server says. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal_controlplane.offload.target import Health

Json = Mapping[str, Any]

_LONGEST = 300
_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}


def is_ready(pod: Json) -> bool:
    """Whether a pod takes requests."""
    return "deletionTimestamp" not in pod["metadata"] and _condition(pod, "Ready") == "True"


def waiting_pod(pods: Sequence[Json]) -> str:
    """The name of a pod that found no node, "" where there is none."""
    for pod in pods:
        if _unschedulable(pod):
            return str(pod["metadata"]["name"])
    return ""


def judge(
    owner: Json,
    wanted: int,
    pods: Sequence[Json],
    events: Sequence[Json] = (),
    pool: str = "",
    address: bool = True,
) -> Health:
    """The health of a model. `owner` is its Deployment or InferenceService, `events` those of
    the pod that waits, `pool` what is known of the node pool, `address` whether requests know
    where to go."""
    ready = sum(map(is_ready, pods))
    if not wanted:
        return Health(ready, 0)
    if ready and not address:
        return Health(0, wanted, "it has no address yet: the load balancer is not ready")
    if ready >= wanted:
        return Health(ready, wanted)
    said = [text for text in (_why(owner, pods, events), pool) if text]
    reason = "; ".join(said) or f"{ready} of {wanted} replicas are ready"
    return Health(ready, wanted, " ".join(reason.split())[:_LONGEST])


def _why(owner: Json, pods: Sequence[Json], events: Sequence[Json]) -> str:
    """What keeps replicas from being ready, the worst first."""
    for condition in owner.get("status", {}).get("conditions", ()):
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            said = str(condition.get("message", ""))
            return f"quota: {said}" if "quota" in said else f"pods cannot be made: {said}"
    for pod in pods:
        said = _unschedulable(pod)
        if said:
            grow = [
                str(event.get("message", ""))
                for event in events
                if event.get("reason") in ("NotTriggerScaleUp", "FailedScaleUp")
            ]
            more = f"; the cluster does not grow: {grow[-1]}" if grow else ""
            return f"quota: no node has room for a replica: {said}{more}"
    for pod in pods:
        for container in _containers(pod):
            said = _stuck(container)
            if said:
                return said
    return _failed_model(owner)


def _stuck(container: Json) -> str:
    waiting = container.get("state", {}).get("waiting")
    if not waiting:
        return ""
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason in _PULL:
        return f"the image {container.get('image', '')} cannot be pulled: {message or reason}"
    if reason == "CrashLoopBackOff":
        last = container.get("lastState", {}).get("terminated", {})
        code = last.get("exitCode", "unknown")
        lines = str(last.get("message", "")).strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        return f"the server ends again and again, last with status {code}{said}"
    if reason in ("ContainerCreating", "PodInitializing", ""):
        return ""
    return f"{reason}: {message}" if message else reason


def _failed_model(owner: Json) -> str:
    """What KServe says of an InferenceService."""
    status = owner.get("status", {})
    failure = status.get("modelStatus", {}).get("lastFailureInfo", {})
    if failure.get("message"):
        return f"KServe: {failure['message']}"
    for condition in status.get("conditions", ()):
        if condition.get("type") == "Ready" and condition.get("status") == "False":
            said = condition.get("message") or condition.get("reason") or ""
            return f"KServe: {said}" if said else ""
    return ""


def _unschedulable(pod: Json) -> str:
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "unschedulable")
    return ""


def _condition(pod: Json, kind: str) -> str:
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition.get("type") == kind:
            return str(condition.get("status"))
    return ""


def _containers(pod: Json) -> list[Json]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
