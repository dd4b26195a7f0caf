"""The kinds of targets. Each is imported when it is first used: its SDK may not be installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.target import CloudTarget, TargetSettings

KINDS: Mapping[str, str] = {
    "kserve": "AKS or any Kubernetes, through KServe",
    "azureml": "Azure ML managed online endpoints",
    "tpu": "Cloud TPU on GKE, through Shoal's JAX worker",
    "ray": "Ray Serve on any Ray cluster",
}


class Kind(Protocol):
    """What the module of a kind offers: `check_options` raises `InvalidError` with a sentence
    that names the key, and returns the options in full; `open_target` builds the target without
    reaching it."""

    check_options: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    open_target: Callable[[TargetSettings], CloudTarget]


def kind_of(name: str) -> Kind:
    """The module of a kind. Raises `InvalidError` for an unknown one and for one whose SDK is not
    installed, with the remedy."""
    if name not in KINDS:
        raise InvalidError(f"there is no kind of target {name[:40]!r}: use {', '.join(KINDS)}")
    try:
        module = importlib.import_module(f"shoal_controlplane.offload.{name}.kind")
    except ImportError as error:
        raise InvalidError(
            f"targets of kind {name} need packages that are not installed here ({error.name}): "
            f"pip install 'shoal[{name}]'"
        ) from None
    return cast(Kind, module)
