"""MQTT brokers for benchmarks: Mosquitto where it is installed."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from shoal_bench.processes import Service, free_port

_START_S = 10.0


def mosquitto() -> str | None:
    """Where Mosquitto is installed; system folders count although they are not in every PATH."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def start_mosquitto(program: str, folder: Path, log: Path) -> tuple[Service, int]:
    """Start it on a free port of loopback, with its configuration below `folder`.

    Raises `NotStartedError`.
    """
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n")
    service = Service([program, "-c", str(config)], log)
    try:
        service.wait_until(lambda: _listens(port), _START_S)
    except BaseException:
        service.stop()
        raise
    return service, port


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0
