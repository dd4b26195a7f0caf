"""Devices that may take part in a plan, and which of them are alike. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from shoal_controlplane.devices.fallback import lists_accelerator
from shoal_controlplane.devices.live import Device
from shoal_controlplane.planner.costs import Roof, roof
from shoal_controlplane.planner.reasons import Counts, explain
from shoal_controlplane.planner.snapshot import DeploymentView, ModelKey
from shoal_controlplane.plans.links import DeviceLink
from shoal_shared.status import ReplicaState

T = TypeVar("T")

FORMAT = "onnx"
MEMORY_ALIKE = 0.95
PLENTY = 4
"""Memory for so many whole models is as good as more."""
LINK_FACTORS = (1.25, 2.0)
"""How far links of one type may be apart; the wider where there would be too many types."""
SAME_MS = 0.5
"""Times over links that differ by less are alike, whatever the bandwidth."""

_RUNNING = (ReplicaState.LOADING, ReplicaState.PROFILING, ReplicaState.READY)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that may take part, with its free memory in bytes and its link."""

    device: Device
    memory_bytes: int
    link: DeviceLink


@dataclass(frozen=True, slots=True)
class Kind:
    """Devices of one type that show the same speed: by board, whether their runtimes use an
    accelerator, what they say of themselves, and whether they throttle."""

    board: str
    accelerated: bool
    roof: Roof
    throttled: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that are alike, with the least of what they have."""

    kind: Kind
    devices: tuple[str, ...]
    memory_bytes: int
    link: DeviceLink


def free_memory(device: Device, assigned: int) -> int:
    """Bytes of memory that a plan may take on a device: what it has, less what other programs
    use and the `assigned` bytes of the fleet's models, whether they are loaded yet or not."""
    able, load = device.capabilities, device.telemetry
    if able is None:
        return 0
    own = sum(r.memory_bytes for r in device.replicas if r.state in _RUNNING)
    others = max(0, load.memory_used_bytes - own) if load is not None else 0
    return max(0, able.memory_bytes - others - assigned)


def kind_of(device: Device) -> Kind:
    """The type of a device that has told its capabilities. A simulated board is as fast as the
    accelerator that it pretends to have."""
    able = device.capabilities
    if able is None:
        raise ValueError(f"device {device.id} has not told what it can do")
    accelerated = lists_accelerator(able)
    used = able.accelerators if accelerated or able.board.simulated else ()
    return Kind(device.board, accelerated, roof(used, able.cores), device.throttled)


def admitted(
    devices: Iterable[Device],
    key: ModelKey,
    *,
    select: Mapping[str, str],
    exclude: Collection[str],
    require_accelerator: bool,
    wanted: int,
) -> tuple[list[Device], str]:
    """Devices that may compute parts of the model `key`, and if they are fewer than `wanted` why,
    as part of a sentence; else an empty text."""
    selected = [
        device
        for device in devices
        if all(device.labels.get(name) == value for name, value in select.items())
    ]
    loading = [device for device in selected if _loads(device)]
    able = [device for device in loading if not require_accelerator or kind_of(device).accelerated]
    uncordoned = [device for device in able if not device.cordoned]
    online = [device for device in uncordoned if device.online]
    left = [device for device in online if device.id not in exclude]
    if len(left) >= wanted:
        return left, ""
    if len(online) >= wanted:
        return left, _excluded(wanted, [d.id for d in online if d.id in exclude], len(left))
    asked = DeploymentView(
        name=key[0],
        key=key,
        formats=frozenset({FORMAT}),
        file_bytes=0,
        disk_bytes=0,
        goal_bytes=0,
        replicas=wanted,
        select=select,
        require_accelerator=require_accelerator,
    )
    counts = Counts(len(selected), len(loading), len(able), len(uncordoned), len(online))
    return left, explain(asked, wanted, counts=counts, lacking={}, failed=0)


def _excluded(wanted: int, without: Iterable[str], left: int) -> str:
    devices = f"{wanted} device{'s' if wanted > 1 else ''}"
    names = " and ".join(sorted(without))
    verb = "is" if left < 2 else "are"
    return f"needs {devices}, but without {names}, left out on purpose, there {verb} {left}"


def preferred(
    items: Sequence[T],
    limit: int,
    first: Callable[[T], bool],
    orders: Sequence[Callable[[T], float]],
) -> list[T]:
    """At most `limit` of `items`: those that come `first`, then by turns the best that is left by
    each of `orders`, where less is better."""
    chosen = [item for item in items if first(item)][:limit]
    rest = [item for item in items if not first(item)]
    turn = 0
    while rest and len(chosen) < limit:
        best = min(rest, key=orders[turn % len(orders)])
        rest.remove(best)
        chosen.append(best)
        turn += 1
    return chosen


def grouped(
    candidates: Iterable[Candidate], whole_bytes: int, message_bytes: int, most: int
) -> list[Group]:
    """Candidates as types of device that are alike, if possible at most `most` of them.

    `whole_bytes` is the memory that the whole model needs, `message_bytes` the largest message
    between devices: what makes no difference to them makes no type.
    """
    ordered = sorted(candidates, key=lambda c: (-c.memory_bytes, c.device.id))
    groups: list[Group] = []
    for factor in LINK_FACTORS:
        groups = _groups(ordered, whole_bytes, message_bytes, factor)
        if len(groups) <= most:
            break
    return groups


def _groups(
    ordered: Sequence[Candidate], whole_bytes: int, message_bytes: int, factor: float
) -> list[Group]:
    found: dict[Hashable, list[list[Candidate]]] = {}
    for candidate in ordered:
        alike = found.setdefault(kind_of(candidate.device), [])
        for members in alike:
            if _same_memory(members[0], candidate, whole_bytes) and _same_link(
                members[0].link, candidate.link, message_bytes, factor
            ):
                members.append(candidate)
                break
        else:
            alike.append([candidate])
    return [_group(members) for alike in found.values() for members in alike]


def _group(members: Sequence[Candidate]) -> Group:
    return Group(
        kind=kind_of(members[0].device),
        devices=tuple(member.device.id for member in members),
        memory_bytes=min(member.memory_bytes for member in members),
        link=DeviceLink(
            up_bytes_per_s=min(member.link.up_bytes_per_s for member in members),
            down_bytes_per_s=min(member.link.down_bytes_per_s for member in members),
            latency_ms=max(member.link.latency_ms for member in members),
            measured=all(member.link.measured for member in members),
        ),
    )


def _same_memory(most: Candidate, other: Candidate, whole_bytes: int) -> bool:
    return other.memory_bytes >= min(MEMORY_ALIKE * most.memory_bytes, PLENTY * whole_bytes)


def _same_link(one: DeviceLink, other: DeviceLink, message_bytes: int, factor: float) -> bool:
    def alike(a: float, b: float) -> bool:
        return abs(a - b) <= SAME_MS or max(a, b) <= factor * min(a, b)

    def milliseconds(rate: float) -> float:
        return 1e3 * message_bytes / rate

    return (
        alike(one.latency_ms, other.latency_ms)
        and alike(milliseconds(one.up_bytes_per_s), milliseconds(other.up_bytes_per_s))
        and alike(milliseconds(one.down_bytes_per_s), milliseconds(other.down_bytes_per_s))
    )


def _loads(device: Device) -> bool:
    able = device.capabilities
    return able is not None and any(FORMAT in runtime.formats for runtime in able.runtimes)
