"""`shoal serve`: the control plane alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    config: Annotated[
        Path | None, typer.Option(help="Settings as a TOML file; SHOAL_* variables override it.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback only.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port.")] = None,
    broker: Annotated[
        str | None, typer.Option(help="'embedded', or HOST:PORT of an MQTT 5 broker.")
    ] = None,
    mqtt_port: Annotated[int | None, typer.Option(help="Port of the embedded broker.")] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder for the database and the artifacts.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the control plane until it is told to stop."""
    from shoal_controlplane.config import load_config
    from shoal_controlplane.logs import configure
    from shoal_controlplane.server import run

    settings = load_config(
        config,
        os.environ,
        host=host,
        port=port,
        grpc_port=grpc_port,
        broker=broker,
        mqtt_port=mqtt_port,
        data_dir=data_dir,
        log_level=log_level,
    )
    configure(settings.log_level)
    run(settings)
