"""A plan that is carried out: its stage files, and which devices compute them in which epoch."""

from __future__ import annotations

import msgspec

from shoal_controlplane.planner.snapshot import ModelKey

_DIGEST_DIGITS = 12
_VERSION_LENGTH = 64 - _DIGEST_DIGITS - 1


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A stage's file: segments [first, last) of the model.

    `shapes` are its inputs' shapes that the plan is made for, `passes` the tensors of a message
    that only later stages need, `memory_bytes` what a device is thought to need for it.
    """

    first: int
    last: int
    digest: str
    size: int
    shapes: dict[str, tuple[int, ...]]
    passes: tuple[str, ...] = ()
    memory_bytes: int = 0


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch: the devices of each stage, replicas side by side, and the planned compute time
    of each stage on one of them, in ms."""

    epoch: int
    devices: tuple[tuple[str, ...], ...]
    stage_ms: tuple[float, ...]
    bottleneck_ms: float
    latency_ms: float

    @property
    def members(self) -> frozenset[str]:
        return frozenset(device for stage in self.devices for device in stage)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a sharded deployment runs as. `digest` is that of the model as a whole, `asked` what the
    deployment asked for, as `entry.asked` tells it.

    `fallbacks` are epochs that are wired and loaded beside the current one, by the device whose
    loss each of them survives. `created_at` is in Unix seconds.
    """

    name: str
    model: str
    version: str
    digest: str
    asked: str = ""
    parts: tuple[Part, ...]
    current: Wiring
    fallbacks: dict[str, Wiring] = {}
    credits: int = 8
    compression: str = ""
    created_at: float = 0.0

    @property
    def key(self) -> ModelKey:
        return (self.model, self.version)

    @property
    def bounds(self) -> tuple[int, ...]:
        return (self.parts[0].first, *(part.last for part in self.parts))

    @property
    def wirings(self) -> tuple[Wiring, ...]:
        """The current epoch, then the fallbacks in the order of their epochs."""
        return (self.current, *sorted(self.fallbacks.values(), key=lambda w: w.epoch))

    @property
    def last_epoch(self) -> int:
        return max(wiring.epoch for wiring in self.wirings)

    def stages_on(self, device: str) -> tuple[int, ...]:
        """Stages that a device holds in some epoch."""
        return tuple(
            stage
            for stage in range(len(self.parts))
            if any(device in wiring.devices[stage] for wiring in self.wirings)
        )


def part_key(model: str, version: str, digest: str) -> ModelKey:
    """Model and version under which devices load a part of a model."""
    digits = digest.removeprefix("sha256:")[:_DIGEST_DIGITS]
    return (model, f"{version[:_VERSION_LENGTH]}-{digits}")
