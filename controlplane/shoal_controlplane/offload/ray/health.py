"""How a model fares on a Ray cluster, read from what Serve says. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from shoal_controlplane.offload.ray.cluster import Application, Deployment, sentence
from shoal_controlplane.offload.ray.declaration import DEPLOYMENT, declared_replicas
from shoal_controlplane.offload.target import Health

_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
_FREE = re.compile(r"total resources available: (\{.*?\})")
"""In the message about replicas that no node has taken."""


def judge(application: Application, nodes: Sequence[Mapping[str, float]] = ()) -> Health:
    """The health of an application of ours. `nodes` are the logical resources of each of the
    cluster's nodes, none where they are not known."""
    wanted = 0 if application.status == "DELETING" else declared_replicas(application)
    deployment = application.deployments.get(DEPLOYMENT, Deployment())
    # Until all are replaced, those of the declaration before go on.
    oldest = application.last_deployed_time_s if deployment.status == "UPDATING" else 0.0
    ready = sum(
        replica.state == "RUNNING" and replica.start_time_s >= oldest
        for replica in deployment.replicas
    )
    if ready >= wanted:
        return Health(ready, wanted)
    return Health(ready, wanted, _why(application, deployment, ready, wanted, nodes))


def _why(
    application: Application,
    deployment: Deployment,
    ready: int,
    wanted: int,
    nodes: Sequence[Mapping[str, float]],
) -> str:
    """What keeps replicas from being ready, the worst first."""
    needs = {k: v for k, v in (deployment.required_resources or {}).items() if v > 0}
    each = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
    fits = any(all(node.get(k, 0) >= v for k, v in needs.items()) for node in nodes)
    if nodes and not fits:
        return f"quota: no node of the cluster is as large as a replica, which needs {each}"
    for status, message in (
        (deployment.status, deployment.message),
        (application.status, application.message),
    ):
        if status in _FAILED and message:
            return f"Ray: {sentence(message)}"
    free = _FREE.search(deployment.message)
    if free is not None and any(amount > _amount(free[1], k) for k, amount in needs.items()):
        return f"quota: the cluster has no room now for a replica, which needs {each}"
    if deployment.message and deployment.status not in ("HEALTHY", *_FAILED):
        return f"Ray: {sentence(deployment.message)}"
    return f"{ready} of {wanted} replicas are ready"


def _amount(resources: str, name: str) -> float:
    found = re.search(rf"['\"]{re.escape(name)}['\"]: ([0-9.]+)", resources)
    return float(found[1]) if found else 0.0
