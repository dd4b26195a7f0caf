"""`shoal-agent run | status | doctor`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from shoal_agent.config import AgentConfig, ConfigError, load_config, parse_labels


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 success, 1 failure, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        config = load_config(options.config, os.environ, _flags(options))
        code: int = options.command(config, options)
    except ConfigError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:
        # The reader has left; what is still buffered goes nowhere, and silently.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="default /etc/shoal/agent.toml")
    common.add_argument("--state-dir", metavar="DIR", help="default /var/lib/shoal")
    common.add_argument("--broker", metavar="HOST:PORT", help="default 127.0.0.1:1883")
    common.add_argument("--server", metavar="URL", help="default http://127.0.0.1:8080")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table")

    parser = argparse.ArgumentParser(
        prog="shoal-agent", description="One device of a Shoal fleet: runs inference and reports."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", parents=[common], help="run the agent until it is stopped")
    run.add_argument("--device", metavar="NAME", help="default: the host's name")
    run.add_argument("--fleet", metavar="NAME", help="default: default")
    run.add_argument(
        "--label",
        dest="labels",
        action="append",
        metavar="NAME=VALUE",
        help="say something about the device, to select it by; may be repeated",
    )
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    run.set_defaults(command=_run)

    status = commands.add_parser(
        "status", parents=[common, output], help="show how the running agent fares"
    )
    status.set_defaults(command=_status)

    doctor = commands.add_parser(
        "doctor", parents=[common, output], help="find what stands in the way, and what mends it"
    )
    doctor.set_defaults(command=_doctor)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from shoal_agent.service.version import agent_version

        print(f"shoal-agent {agent_version()}")
        parser.exit()


def _flags(options: argparse.Namespace) -> dict[str, Any]:
    names = ("device", "fleet", "broker", "server", "state_dir", "log_level")
    flags = {n: v for n in names if (v := getattr(options, n, None)) is not None}
    if getattr(options, "labels", None):
        try:
            flags["labels"] = parse_labels(",".join(options.labels))
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return flags


def _run(config: AgentConfig, _options: argparse.Namespace) -> int:
    from shoal_agent.app import build_agent
    from shoal_agent.service.lock import StateError
    from shoal_agent.service.logs import setup_logging

    setup_logging(config.log_level)

    async def run() -> None:
        agent = build_agent(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        await agent.run()

    try:
        asyncio.run(run())
    except StateError as error:
        return _complain(str(error), 1)
    return 0


def _status(config: AgentConfig, options: argparse.Namespace) -> int:
    from shoal_agent.service.status import StatusError, format_status, read_status

    try:
        status = read_status(config.state_dir)
    except StatusError as error:
        return _complain(str(error), 1)
    print(format_status(status, time.time()) if options.output == "table" else _json(status))
    return 0


def _doctor(config: AgentConfig, options: argparse.Namespace) -> int:
    from shoal_agent.boards.detect import detect
    from shoal_agent.runtimes.registry import RuntimeRegistry
    from shoal_agent.service.doctor import examine, format_findings

    board = detect()
    findings = asyncio.run(examine(config, board, RuntimeRegistry.discover(board.facts)))
    print(format_findings(findings) if options.output == "table" else _json(findings))
    return 1 if any(f.blocks and not f.ok for f in findings) else 0


def _json(value: object) -> str:
    """JSON, which is valid YAML too."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _complain(text: str, code: int) -> int:
    print(f"shoal-agent: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
