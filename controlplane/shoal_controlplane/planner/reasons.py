"""Why a deployment is not fully placed, as one sentence for its operator."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from shoal_controlplane.planner.snapshot import DeploymentView

MB = 1_000_000


class Lack(enum.Enum):
    """What a device has too little of."""

    MEMORY = "memory"
    DISK = "disk"
    GOAL = "goal"
    """Room for one more model in the device's goal document."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Bytes that a device would need for a deployment, and those that it has free."""

    need: int
    free: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Devices left after each test: labels, runtime, accelerator, not cordoned, online."""

    selected: int
    loading: int
    able: int
    uncordoned: int
    online: int


def explain(
    deployment: DeploymentView,
    wanted: int,
    *,
    counts: Counts,
    lacking: Mapping[Lack, Shortage],
    failed: int,
) -> str:
    """The first thing that keeps the deployment from `wanted` serving devices.

    `lacking` gives, for what online devices lack, the shortage of the one that has most free.
    """
    chosen = " and ".join(f"{k}={v}" for k, v in sorted(deployment.select.items()))
    having = f" with {chosen}" if chosen else ""
    runtime = f"a runtime for {' or '.join(sorted(deployment.formats))}"
    able = f"{runtime} and an accelerator" if deployment.require_accelerator else runtime
    if counts.selected == 0:
        return f"no device has {chosen}" if chosen else "no device has joined the fleet yet"
    if counts.loading == 0:
        return f"no device{having} has {runtime}"
    if counts.able == 0:
        both = f"{having} and an accelerator" if chosen else " with an accelerator"
        return f"needs a device{both}, {_none(counts.loading, runtime)}"
    if counts.uncordoned == 0:
        return f"every device{having} that has {able} is cordoned"
    if counts.online == 0:
        return f"no device{having} that has {able} is online"
    needs = f"needs {wanted} device{'s' if wanted > 1 else ''}{having}"
    if counts.selected < wanted:
        return f"{needs}, there {_are(counts.selected)}"
    if counts.loading < wanted:
        return f"{needs}, {counts.loading} {_have(counts.loading)} {runtime}"
    if counts.able < wanted:
        return f"{needs}, {counts.able} {_have(counts.able)} {able}"
    if counts.uncordoned < wanted:
        return f"{needs}, {_are(counts.uncordoned, first=True)} not cordoned"
    if counts.online < wanted:
        return f"{needs}, {_are(counts.online, first=True)} online"
    if Lack.MEMORY in lacking:
        memory = lacking[Lack.MEMORY]
        return f"needs {_mb(memory.need)}, the largest free is {_mb(memory.free, down=True)}"
    if Lack.DISK in lacking:
        disk = lacking[Lack.DISK]
        return f"needs {_mb(disk.need)} of disk, the largest free is {_mb(disk.free, down=True)}"
    if Lack.GOAL in lacking:
        return "the devices that fit already hold as many models as one goal document can name"
    return f"it failed on {failed} of the {counts.online} devices that fit"


def _none(loading: int, runtime: str) -> str:
    if loading == 1:
        return f"the one that has {runtime} has none"
    return f"none of the {loading} that have {runtime} has one"


def _are(count: int, *, first: bool = False) -> str:
    verb = "is" if count == 1 else "are"
    return f"{count} {verb}" if first else f"{verb} {count}"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _mb(count: int, *, down: bool = False) -> str:
    """Whole megabytes: needs are rounded up, what is free is rounded down."""
    return f"{count // MB if down else -(-count // MB)} MB"
