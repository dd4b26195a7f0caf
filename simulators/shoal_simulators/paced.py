"""Runtimes that compute for real and take as long as a virtual board would."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from shoal_agent.runtimes.base import InferenceRuntime, LoadedModel
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_shared.clock import Clock
from shoal_shared.tensors import Array
from shoal_simulators.cost import CostModel
from shoal_simulators.profiles import BoardProfile
from shoal_simulators.wrapped import WrappedModel, WrappedRuntime

Macs = Callable[[Mapping[str, tuple[int, ...]]], float]


class PacedModel(WrappedModel):
    """A loaded model whose runs last at least as long as on the board of `profile`."""

    def __init__(
        self,
        model: LoadedModel,
        profile: BoardProfile,
        macs: Macs,
        clock: Clock,
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(model)
        self._profile = profile
        self._macs = macs
        self._clock = clock
        self._sleep = sleep

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Counted before the clock starts: the first count of a shape takes a while.
        total = self._macs({name: array.shape for name, array in inputs.items()})
        published_s = self._profile.milliseconds(1, total) / 1e3
        started = self._clock()
        outputs = super().run(inputs)
        missing = published_s - (self._clock() - started)
        if missing > 0:
            self._sleep(missing)
        return outputs


class PacedRuntime(WrappedRuntime):
    """A runtime whose models are paced. What a TFLite model costs is not counted: it is paced
    to the board's fixed overhead only."""

    def __init__(
        self,
        runtime: InferenceRuntime,
        profile: BoardProfile,
        clock: Clock = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(runtime)
        self._profile = profile
        self._clock = clock
        self._sleep = sleep

    def wrap(self, model: LoadedModel, path: Path) -> LoadedModel:
        macs: Macs = CostModel(path).macs if "onnx" in self.info.formats else _uncounted
        return PacedModel(model, self._profile, macs, self._clock, self._sleep)


def paced_registry(profile: BoardProfile) -> RuntimeRegistry:
    """The installed runtimes, each paced to a board."""
    installed = RuntimeRegistry.discover()
    formats = [info.formats[0] for info in installed.infos()]
    return RuntimeRegistry([PacedRuntime(installed.for_format(fmt), profile) for fmt in formats])


def _uncounted(_shapes: Mapping[str, tuple[int, ...]]) -> float:
    return 0.0
