"""Why a deployment is not fully placed, as one sentence for its operator."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from shoal_controlplane.planner.snapshot import DeploymentView, memory_estimate

MB = 1_000_000


class Lack(enum.Enum):
    """What a device has too little of."""

    MEMORY = "memory"
    DISK = "disk"
    GOAL = "goal"
    """Room for one more model in the device's goal document."""


def explain(
    deployment: DeploymentView,
    wanted: int,
    *,
    counts: tuple[int, int, int, int],
    largest_free: Mapping[Lack, int],
    failed: int,
) -> str:
    """The first thing that keeps the deployment from `wanted` serving devices.

    `counts` are the devices left after each test: labels, runtime, not cordoned, online.
    `largest_free` gives, for what online devices lack, the most bytes that one of them has.
    """
    selected, loading, uncordoned, online = counts
    chosen = " and ".join(f"{k}={v}" for k, v in sorted(deployment.select.items()))
    having = f" with {chosen}" if chosen else ""
    if selected == 0:
        return f"no device has {chosen}" if chosen else "no device has joined the fleet yet"
    if loading == 0:
        return f"no device{having} has a runtime for {deployment.format}"
    if uncordoned == 0:
        return f"every device{having} that has a runtime for {deployment.format} is cordoned"
    if online == 0:
        return f"no device{having} that has a runtime for {deployment.format} is online"
    needs = f"needs {wanted} device{'s' if wanted > 1 else ''}{having}"
    if selected < wanted:
        return f"{needs}, there {_are(selected)}"
    if loading < wanted:
        return f"{needs}, {loading} {_have(loading)} a runtime for {deployment.format}"
    if uncordoned < wanted:
        return f"{needs}, {_are(uncordoned, first=True)} not cordoned"
    if online < wanted:
        return f"{needs}, {_are(online, first=True)} online"
    if Lack.MEMORY in largest_free:
        need = memory_estimate(deployment.file_bytes)
        return f"needs {_mb(need)}, the largest free is {_mb(largest_free[Lack.MEMORY], down=True)}"
    if Lack.DISK in largest_free:
        free = _mb(largest_free[Lack.DISK], down=True)
        return f"needs {_mb(deployment.file_bytes)} of disk, the largest free is {free}"
    if Lack.GOAL in largest_free:
        return "the devices that fit already hold as many models as one goal document can name"
    return f"it failed on {failed} of the {online} devices that fit"


def _are(count: int, *, first: bool = False) -> str:
    verb = "is" if count == 1 else "are"
    return f"{count} {verb}" if first else f"{verb} {count}"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _mb(count: int, *, down: bool = False) -> str:
    """Whole megabytes: needs are rounded up, what is free is rounded down."""
    return f"{count // MB if down else -(-count // MB)} MB"
