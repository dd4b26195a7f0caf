"""From the live fleet to the planner's problem and back: a plan as it would be now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from shoal_controlplane.deployments.measured import Measured, Measurements
from shoal_controlplane.devices.live import Device, LiveFleet
from shoal_controlplane.errors import ConflictError, InvalidError
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.costs import Costs, Range, costs
from shoal_controlplane.planner.cuts.analysis import Analysis, CutError
from shoal_controlplane.planner.partition.problem import (
    DeviceType,
    Objective,
    Outcome,
    Problem,
)
from shoal_controlplane.planner.snapshot import memory_estimate
from shoal_controlplane.plans.analyses import Shapes
from shoal_controlplane.plans.candidates import (
    Candidate,
    Group,
    Kind,
    admitted,
    free_memory,
    grouped,
    kind_of,
    preferred,
)
from shoal_controlplane.plans.draft import Draft
from shoal_controlplane.plans.links import LinkBook, between, entry, leaving
from shoal_shared.placement import MOSTLY
from shoal_shared.profiles import Profile

MAX_DEVICES = 32
MAX_TYPES = 8
PROBING_S = 3.0
THROTTLED = 1.5
"""A board that throttles takes so much longer than was measured on its type."""
_SMALL = 256
"""Segments times devices up to which the planner is done before a thread has started."""

Ranges: TypeAlias = Callable[[str, Mapping[str, tuple[int, ...]]], Mapping[str, tuple[int, int]]]
"""By digest of a model and shapes of its inputs: the segments of files cut from it, by digest."""


class Analysing(Protocol):
    """Where analyses come from; see `plans.analyses.Analyses`."""

    async def of(self, model: ModelVersion, shapes: Shapes | None = None) -> Analysis:
        """Raises `InvalidError` and `CutError`."""


class Probing(Protocol):
    """Where links come from; see `plans.links.LinkProber`."""

    @property
    def book(self) -> LinkBook: ...

    async def refresh(self, devices: Collection[str], timeout_s: float = PROBING_S) -> None:
        """Measure the links that are not known well."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What was measured of a model's parts on a kind of device: ms of a request, and bytes."""

    costs: Costs
    times_ms: Mapping[Range, float]
    memory_bytes: Mapping[Range, int]


