"""What a bare ONNX Runtime call takes: `python bare.py MODEL SECONDS` prints the median in ms."""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Any

import numpy as np


def main() -> None:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    inputs = {given.name: np.random.default_rng(2).random(shape, np.float32)}
    until = time.perf_counter() + float(sys.argv[2])
    times = []
    while (start := time.perf_counter()) < until:
        session.run(None, inputs)
        times.append(time.perf_counter() - start)
    print(sorted(times)[len(times) // 2] * 1e3)


if __name__ == "__main__":
    main()
