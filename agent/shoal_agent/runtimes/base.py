"""What the agent asks of an inference runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from shoal_shared.messages import RuntimeInfo
from shoal_shared.placement import Placement
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array


class RuntimeLoadError(Exception):
    """A model cannot be loaded; the text is one plain sentence with what to do."""


class RuntimeRunError(Exception):
    """A loaded model failed on its inputs; the text is one plain sentence."""


class RuntimeInputError(RuntimeRunError):
    """The inputs cannot be used, on this device or any other."""


class RuntimeShapeError(RuntimeRunError):
    """The inputs have other shapes than those that this device compiled the model for."""


class ProviderSet(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run models on this board: execution providers with their options, most
    preferred first.

    `name` is short, as "tensorrt", "qnn-htp" or "cpu". `accelerated` tells whether it is meant
    to use an accelerator; such a set is tried in a child process first, for its libraries may
    crash. `static` sets need every shape to be fixed. Where `compiles`, loading makes code for
    `target` that devices of the same kind can share.
    """

    name: str
    providers: tuple[tuple[str, dict[str, str]], ...]
    accelerated: bool = False
    static: bool = False
    compiles: bool = False
    target: str = ""


class LoadedModel(Protocol):
    """A model in memory, ready to run on one accelerator queue."""

    @property
    def signature(self) -> ModelSignature: ...

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers that the session really has, most preferred first."""

    @property
    def placement(self) -> Placement:
        """Where its nodes were assigned, as far as the runtime tells."""

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

    @property
    def version(self) -> str:
        """Names and versions of all that compiles and runs a model, for keys of results."""

    @property
    def note(self) -> str | None:
        """One sentence on what the operator must know of it, if there is something."""

    def provider_sets(self, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
        """Ways to run a model with these options, the most preferred first and the CPU last.

        Raises `RuntimeLoadError` for options that cannot be used.
        """

    def load(
        self,
        path: Path,
        options: Mapping[str, Any],
        provider_set: ProviderSet | None = None,
        compiled: Path | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> LoadedModel:
        """Load a model file; blocking, called off the event loop. Raises `RuntimeLoadError`.

        Without a `provider_set`, on the last of `provider_sets`. `compiled` is a folder from
        which compiled code is loaded, or into which it is written if it is empty. `shapes` fix
        inputs by name for sets that need it; sizes of the batch dimension are taken as given.
        """
