"""The embedded broker: rumqttd in a child process, on loopback only, for one machine."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import tempfile
from pathlib import Path

import structlog
from iotcore import Broker

log = structlog.get_logger("mqtt")

WATCH_S = 0.5
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024

# Segments bound the broker's memory per topic: it keeps a log of what passed.
_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 10000
max_outgoing_packet_count = 200
max_segment_size = 8388608
max_segment_count = 4

[v5.1]
name = "shoal"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {max_payload}
max_inflight_count = 200
"""


class BrokerError(Exception):
    """The embedded broker cannot run; the text is one plain sentence."""


class EmbeddedBroker:
    """Starts and stops the broker. It has no authentication, so it serves loopback only."""

    def __init__(self, host: str = "127.0.0.1", port: int = 1883) -> None:
        # It knows addresses only, and of those of version 6 none that it can check.
        host = "127.0.0.1" if host == "localhost" else host
        if not is_loopback(host) or ":" in host:
            raise BrokerError(
                "the embedded broker has no authentication, so it listens on IPv4 loopback only, "
                f"not on {host}: run Mosquitto for a fleet and name it with SHOAL_BROKER"
            )
        self.host = host
        self.port = port or free_port(host)
        self._folder = tempfile.TemporaryDirectory(prefix="shoal-broker-")
        config = Path(self._folder.name) / "broker.toml"
        config.write_text(_CONFIG.format(host=host, port=self.port, max_payload=MAX_PAYLOAD_BYTES))
        self._broker = Broker(config_path=str(config))
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start and wait until it listens. Raises `BrokerError` if the port is taken."""
        try:
            await asyncio.to_thread(self._broker.start)
        except (OSError, RuntimeError) as error:
            raise BrokerError(
                f"the embedded broker cannot listen on {self.host}:{self.port} ({error}): stop "
                "what uses the port or choose another with --mqtt-port"
            ) from None
        self._watch = asyncio.create_task(self._keep_alive())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.to_thread(self._broker.stop)
        self._folder.cleanup()

    async def _keep_alive(self) -> None:
        """Start the broker anew when its process has died; links reconnect by themselves."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._broker.is_running:
                continue
            log.error("the embedded broker died and is started anew", port=self.port)
            try:
                await asyncio.to_thread(self._restart)
            except (OSError, RuntimeError) as error:
                log.error("the embedded broker does not start", error=str(error))

    def _restart(self) -> None:
        self._broker.stop()
        self._broker.start()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
