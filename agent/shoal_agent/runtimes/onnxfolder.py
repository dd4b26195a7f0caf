"""Models that read and write their compiled code in the working directory.

ONNX Runtime's CANN provider keeps compiled models as `.om` files in the working directory, builds
them while the model *runs*, and takes no option for another place (cann_execution_provider.cc,
BuildONNXModel in cann_graph.cc). The agent cannot change its own directory, but on Linux a thread
can have one for itself: unshare(2) with CLONE_FS, which needs no privileges.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal_agent.runtimes.base import LoadedModel
from shoal_shared.placement import Placement
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array

_CLONE_FS = 0x200


class InFolder:
    """A model that is loaded and run by one thread, whose working directory is `folder`.

    Raises `OSError` where the system gives threads no directory of their own, as containers
    without that system call do, and what `load` raises.
    """

    def __init__(self, folder: Path, load: Callable[[Path], LoadedModel]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="in-folder")
        try:
            self._thread.submit(_enter, folder).result()
            self._model = self._thread.submit(load, folder).result()
        except BaseException:
            self._thread.shutdown()
            raise

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
        return self._thread.submit(self._model.run, inputs).result()

    def close(self) -> None:
        self._model.close()
        self._thread.shutdown()


def _enter(folder: Path) -> None:
    """Give the calling thread a working directory of its own, and go there."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_FS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    os.chdir(folder)


_conforms: type[LoadedModel] = InFolder