class Drafter:
    """Computes plans, and changes nothing.

    `reserved` gives the bytes of memory that deployments and plans take on each device, `solve`
    is the planner.
    """

    def __init__(
        self,
        fleet: LiveFleet,
        measured: Measurements,
        analyses: Analysing,
        prober: Probing,
        *,
        reserved: Callable[[], Mapping[str, int]],
        ranges: Ranges,
        solve: Callable[[Problem], Outcome],
    ) -> None:
        self._fleet = fleet
        self._measured = measured
        self._analyses = analyses
        self._prober = prober
        self._reserved = reserved
        self._ranges = ranges
        self._solve = solve

    async def draft(
        self,
        model: ModelVersion,
        *,
        select: Mapping[str, str],
        objective: Objective,
        stages: int | None = None,
        shapes: Shapes | None = None,
        exclude: Collection[str] = (),
        own: Mapping[str, int] | None = None,
        require_accelerator: bool = False,
    ) -> Draft:
        """The best plan for a model on devices with the labels `select`, but for those in
        `exclude`. `own` are bytes of the `reserved` memory, by device, that the plan may use.

        Where the fleet has too little memory, the draft's outcome says so. Raises `InvalidError`
        for a model that cannot be planned and `ConflictError` where no devices can take part.
        """
        analysis = await self._analysis(model, shapes, stages)
        own = own or {}

        def present() -> list[Device]:
            devices, reason = admitted(
                self._fleet,
                (model.name, model.version),
                select=select,
                exclude=exclude,
                require_accelerator=require_accelerator,
                wanted=stages or 1,
            )
            if reason:
                raise ConflictError(f"There is no plan for {model.name}:{model.version}: {reason}.")
            return devices

        devices = present()
        known = self._known(model, analysis, devices)
        chosen = {c.device.id for c in self._considered(devices, known, own)}
        await self._prober.refresh(chosen, timeout_s=PROBING_S)
        # Devices and memory may have come and gone since.
        devices = present()
        known = self._known(model, analysis, devices)
        considered = self._considered(devices, known, own)
        groups, left_out = _types(considered, known, analysis)
        problem = _problem(analysis, compression_of(model), groups, known, objective, stages)
        count = sum(len(group.devices) for group in groups)
        if count * len(analysis.segments) > _SMALL:
            outcome = await asyncio.to_thread(self._solve, problem)
        else:
            outcome = self._solve(problem)
        return Draft(
            model=model,
            select=dict(select),
            analysis=analysis,
            problem=problem,
            outcome=outcome,
            basis=tuple(known[group.kind].costs.basis for group in groups),
            boards=tuple(group.kind.board for group in groups),
            notes=_notes(len(devices), len(considered), left_out),
        )

    async def _analysis(
        self, model: ModelVersion, shapes: Shapes | None, stages: int | None
    ) -> Analysis:
        name = f"{model.name}:{model.version}"
        if stages is not None and stages < 1:
            raise InvalidError("A plan has at least one stage.")
        try:
            analysis = await self._analyses.of(model, shapes)
        except CutError as error:
            raise InvalidError(f"{name} cannot be planned: {str(error).rstrip('.')}.") from None
        count = len(analysis.segments)
        if stages is not None and stages > count:
            most = f"at most {count} stages are possible" if count > 1 else "it stays in one piece"
            reason = analysis.reason.rstrip(".") or most
            raise InvalidError(f"{name} cannot be cut into {stages} stages: {reason}.")
        return analysis

    def _known(
        self, model: ModelVersion, analysis: Analysis, devices: Collection[Device]
    ) -> dict[Kind, _Known]:
        """What is known of a model, by kind of device."""
        parts = self._ranges(model.digest, analysis.shapes)
        return {
            kind: self._known_on(kind, model, analysis, parts)
            for kind in set(map(kind_of, devices))
        }

    def _known_on(
        self,
        kind: Kind,
        model: ModelVersion,
        analysis: Analysis,
        parts: Mapping[str, tuple[int, int]],
    ) -> _Known:
        count = len(analysis.segments)
        batch = _batch(model, analysis)
        times: dict[Range, float] = {}
        memory: dict[Range, int] = {}
        for digest, (first, last) in parts.items():
            found = self._fastest(digest, kind, lambda profile: _part_ms(profile, batch))
            if found is not None and 0 <= first < last <= count:
                times[first, last], memory[first, last] = found
        whole = self._fastest(model.digest, kind, lambda profile: _whole_ms(profile, batch))
        fitted = dict(times)
        if whole is not None and (_is_sized(model) or not times):
            # A device makes up sizes that are left open, so the time may be of other shapes.
            fitted[0, count] = whole[0]
        if whole is not None and _is_sized(model):
            times[0, count], memory[0, count] = whole
        return _Known(
            costs=costs(analysis.segments, fitted, kind.roof),
            times_ms=times,
            memory_bytes={r: size for r, size in memory.items() if size > 0},
        )

    def _fastest(
        self, digest: str, kind: Kind, request_ms: Callable[[Profile], float]
    ) -> tuple[float, int] | None:
        """Ms of a request and bytes of memory of a file on a kind of device, under the fastest
        runtime that it can have used."""

        def usable(row: Measured) -> bool:
            on_accelerator = (row.accelerated or 0.0) > MOSTLY
            return row.board == kind.board and (kind.accelerated or not on_accelerator)

        found = [
            (request_ms(row.profile), row.memory_bytes)
            for row in self._measured.of(digest)
            if usable(row)
        ]
        return min(((ms, size) for ms, size in found if ms > 0), default=None)

    def _considered(
        self, devices: Collection[Device], known: Mapping[Kind, _Known], own: Mapping[str, int]
    ) -> list[Candidate]:
        """At most `MAX_DEVICES`: those that the plan has already, the fastest, and those with the
        most memory."""
        reserved, book = self._reserved(), self._prober.book
        candidates = [
            Candidate(
                device,
                free_memory(device, max(0, reserved.get(device.id, 0) - own.get(device.id, 0))),
                book.of(device.id),
            )
            for device in sorted(devices, key=lambda d: d.id)
        ]
        speed = {kind: _speed(kind, known[kind]) for kind in known}
        return preferred(
            candidates,
            MAX_DEVICES,
            lambda c: c.device.id in own,
            (lambda c: speed[kind_of(c.device)], lambda c: -c.memory_bytes),
        )


