"""`shoal up`: everything on one machine, with a simulated fleet and the demo models."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal_controlplane.cli.errors import CliError

if TYPE_CHECKING:
    from shoal_controlplane.config import ServerConfig
    from shoal_controlplane.server import Server

DEFAULT_FLEET = "jetson-orin-nano=2,ascend-310=1,snapdragon-8gen3=1"
OVERLOADED_SPEED = 0.0015
"""Of boards that are to be overloaded: they compute on this machine, and must leave it the time to
send them twice what they can answer, and to be the cloud that answers the rest."""


DEFAULT_KSERVE = Path(".venv-kserve/bin/python")


@dataclass(frozen=True, slots=True)
class Demo:
    """What is shown. `kserve_python` is set where the fleet is to be overloaded."""

    fleet: str
    once: bool
    kserve_python: Path | None

    @property
    def speed(self) -> float:
        """Of the boards, as a part of what they have."""
        return 1.0 if self.kserve_python is None else OVERLOADED_SPEED

    @property
    def scenario(self) -> list[str]:
        """The module that shows it, with its options."""
        if self.kserve_python is None:
            return ["shoal_simulators.demo.scenario"]
        return ["shoal_simulators.demo.overload", "--kserve-python", str(self.kserve_python)]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("up")(up)


def up(
    fleet: Annotated[
        str, typer.Option(help="BOARD=COUNT,… or a TOML file with [[device]] tables.")
    ] = DEFAULT_FLEET,
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="gRPC port.")] = 8081,
    mqtt_port: Annotated[int, typer.Option(help="Port of the embedded broker.")] = 1883,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder that is kept; without it all is forgotten.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print the answers and stop; 0 only if they are right.")
    ] = False,
    overload: Annotated[
        bool,
        typer.Option(
            "--overload",
            help="Slow boards, twice the requests that they can answer, and KServe for the rest.",
        ),
    ] = False,
    kserve_python: Annotated[
        Path,
        typer.Option(
            help="With --overload: Python in which KServe's server and ONNX Runtime are installed."
        ),
    ] = DEFAULT_KSERVE,
) -> None:
    """Start broker, control plane and simulated fleet, and send a real picture through them."""
    demo = Demo(fleet, once, None)
    if overload:
        if not kserve_python.is_file():
            raise CliError(
                f"there is no {kserve_python}: `make demo ARGS=--overload` installs KServe, or "
                "name a Python that has it with --kserve-python"
            )
        demo = Demo(fleet, once, kserve_python.absolute())
    import uvloop

    from shoal_controlplane.config import load_config
    from shoal_controlplane.logs import configure

    configure("warning")
    with ExitStack() as stack:
        folder = data_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-"))
        settings = load_config(
            None, {}, port=port, grpc_port=grpc_port, mqtt_port=mqtt_port, data_dir=folder
        )
        status = uvloop.run(_up(settings, demo))
    raise typer.Exit(status)


async def _up(settings: ServerConfig, demo: Demo) -> int:
    from shoal_controlplane.server import Server

    server = Server(settings)
    await server.start()
    try:
        print(f"control plane at {server.url}", flush=True)
        return await _with_fleet(server, settings, demo)
    finally:
        await server.stop()


async def _with_fleet(server: Server, settings: ServerConfig, demo: Demo) -> int:
    """Run the simulated fleet beside the server, and the demonstration on both."""
    # The simulator is another room: it is started as a program, and speaks HTTP and MQTT only.
    devices = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal_simulators.fleet", demo.fleet, "--speed", f"{demo.speed}"),
        *("--broker", f"127.0.0.1:{server.mqtt_port}", "--server", server.url),
        *("--state-dir", str(settings.folder / "fleet")),
        stdin=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    scenario = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *demo.scenario),
        *("--server", server.url, "--fleet", demo.fleet),
    )
    waits = {
        asyncio.create_task(devices.wait()): "fleet",
        asyncio.create_task(scenario.wait()): "scenario",
        asyncio.create_task(server.wait()): "server",
    }
    try:
        while waits:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                name = waits.pop(task)
                if name == "scenario":
                    if demo.once or scenario.returncode:
                        return scenario.returncode or 0
                    print(_INVITATION.format(url=server.url, shoal=sys.argv[0]), flush=True)
                elif name == "fleet":
                    return devices.returncode or 1
                else:
                    return 0
        return 0
    finally:
        for task in waits:
            task.cancel()
        await _end(scenario)
        if demo.kserve_python is not None:
            # Servers of a target outlive the control plane, as they should; these are for show.
            goodbye = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *demo.scenario, "--leave", "--server", server.url),
                stderr=asyncio.subprocess.DEVNULL,
            )
            await goodbye.wait()
        await _end(devices)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        await process.wait()


_INVITATION = """\
Running until Ctrl-C.
  dashboard  {url}/
  API        {url}/docs
  metrics    {url}/metrics
Try: {shoal} infer efficientnet-lite0 --image YOUR.jpg
     {shoal} deployment create ppocr-rec --shards auto"""
