"""One real agent on a board that is slower than this machine by a factor, in a process of its own.

    python -m shoal_simulators.throttled --device NAME --factor 12 --memory-mib 256
        --broker HOST:PORT --server URL --state-dir DIR

Models are computed for real, on one thread; then the compute thread sleeps until the run has
lasted `factor` times the processor time that such a run takes undisturbed: the least of several,
when inputs of these shapes come for the first time, each with cold caches, since a board has none
that would hold a model's weights from one run to the next. A board keeps one processor busy for
about 1/factor of the time, so that several of them run side by side, and its speed does not depend
on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import uvloop

from shoal_agent.app import Agent, build_agent
from shoal_agent.boards.base import Board, BoardFacts, BoardReading
from shoal_agent.boards.generic import GenericBoard
from shoal_agent.config import AgentConfig
from shoal_agent.runtimes.base import InferenceRuntime, LoadedModel
from shoal_agent.runtimes.onnx import OnnxRuntime
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.service.logs import setup_logging
from shoal_shared.clock import Clock
from shoal_shared.messages import Board as BoardDescription
from shoal_shared.tensors import Array
from shoal_simulators.wrapped import WrappedModel, WrappedRuntime

MIN_FACTOR = 1.0
CALIBRATION_RUNS = 7

_CALIBRATION = Path(tempfile.gettempdir()) / f"shoal-calibration-{os.getuid()}.lock"

_CACHE_BYTES = 64 * 1024 * 1024
"""More than the caches of this machine hold."""


class ThrottledModel(WrappedModel):
    """A loaded model whose runs last `factor` times what a run takes undisturbed."""

    def __init__(
        self,
        model: LoadedModel,
        factor: float,
        clock: Clock,
        processor_clock: Clock,
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(model)
        self._factor = factor
        self._clock = clock
        self._processor_clock = processor_clock
        self._sleep = sleep
        self._undisturbed_s: dict[tuple[tuple[int, ...], ...], float] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        lasts = self._factor * self.undisturbed_s(inputs)
        started = self._clock()
        outputs = self._model.run(inputs)
        missing = lasts - (self._clock() - started)
        if missing > 0:
            self._sleep(missing)
        return outputs

    def undisturbed_s(self, inputs: Mapping[str, Array]) -> float:
        """Processor seconds of a run with inputs of these shapes; measured the first time."""
        shapes = tuple(inputs[name].shape for name in sorted(inputs))
        if shapes not in self._undisturbed_s:
            # One board at a time: threads that share a core slow each other down.
            with _CALIBRATION.open("w") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                runs = [self._cold_run_s(inputs) for _ in range(CALIBRATION_RUNS)]
            self._undisturbed_s[shapes] = min(runs)
        return self._undisturbed_s[shapes]

    def _cold_run_s(self, inputs: Mapping[str, Array]) -> float:
        np.ones(_CACHE_BYTES, np.uint8)
        before = self._processor_clock()
        self._model.run(inputs)
        return self._processor_clock() - before


class ThrottledRuntime(WrappedRuntime):
    """A runtime on one thread of this machine, slowed down by `factor` (at least 1)."""

    def __init__(
        self,
        runtime: InferenceRuntime,
        factor: float,
        clock: Clock = time.perf_counter,
        processor_clock: Clock = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not factor >= MIN_FACTOR:
            raise ValueError(f"a board cannot be {factor:g} times slower: {MIN_FACTOR:g} or more")
        # One thread, so that the calling thread's processor time is all of it.
        super().__init__(runtime, single=True)
        self._factor = factor
        self._clock = clock
        self._processor_clock = processor_clock
        self._sleep = sleep

    def wrap(self, model: LoadedModel, path: Path) -> LoadedModel:
        return ThrottledModel(model, self._factor, self._clock, self._processor_clock, self._sleep)


class ThrottledBoard:
    """A simulated board with `memory_bytes` for models, over this machine's sensors."""

    def __init__(self, factor: float, memory_bytes: int, host: Board | None = None) -> None:
        self._host = host or GenericBoard()
        self._facts = BoardFacts(
            description=BoardDescription(
                family="throttled",
                model=f"{factor:g}x slower, {memory_bytes >> 20} MiB",
                simulated=True,
            ),
            cores=1,
            memory_bytes=memory_bytes,
            notes=(f"simulated: one thread of this machine, {factor:g} times slower",),
        )

    @property
    def facts(self) -> BoardFacts:
        return self._facts

    def read(self) -> BoardReading:
        """This machine's load; nothing but models takes of the board's memory."""
        reading = self._host.read()
        return replace(reading, memory_used_bytes=0, temperature_c=None, power_w=None)

    def is_throttled(self) -> bool:
        """Never: it is slow by itself, and does not change."""
        return False


_conforms: type[Board] = ThrottledBoard


def build_throttled(config: AgentConfig, factor: float, memory_bytes: int) -> Agent:
    """The real agent with ONNX Runtime on a throttled board."""
    return build_agent(
        config,
        board=ThrottledBoard(factor, memory_bytes),
        registry=RuntimeRegistry([ThrottledRuntime(OnnxRuntime(), factor)]),
        environment={},
    )


async def _run(agent: Agent) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, agent.stop)
    await agent.run()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m shoal_simulators.throttled", description=__doc__
    )
    parser.add_argument("--device", required=True)
    parser.add_argument("--factor", type=float, required=True)
    parser.add_argument("--memory-mib", type=int, default=4096)
    parser.add_argument("--broker", default="127.0.0.1:1883")
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    parser.add_argument("--fleet", default="default")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--log-level", default="warning")
    options = parser.parse_args(arguments)
    setup_logging(options.log_level)
    try:
        config = AgentConfig(
            device=options.device,
            fleet=options.fleet,
            broker=options.broker,
            server=options.server,
            state_dir=options.state_dir,
            telemetry_interval_s=1.0,
        )
        agent = build_throttled(config, options.factor, options.memory_mib << 20)
    except ValueError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 2
    uvloop.run(_run(agent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
