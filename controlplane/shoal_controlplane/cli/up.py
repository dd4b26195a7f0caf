"""`shoal up`: everything on one machine, with a simulated fleet and the demo models."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shoal_controlplane.config import ServerConfig
    from shoal_controlplane.server import Server

DEFAULT_FLEET = "jetson-orin-nano=2,ascend-310=1,snapdragon-8gen3=1"


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
) -> None:
    """Start broker, control plane and simulated fleet, and send a real picture through them."""
    import uvloop

    from shoal_controlplane.config import load_config
    from shoal_controlplane.logs import configure

    configure("warning")
    with ExitStack() as stack:
        folder = data_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-"))
        settings = load_config(
            None, {}, port=port, grpc_port=grpc_port, mqtt_port=mqtt_port, data_dir=folder
        )
        status = uvloop.run(_up(settings, fleet, once))
    raise typer.Exit(status)


async def _up(settings: ServerConfig, fleet: str, once: bool) -> int:
    from shoal_controlplane.server import Server

    server = Server(settings)
    await server.start()
    try:
        print(f"control plane at {server.url}", flush=True)
        return await _with_fleet(server, settings, fleet, once)
    finally:
        await server.stop()


async def _with_fleet(server: Server, settings: ServerConfig, fleet: str, once: bool) -> int:
    """Run the simulated fleet beside the server, and the demonstration on both."""
    # The simulator is another room: it is started as a program, and speaks HTTP and MQTT only.
    devices = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal_simulators.fleet", fleet),
        *("--broker", f"127.0.0.1:{server.mqtt_port}", "--server", server.url),
        *("--state-dir", str(settings.folder / "fleet")),
        stdin=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal_simulators.demo.scenario"),
        *("--server", server.url, "--fleet", fleet),
    )
    waits = {
        asyncio.create_task(devices.wait()): "fleet",
        asyncio.create_task(demo.wait()): "demo",
        asyncio.create_task(server.wait()): "server",
    }
    try:
        while waits:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                name = waits.pop(task)
                if name == "demo":
                    if once or demo.returncode:
                        return demo.returncode or 0
                    print(_INVITATION.format(url=server.url, shoal=sys.argv[0]), flush=True)
                elif name == "fleet":
                    return devices.returncode or 1
                else:
                    return 0
        return 0
    finally:
        for task in waits:
            task.cancel()
        for process in (demo, devices):
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
