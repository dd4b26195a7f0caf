"""One measurement in the environment of a runtime: `python probe.py TASK` with JSON, prints JSON.

It needs nothing but the agent and the runtime. Every load is measured in a process of its own, so
that a library that is loaded already does not flatter the second one.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from shoal_agent.boards.detect import detect
from shoal_agent.runtimes.base import LoadedModel, ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.trial import TrialTask, try_in_child
from shoal_agent.serving.service import InferenceService
from shoal_shared import oip
from shoal_shared.golden import agrees
from shoal_shared.messages import ModelGoal

WARM_UP = 3


def main() -> int:
    task = json.loads(sys.argv[1])
    measure = {"sets": sets, "load": load, "run": run, "detect": detection, "overhead": overhead}
    try:
        answer = measure[task.pop("what")](**task)
    except RuntimeLoadError as error:
        answer = {"error": str(error)}
    print("\n" + json.dumps(answer), flush=True)
    # Some libraries crash while they are taken down.
    os._exit(0)


def sets(model: str) -> Any:
    """Ways to run a model here."""
    chosen = RuntimeRegistry.discover().provider_sets(_format(model), {})
    return [{"name": s.name, "compiles": s.compiles} for s in chosen]


def load(
    model: str, provider_set: str, compiled: str, shapes: dict[str, list[int]], started_by: str
) -> Any:
    """Seconds to load, or why it cannot be loaded, as an operator reads it.

    `started_by` is a model that is loaded before, so that the provider's own libraries are
    there, as in an agent that serves already; empty for the first load of a process.
    """
    importlib.import_module("onnxruntime")
    if started_by:
        _load(started_by, provider_set, "", {})
    started = time.perf_counter()
    try:
        _load(model, provider_set, compiled, shapes)
    except RuntimeLoadError:
        return {"error": asyncio.run(_reason(model, provider_set, shapes))}
    return {"load_s": time.perf_counter() - started}


async def _reason(model: str, provider_set: str, shapes: dict[str, list[int]]) -> str:
    chosen = _set(model, provider_set)
    fixed = {name: tuple(shape) for name, shape in shapes.items()}
    task = TrialTask(
        format=_format(model), path=model, options={}, provider_set=chosen, shapes=fixed
    )
    try:
        await try_in_child(task)
    except RuntimeLoadError as error:
        return str(error)
    return ""


def _set(model: str, name: str) -> ProviderSet:
    sets_here = RuntimeRegistry.discover().provider_sets(_format(model), {})
    return next(s for s in sets_here if s.name == name)


def run(
    model: str,
    provider_set: str,
    compiled: str,
    shapes: dict[str, list[int]],
    inputs: str,
    outputs: str,
    runs: int,
) -> Any:
    """Median time of a run at batch 1, where it ran, and how far it is from the reference."""
    loaded = _load(model, provider_set, compiled, shapes)
    feeds, expected = dict(np.load(inputs)), dict(np.load(outputs))
    times = _times(loaded, feeds, runs)
    _, error = agrees(expected, loaded.run(feeds), 0.0, 0.0)
    placement = loaded.placement
    return {
        "p50_ms": statistics.median(times) * 1e3,
        "error": error,
        "nodes": placement.nodes,
        "accelerated": placement.accelerated,
        "proof": placement.proof.value,
    }


def detection() -> Any:
    """Seconds to find out which board this is and what it has."""
    started = time.perf_counter()
    board = detect()
    facts = board.facts
    return {"detect_s": time.perf_counter() - started, "board": facts.description.model}


def overhead(model: str, inputs: str, runs: int) -> Any:
    """What the agent adds to a bare run at batch 1: from a request's bytes to its reply's."""
    return asyncio.run(_overhead(Path(model), dict(np.load(inputs)), runs))


async def _overhead(model: Path, feeds: dict[str, Any], runs: int) -> Any:
    registry = RuntimeRegistry.discover()
    service = InferenceService(registry)
    goal = ModelGoal(
        deployment="d", model="m", version="1", digest="sha256:0", size=1, format="onnx"
    )
    await service.load(goal, {"sha256:0": model}, lambda _: None)
    bare = registry.for_format("onnx").load(model, {})
    tensors = [oip.Tensor(n, "FP32", a) for n, a in feeds.items()]
    request = oip.InferRequest(tensors, model_name="m", model_version="1")
    buffers, header = oip.encode_request(request)
    payload = b"".join(buffers)
    through: list[float] = []
    alone: list[float] = []
    for _ in range(runs + WARM_UP):
        # Taking turns, so that both meet the same machine.
        started = time.perf_counter()
        bare.run(feeds)
        alone.append(time.perf_counter() - started)
        done = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        service.handle(payload, header, None, lambda b, n, d=done: d.set_result(b))
        await done
        through.append(time.perf_counter() - started)
    added = statistics.median(through[WARM_UP:]) - statistics.median(alone[WARM_UP:])
    return {"bare_ms": statistics.median(alone[WARM_UP:]) * 1e3, "added_ms": added * 1e3}


def _load(
    model: str, provider_set: str, compiled: str, shapes: dict[str, list[int]]
) -> LoadedModel:
    registry = RuntimeRegistry.discover()
    fmt = _format(model)
    return registry.for_format(fmt).load(
        Path(model),
        {},
        _set(model, provider_set),
        Path(compiled) if compiled else None,
        {name: tuple(shape) for name, shape in shapes.items()},
    )


def _times(loaded: LoadedModel, feeds: dict[str, Any], runs: int) -> list[float]:
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        loaded.run(feeds)
        times.append(time.perf_counter() - started)
    return times[1:]


def _format(model: str) -> str:
    return "tflite" if model.endswith(".tflite") else "onnx"


if __name__ == "__main__":
    main()
