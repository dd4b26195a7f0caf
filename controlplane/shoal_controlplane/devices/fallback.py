"""Whether a model runs on the CPU of a device that has something faster. Pure."""

from __future__ import annotations

from shoal_controlplane.devices.live import Device
from shoal_shared.messages import Capabilities, ReplicaReport
from shoal_shared.placement import CPU_PROVIDERS, MOSTLY
from shoal_shared.status import ReplicaState

MAX_REASON = 300


def lists_accelerator(able: Capabilities) -> bool:
    """Whether a runtime lists a provider other than the CPU."""
    return any(p not in CPU_PROVIDERS for runtime in able.runtimes for p in runtime.providers)


def fell_back(device: Device, report: ReplicaReport) -> bool:
    """Whether a replica serves on the CPU although the device has an accelerator.

    A simulated board's accelerator is not there, as its own note says.
    """
    able, placement = device.capabilities, report.placement
    if able is None or placement is None or report.state is not ReplicaState.READY:
        return False
    has_one = lists_accelerator(able) or (bool(able.accelerators) and not able.board.simulated)
    return has_one and placement.accelerated <= MOSTLY


def reason(device: Device, report: ReplicaReport) -> str:
    """Why it fell back, in the device's words."""
    if report.notes:
        text = "; ".join(report.notes)
        return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
    names = [a.name for a in device.capabilities.accelerators] if device.capabilities else []
    if names:
        return f"no runtime of the device uses its {names[0]}"
    return "the device gave no reason"