def _types(
    candidates: Collection[Candidate], known: Mapping[Kind, _Known], analysis: Analysis
) -> tuple[list[Group], list[str]]:
    """Types of device, at most `MAX_TYPES`, and the devices that were left out for that."""
    segments = analysis.segments
    message = max(_input_bytes(analysis), *(segment.out_bytes for segment in segments))
    whole = memory_estimate(sum(s.weight_bytes for s in segments))
    whole += max(s.peak_bytes for s in segments)
    groups = grouped(candidates, whole, message, MAX_TYPES)
    speed = {kind: _speed(kind, known[kind]) for kind in known}
    kept = preferred(
        groups,
        MAX_TYPES,
        lambda _: False,
        (lambda group: speed[group.kind], lambda group: -group.memory_bytes),
    )
    kept.sort(key=lambda group: (group.kind.board, group.devices))
    names = {device for group in kept for device in group.devices}
    return kept, sorted(c.device.id for c in candidates if c.device.id not in names)


def compression_of(model: ModelVersion) -> str:
    """How tensors may travel between stages, as the card allows it."""
    return model.card.model.compression if model.card is not None else ""


def _problem(
    analysis: Analysis,
    compression: str,
    groups: Collection[Group],
    known: Mapping[Kind, _Known],
    objective: Objective,
    stages: int | None,
) -> Problem:
    types: list[DeviceType] = []
    known_ms: dict[tuple[int, int, int], float] = {}
    known_bytes: dict[tuple[int, int, int], int] = {}
    for number, group in enumerate(groups):
        facts, factor = known[group.kind], _factor(group.kind)
        same = sum(other.name.split(" #")[0] == group.kind.board for other in types)
        types.append(
            DeviceType(
                name=f"{group.kind.board} #{same + 1}" if same else group.kind.board,
                devices=group.devices,
                memory_bytes=group.memory_bytes,
                times_ms=tuple(factor * ms for ms in facts.costs.times_ms),
                overhead_ms=factor * facts.costs.overhead_ms,
            )
        )
        known_ms |= {(a, b, number): factor * ms for (a, b), ms in facts.times_ms.items()}
        known_bytes |= {(a, b, number): size for (a, b), size in facts.memory_bytes.items()}
    links = [group.link for group in groups]
    return Problem(
        segments=analysis.sent(compression),
        types=tuple(types),
        links=tuple(tuple(between(u, v) for v in links) for u in links),
        entries=tuple(entry(link) for link in links),
        exits=tuple(leaving(link) for link in links),
        input_bytes=_input_bytes(analysis),
        objective=objective,
        stages=stages,
        known_ms=known_ms,
        known_bytes=known_bytes,
    )


def _notes(able: int, considered: int, left_out: Collection[str]) -> tuple[str, ...]:
    notes: list[str] = []
    if able > considered:
        notes.append(
            f"{able - considered} of {able} devices were left out: the planner weighs the "
            f"{considered} that are fastest or have most memory."
        )
    if left_out:
        names = ", ".join(sorted(left_out)[:5])
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        notes.append(
            f"{names}{more} {'was' if len(left_out) == 1 else 'were'} left out: the planner "
            f"weighs {MAX_TYPES} types of device at once."
        )
    return tuple(notes)


def _input_bytes(analysis: Analysis) -> int:
    return sum(tensor.size for tensor in analysis.inputs)


def _factor(kind: Kind) -> float:
    return THROTTLED if kind.throttled else 1.0


def _speed(kind: Kind, known: _Known) -> float:
    """Ms of the whole model."""
    return _factor(kind) * known.costs.milliseconds(0, len(known.costs.times_ms))


def _batch(model: ModelVersion, analysis: Analysis) -> int:
    """Items of the request that an analysis is for."""
    if not model.signature.batchable:
        return 1
    return next((shape[0] for shape in analysis.shapes.values()), 1)


def _is_sized(model: ModelVersion) -> bool:
    """Whether only the batch of the inputs is open, if anything."""
    skip = 1 if model.signature.batchable else 0
    return all(size >= 0 for spec in model.signature.inputs for size in spec.shape[skip:])


def _whole_ms(profile: Profile, batch: int) -> float:
    measured = dict(profile.samples).get(batch)
    return profile.milliseconds(batch) if measured is None else measured


def _part_ms(profile: Profile, batch: int) -> float:
    """A part that was measured at one size only is cut for that batch."""
    if len(profile.samples) == 1:
        return profile.samples[0][1]
    return _whole_ms(profile, batch)
