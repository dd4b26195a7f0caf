"""What the adapters of the runtimes have in common."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

from shoal_agent.runtimes.base import RuntimeLoadError

MAX_THREADS = 256

_NOISE = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"Load model from .*? failed:\s*"),
    re.compile(r"/\S*onnxruntime/\S+:\d+ .*?\) (?=[A-Z])"),
)


def thread_count(options: Mapping[str, Any]) -> int:
    """Option `intra_op_threads`: 1 to 256, or 0 for every core that this process may use.

    Every core is the default: one model runs at a time, and its latency is what counts. Raises
    `RuntimeLoadError`.
    """
    threads = options.get("intra_op_threads", 0)
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise RuntimeLoadError("option 'intra_op_threads' must be a whole number")
    if not 0 <= threads <= MAX_THREADS:
        raise RuntimeLoadError(f"option 'intra_op_threads' must lie between 0 and {MAX_THREADS}")
    return threads or len(os.sched_getaffinity(0))


def imported(module: str, library: str) -> Any:
    """A runtime's module. Raises `RuntimeLoadError`: a native library fails in many ways, as by
    a missing .so or a wrong numpy."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise RuntimeLoadError(
            f"{library} is installed but cannot be imported: {sentence(error)}"
        ) from error


def sentence(error: Exception) -> str:
    """The first line of a library's error, without codes, file names and C++ signatures."""
    text = str(error).strip() or type(error).__name__
    for pattern in _NOISE:
        text = pattern.sub("", text)
    return " ".join(text.strip().splitlines()[0].split())[:300]
