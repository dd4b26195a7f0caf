"""TFLite delegates that a board may have, as data: a library each, found by its name."""

from __future__ import annotations

import ctypes.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import ProviderSet

CPU = "CPU"

Find = Callable[[str], "str | None"]
"""Finds a library by its name without "lib" and ".so", as `ctypes.util.find_library` does."""


@dataclass(frozen=True)
class Delegate:
    """An accelerator's delegate: its library, its options, and the families that it is for."""

    provider: str
    set_name: str
    library: str
    families: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)


# Libraries: Qualcomm AI Engine Direct SDK, "QNN TFLite Delegate"; TensorFlow Lite's GPU delegate
# and NNAPI's as external delegates (tensorflow/lite/delegates/external).
DELEGATES = (
    Delegate(
        "TFLiteQnnDelegate",
        "tflite-qnn",
        "QnnTFLiteDelegate",
        ("snapdragon",),
        {"backend_type": "htp"},
    ),
    Delegate(
        "TFLiteGpuDelegate",
        "tflite-gpu",
        "tensorflowlite_gpu_delegate",
        ("snapdragon", "jetson", "generic"),
    ),
    Delegate("TFLiteNnapiDelegate", "tflite-nnapi", "nnapi_delegate", ("snapdragon", "generic")),
)
BY_PROVIDER = {delegate.provider: delegate for delegate in DELEGATES}
CPU_SET = ProviderSet(name="cpu", providers=((CPU, {}),))


def board_sets(
    facts: BoardFacts | None, find: Find = ctypes.util.find_library
) -> tuple[ProviderSet, ...]:
    """Provider sets of the delegates whose libraries are on this board, then the CPU.

    Looking for libraries starts a program, so it is done for boards that have a delegate only.
    """
    family = facts.description.family if facts is not None else ""
    found = [
        ProviderSet(
            name=delegate.set_name,
            providers=((delegate.provider, dict(delegate.options)), (CPU, {})),
            accelerated=True,
        )
        for delegate in DELEGATES
        if family in delegate.families and family != "generic" and find(delegate.library)
    ]
    return (*found, CPU_SET)
