"""A simulated fleet: the real agent on virtual boards, all in one process.

    python -m shoal_simulators.fleet SPEC --broker HOST:PORT --server URL --state-dir DIR

Each agent has its own session with the broker, its own state folder and its own compute thread;
models are computed for real.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from shoal_agent.app import Agent, build_agent
from shoal_agent.config import AgentConfig
from shoal_agent.service.logs import setup_logging
from shoal_simulators.boards import VirtualBoard
from shoal_simulators.paced import paced_registry
from shoal_simulators.spec import SpecError, VirtualDevice, parse_fleet, slowed


def build_fleet(
    devices: Sequence[VirtualDevice], *, broker: str, server: str, fleet: str, state_dir: Path
) -> list[Agent]:
    """An agent per virtual device; each keeps its state in a folder of its name."""
    return [
        build_agent(
            AgentConfig(
                device=device.name,
                fleet=fleet,
                broker=broker,
                server=server,
                state_dir=state_dir / device.name,
                labels=device.labels,
            ),
            board=VirtualBoard(device.profile),
            registry=paced_registry(device.profile),
            environment={},
        )
        for device in devices
    ]


async def run_fleet(agents: Sequence[Agent]) -> None:
    """Run all agents until a signal, the end of standard input, or until one fails."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(sys.stdin)
        for agent in agents:
            agent.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    # Whoever started the fleet holds the other end: it must not outlive its control plane.
    loop.add_reader(sys.stdin, lambda: None if os.read(sys.stdin.fileno(), 1024) else stop())
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(agent.run())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal_simulators.fleet", description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--broker", default="127.0.0.1:1883")
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    parser.add_argument("--fleet", default="default")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument(
        "--speed", type=float, default=1.0, help="of all boards, as a part of what they have"
    )
    parser.add_argument("--log-level", default="warning")
    options = parser.parse_args(arguments)
    setup_logging(options.log_level)
    try:
        devices = slowed(parse_fleet(options.spec), options.speed)
        agents = build_fleet(
            devices,
            broker=options.broker,
            server=options.server,
            fleet=options.fleet,
            state_dir=options.state_dir,
        )
    except (SpecError, ValueError) as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 2
    uvloop.run(run_fleet(agents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
