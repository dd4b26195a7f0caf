"""Runtimes and models that differ from others in their runs only, for simulated boards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal_agent.runtimes.base import InferenceRuntime, LoadedModel, ProviderSet
from shoal_shared.messages import RuntimeInfo
from shoal_shared.placement import Placement
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array


class WrappedModel:
    """A loaded model; override `run`."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

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
        return self._model.run(inputs)

    def close(self) -> None:
        self._model.close()


class WrappedRuntime:
    """A runtime on the CPU: a simulated board has no accelerator of its own. Override `wrap`;
    with `single` models compute on one thread."""

    def __init__(self, runtime: InferenceRuntime, *, single: bool = False) -> None:
        self._runtime = runtime
        self._options = {"intra_op_threads": 1} if single else {}

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
        return tuple(s for s in self._runtime.provider_sets(options) if not s.accelerated)

    def load(
        self,
        path: Path,
        options: Mapping[str, Any],
        provider_set: ProviderSet | None = None,
        compiled: Path | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> LoadedModel:
        chosen = {**options, **self._options}
        return self.wrap(self._runtime.load(path, chosen, provider_set, compiled, shapes), path)

    def wrap(self, model: LoadedModel, path: Path) -> LoadedModel:
        """What a model of the file `path` is on this board."""
        return model
