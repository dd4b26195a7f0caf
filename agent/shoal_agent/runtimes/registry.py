"""Which inference runtimes this device has, and how to get those that it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import InferenceRuntime, ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.onnx import OnnxRuntime, installed_distributions
from shoal_agent.runtimes.tflite import TfliteRuntime
from shoal_shared.messages import RuntimeInfo

_REMEDIES = {
    "onnx": "pip install 'shoal[cpu]'",
    "tflite": "pip install 'shoal[tflite]'",
}


class RuntimeRegistry:
    """The runtimes of a device, at most one used per model format: the first that loads it."""

    def __init__(self, runtimes: Sequence[InferenceRuntime]) -> None:
        self._runtimes = tuple(runtimes)

    @classmethod
    def discover(cls, facts: BoardFacts | None = None) -> RuntimeRegistry:
        """The runtimes installed here, for the board that they are on. Imports none of them:
        that happens on the first load."""
        runtimes: list[InferenceRuntime] = []
        if OnnxRuntime.is_installed():
            runtimes.append(OnnxRuntime(facts))
        if TfliteRuntime.is_installed():
            runtimes.append(TfliteRuntime(facts))
        return cls(runtimes)

    def infos(self) -> tuple[RuntimeInfo, ...]:
        """What is there, as capabilities carry it."""
        return tuple(runtime.info for runtime in self._runtimes)

    def for_format(self, fmt: str) -> InferenceRuntime:
        """The runtime for a model format. Raises `RuntimeLoadError` naming the remedy."""
        for runtime in self._runtimes:
            if fmt in runtime.info.formats:
                return runtime
        if fmt in _REMEDIES:
            raise RuntimeLoadError(_missing(fmt))
        raise RuntimeLoadError(
            f"model format {fmt[:40]!r} is not known; known are {', '.join(_REMEDIES)}"
        )

    def provider_sets(self, fmt: str, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
        """Ways to run models of a format, accelerators first. Raises `RuntimeLoadError`."""
        return self.for_format(fmt).provider_sets(options)

    def runtime_version(self, fmt: str) -> str:
        """Versions of all that runs models of a format; empty where nothing does."""
        for runtime in self._runtimes:
            if fmt in runtime.info.formats:
                return runtime.version
        return ""

    def peculiarities(self) -> tuple[str, ...]:
        """What the operator must know of the runtimes that are there, one sentence each."""
        return tuple(runtime.note for runtime in self._runtimes if runtime.note)

    def notes(self) -> tuple[str, ...]:
        """One sentence for each runtime that is missing or installed in a way that breaks."""
        formats = {fmt for info in self.infos() for fmt in info.formats}
        notes = [_missing(fmt) for fmt in _REMEDIES if fmt not in formats]
        notes += self.peculiarities()
        distributions = installed_distributions()
        if len(distributions) > 1:
            notes.append(
                f"{' and '.join(distributions)} overwrite one another: uninstall all of them, "
                "then install the one for this board"
            )
        return tuple(notes)


def _missing(fmt: str) -> str:
    return f"no runtime for {fmt} models is installed: {_REMEDIES[fmt]}"
