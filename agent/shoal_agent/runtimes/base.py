"""What the agent asks of an inference runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from shoal_shared.messages import RuntimeInfo
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array


class RuntimeLoadError(Exception):
    """A model cannot be loaded; the text is one plain sentence with what to do."""


class RuntimeRunError(Exception):
    """A loaded model failed on its inputs; the text is one plain sentence."""


class RuntimeInputError(RuntimeRunError):
    """The inputs cannot be used, on this device or any other."""


class LoadedModel(Protocol):
    """A model in memory, ready to run on one accelerator queue."""

    @property
    def signature(self) -> ModelSignature: ...

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers that the session really has, most preferred first."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once, in the calling thread. Arrays as `shoal_shared.tensors` describes.

        Raises `RuntimeRunError`.
        """

    def close(self) -> None:
        """Give the memory back; the model is not run again."""


class InferenceRuntime(Protocol):
    """A runtime that loads models of certain formats."""

    @property
    def info(self) -> RuntimeInfo:
        """Name, version, formats and providers that it lists."""

    def load(self, path: Path, options: Mapping[str, Any]) -> LoadedModel:
        """Load a model file; blocking, called off the event loop. Raises `RuntimeLoadError`."""
