"""TFLite delegates that a board may have, as data, and the nodes that a delegate took."""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import ProviderSet

CPU = "CPU"

_DELEGATE = "DELEGATE"  # What TFLite calls a node that stands for those that a delegate took.


@dataclass(frozen=True)
class Delegate:
    """An accelerator's delegate: its library, the board families that it is for, its options."""

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
        ("snapdragon", "jetson"),
    ),
    Delegate("TFLiteNnapiDelegate", "tflite-nnapi", "nnapi_delegate", ("snapdragon",)),
)
BY_PROVIDER = {delegate.provider: delegate for delegate in DELEGATES}
CPU_SET = ProviderSet(name="cpu", providers=((CPU, {}),))


def find_library(name: str) -> str | None:
    """Where the library lib`name`.so is, as the dynamic linker looks for it.

    `ctypes.util.find_library` knows the system's folders; it looks at LD_LIBRARY_PATH only where
    a linker is installed, which boards lack.
    """
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)):
        path = Path(folder) / f"lib{name}.so"
        if path.is_file():
            return str(path)
    return ctypes.util.find_library(name)


def board_sets(
    facts: BoardFacts | None, find: Callable[[str], str | None] = find_library
) -> tuple[ProviderSet, ...]:
    """Provider sets of the delegates whose libraries are on this board, then the CPU.

    Delegates are made for the shapes that a model has, and made anew where they change, so
    their sets are static. Looking for libraries starts a program, so it is done for boards that
    have a delegate only.
    """
    family = facts.description.family if facts is not None else ""
    found = [
        ProviderSet(
            name=delegate.set_name,
            providers=((delegate.provider, dict(delegate.options)), (CPU, {})),
            accelerated=True,
            static=True,
        )
        for delegate in DELEGATES
        if family in delegate.families and find(delegate.library)
    ]
    return (*found, CPU_SET)


def delegated(ops: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """How many nodes of a graph delegates took, and how many it has.

    `ops` are an interpreter's nodes with `op_name` and the tensors that are their `inputs` and
    `outputs`. TFLite keeps the nodes that were taken, and adds one for each part of the graph
    that a delegate computes: taken is what lies between that one's inputs and outputs.
    """
    nodes = list(ops)
    makers: dict[int, int] = {}
    for number, node in enumerate(nodes):
        if node["op_name"] != _DELEGATE:
            makers.update((int(tensor), number) for tensor in node["outputs"])
    taken: set[int] = set()
    for part in nodes:
        if part["op_name"] != _DELEGATE:
            continue
        given = {int(tensor) for tensor in part["inputs"]}
        wanted = [int(tensor) for tensor in part["outputs"]]
        while wanted:
            maker = makers.get(wanted.pop())
            if maker is not None and maker not in taken:
                taken.add(maker)
                inputs = (int(tensor) for tensor in nodes[maker]["inputs"])
                wanted += [tensor for tensor in inputs if tensor not in given]
    return len(taken), sum(node["op_name"] != _DELEGATE for node in nodes)
