"""A real agent on a board with little memory, whose models go wrong when told to.

    python tests/support/faultyboard.py --device NAME --memory-mib 256 --fault FILE
        --broker HOST:PORT --server URL --state-dir DIR

`FILE` says what is wrong with the board at the moment, one word: `nan` (every model computes NaN),
`slow` (every run takes `SLOW_S` longer) or nothing. It is read before every run.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shoal_agent.app import Agent, build_agent
from shoal_agent.config import AgentConfig, parse_labels
from shoal_agent.runtimes.base import InferenceRuntime, LoadedModel
from shoal_agent.runtimes.onnx import OnnxRuntime
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.service.logs import setup_logging
from shoal_shared.tensors import Array
from shoal_simulators.throttled import ThrottledBoard
from shoal_simulators.wrapped import WrappedModel, WrappedRuntime

NAN = "nan"
SLOW = "slow"
SLOW_S = 0.2


class FaultyModel(WrappedModel):
    """A model that computes what the board's fault makes of it."""

    def __init__(self, model: LoadedModel, fault: Path) -> None:
        super().__init__(model)
        self._fault = fault

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        fault = self._fault.read_text().strip() if self._fault.exists() else ""
        outputs = super().run(inputs)
        if fault == SLOW:
            time.sleep(SLOW_S)
        elif fault == NAN:
            outputs = {name: np.full_like(value, np.nan) for name, value in outputs.items()}
        return outputs


class FaultyRuntime(WrappedRuntime):
    """ONNX Runtime on one thread, whose models are `FaultyModel`s."""

    def __init__(self, runtime: InferenceRuntime, fault: Path) -> None:
        super().__init__(runtime, single=True)
        self._fault = fault

    def wrap(self, model: LoadedModel, path: Path) -> LoadedModel:
        return FaultyModel(model, self._fault)


async def _run(agent: Agent) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, agent.stop)
    await agent.run()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--label", required=True, help="NAME=VALUE")
    parser.add_argument("--memory-mib", type=int, required=True)
    parser.add_argument("--fault", type=Path, required=True)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    setup_logging("info")
    config = AgentConfig(
        device=options.device,
        broker=options.broker,
        server=options.server,
        state_dir=options.state_dir,
        labels=parse_labels(options.label),
        telemetry_interval_s=1.0,
    )
    agent = build_agent(
        config,
        board=ThrottledBoard(1.0, options.memory_mib << 20),
        registry=RuntimeRegistry([FaultyRuntime(OnnxRuntime(), options.fault)]),
        environment={},
    )
    asyncio.run(_run(agent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
