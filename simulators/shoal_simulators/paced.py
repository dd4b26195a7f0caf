"""Runtimes that compute for real and take as long as a virtual board would."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal_agent.runtimes.base import InferenceRuntime, LoadedModel, ProviderSet
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_shared.clock import Clock
from shoal_shared.messages import RuntimeInfo
from shoal_shared.placement import Placement
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array
from shoal_simulators.cost import CostModel
from shoal_simulators.profiles import BoardProfile

Macs = Callable[[Mapping[str, tuple[int, ...]]], float]


class PacedModel:
    """A loaded model whose runs last at least as long as on the board of `profile`."""

    def __init__(
        self,
        model: LoadedModel,
        profile: BoardProfile,
        macs: Macs,
        clock: Clock,
        sleep: Callable[[float], None],
    ) -> None:
        self._model = model
        self._profile = profile
        self._macs = macs
        self._clock = clock
        self._sleep = sleep

    @property
    def signature(self) -> ModelSignature:
        return self._model.signature

    @property
    def providers(self) -> tuple[str, ...]:
        return self._model.providers

    @property
    def placement(self) -> Placement:
        return self._model.placement

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Counted before the clock starts: the first count of a shape takes a while.
        total = self._macs({name: array.shape for name, array in inputs.items()})
        published_s = self._profile.milliseconds(1, total) / 1e3
        started = self._clock()
        outputs = self._model.run(inputs)
        missing = published_s - (self._clock() - started)
        if missing > 0:
            self._sleep(missing)
        return outputs

    def close(self) -> None:
        self._model.close()


class PacedRuntime:
    """A runtime whose models are paced. What a TFLite model costs is not counted: it is paced
    to the board's fixed overhead only."""

    def __init__(
        self,
        runtime: InferenceRuntime,
        profile: BoardProfile,
        clock: Clock = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._runtime = runtime
        self._profile = profile
        self._clock = clock
        self._sleep = sleep

    @property
    def info(self) -> RuntimeInfo:
        return self._runtime.info

    @property
    def version(self) -> str:
        return self._runtime.version

    @property
    def note(self) -> str | None:
        return self._runtime.note

    def provider_sets(self, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
        """Only the CPU: a virtual board has no accelerator of its own."""
        return tuple(s for s in self._runtime.provider_sets(options) if not s.accelerated)

    def load(
        self,
        path: Path,
        options: Mapping[str, Any],
        provider_set: ProviderSet | None = None,
        compiled: Path | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> LoadedModel:
        model = self._runtime.load(path, options, provider_set, compiled, shapes)
        macs: Macs = CostModel(path).macs if "onnx" in self.info.formats else _uncounted
        return PacedModel(model, self._profile, macs, self._clock, self._sleep)


def paced_registry(profile: BoardProfile) -> RuntimeRegistry:
    """The installed runtimes, each paced to a board."""
    installed = RuntimeRegistry.discover()
    formats = [info.formats[0] for info in installed.infos()]
    return RuntimeRegistry([PacedRuntime(installed.for_format(fmt), profile) for fmt in formats])


def _uncounted(_shapes: Mapping[str, tuple[int, ...]]) -> float:
    return 0.0
