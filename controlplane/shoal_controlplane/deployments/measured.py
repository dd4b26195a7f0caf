"""What was measured of a model file, by board and runtime: outlives devices and deployments."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from shoal_controlplane.deployments.goals import files
from shoal_controlplane.devices.live import Device
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.profiles import Profile
from shoal_shared.status import ReplicaState

CAPACITY = 20_000

MeasuredKey: TypeAlias = tuple[str, str, str]
"""Digest of a file, board as "family/model", runtime."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How one file ran on one type of board under one runtime.

    `memory_bytes` is 0 where it was not measured; `accelerated` is the share of the model on
    accelerators, None where the device did not tell. `updated_at` is in Unix seconds.
    """

    digest: str
    board: str
    runtime: str
    profile: Profile
    memory_bytes: int
    accelerated: float | None
    updated_at: float

    @property
    def key(self) -> MeasuredKey:
        return (self.digest, self.board, self.runtime)

    @property
    def item_ms(self) -> float:
        """Milliseconds per item at the knee."""
        return self.profile.milliseconds(self.profile.knee) / self.profile.knee


class Measurements:
    """The newest `capacity` measurements, and which of them are not yet in the database."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._rows: dict[MeasuredKey, Measured] = {}  # The oldest first.
        self._by_digest: dict[str, set[MeasuredKey]] = {}
        self._unsaved: set[MeasuredKey] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, rows: Iterable[Measured]) -> None:
        """Start with what the database holds, the oldest first."""
        for row in rows:
            self._put(row)

    def note(self, measured: Measured) -> bool:
        """Take in a measurement, and tell whether it says anything new."""
        known = self._rows.get(measured.key)
        if known is not None and (known.profile, known.memory_bytes, known.accelerated) == (
            measured.profile,
            measured.memory_bytes,
            measured.accelerated,
        ):
            return False
        self._put(measured)
        self._unsaved.add(measured.key)
        while len(self._rows) > self._capacity:
            self._drop(next(iter(self._rows)))
        return True

    def of(self, digest: str) -> list[Measured]:
        """All measurements of a file, by board and runtime."""
        return [self._rows[key] for key in sorted(self._by_digest.get(digest, ()))]

    def best(self, digests: Iterable[str]) -> dict[str, Measured]:
        """By board, that of the fastest of some files."""
        found: dict[str, Measured] = {}
        for digest in digests:
            for measured in self.of(digest):
                best = found.get(measured.board)
                if best is None or measured.item_ms < best.item_ms:
                    found[measured.board] = measured
        return found

    def keep(self, digests: Collection[str]) -> None:
        """Drop what was measured of all other files."""
        for digest in self._by_digest.keys() - digests:
            for key in list(self._by_digest[digest]):
                self._drop(key)

    def take_unsaved(self, limit: int) -> dict[MeasuredKey, Measured | None]:
        """Up to `limit` changes since they were last taken; None for what was dropped."""
        keys = sorted(self._unsaved)[:limit]
        self._unsaved.difference_update(keys)
        return {key: self._rows.get(key) for key in keys}

    def put_back(self, keys: Iterable[MeasuredKey]) -> None:
        """Saving failed: they are unsaved again."""
        self._unsaved.update(keys)

    def _put(self, measured: Measured) -> None:
        self._rows.pop(measured.key, None)
        self._rows[measured.key] = measured
        self._by_digest.setdefault(measured.digest, set()).add(measured.key)

    def _drop(self, key: MeasuredKey) -> None:
        del self._rows[key]
        left = self._by_digest[key[0]]
        left.discard(key)
        if not left:
            del self._by_digest[key[0]]
        self._unsaved.add(key)


def measured_by(device: Device, models: Mapping[ModelKey, ModelVersion]) -> Iterator[Measured]:
    """What a device has measured of known models. While it throttles, its figures are its own,
    not those of its type of board."""
    if not device.board or device.throttled:
        return
    for report in device.replicas:
        model = models.get((report.model, report.version))
        if (
            model is None
            or report.profile is None
            or report.state is not ReplicaState.READY
            or report.digest != model.digest
        ):
            continue
        for file in files(model):
            if file.name == report.variant:
                yield Measured(
                    digest=file.digest,
                    board=device.board,
                    runtime=report.runtime,
                    profile=report.profile,
                    memory_bytes=report.memory_bytes,
                    accelerated=report.placement.accelerated if report.placement else None,
                    updated_at=device.last_seen,
                )
