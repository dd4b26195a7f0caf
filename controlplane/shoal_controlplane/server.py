"""The control plane as a running process: broker, link, HTTP and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import sys
from collections.abc import Iterator

import structlog
import uvicorn
import uvloop

from shoal_controlplane.app import ControlPlane, build
from shoal_controlplane.config import ServerConfig
from shoal_controlplane.database import Database
from shoal_controlplane.gateway.grpc.server import GrpcServer
from shoal_controlplane.migrations import MigrationError, migrate
from shoal_controlplane.mqtt.broker import BrokerError, EmbeddedBroker, is_loopback
from shoal_controlplane.mqtt.link import MqttLink
from shoal_controlplane.protocol import CorkedProtocol

log = structlog.get_logger("server")

STOP_S = 3


class ServerError(Exception):
    """The control plane cannot run; the text is one plain sentence with what to do."""


class Server:
    """Starts everything in order, and stops it the other way round."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._stopping = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self.port = config.port
        self.grpc_port = config.grpc_port
        self.mqtt_port = config.mqtt_port

    @property
    def url(self) -> str:
        return f"http://{_bracketed(self._config.host)}:{self.port}"

    async def start(self) -> None:
        """Start, and return when requests are answered. Raises `ServerError`."""
        config = self._config
        if not is_loopback(config.host):
            raise ServerError(
                f"there is no authentication yet, so the control plane listens on loopback only, "
                f"not on {config.host}: put an authenticating proxy in front of it"
            )
        try:
            await self._start()
        except (BrokerError, MigrationError) as error:
            await self.stop()
            raise ServerError(str(error)) from None
        except OSError as error:
            await self.stop()
            raise ServerError(str(error)) from None
        except BaseException:
            await self.stop()
            raise
        log.info("serving", http=self.url, grpc_port=self.grpc_port)

    async def _start(self) -> None:
        config, stack = self._config, self._stack
        listener = _listen(config.host, config.port)
        stack.callback(listener.close)
        self.port = listener.getsockname()[1]
        try:
            config.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServerError(
                f"the data folder {config.folder} cannot be used ({error.strerror}): name another "
                "with --data-dir"
            ) from None
        database = Database(config.database_url)
        stack.callback(database.close)
        await asyncio.to_thread(migrate, database.engine)

        address = config.broker_address
        if address is None:
            broker = EmbeddedBroker(port=config.mqtt_port)
            await broker.start()
            stack.push_async_callback(broker.stop)
            address = (broker.host, broker.port)
            self.mqtt_port = broker.port

        # A name of its own for every process, so that replies never reach an earlier one.
        gateway_id = f"gateway-{secrets.token_hex(4)}"
        link = MqttLink(*address, client_id=f"{config.fleet}-{gateway_id}")
        url = config.url or self.url
        plane = build(config, database, link, gateway_id=gateway_id, url=url)
        await plane.start()
        stack.push_async_callback(plane.stop)
        await link.start()
        stack.push_async_callback(link.stop)
        await self._serve(plane, listener)

    async def _serve(self, plane: ControlPlane, listener: socket.socket) -> None:
        config = self._config
        grpc = GrpcServer(plane.gateway, config.host, config.grpc_port, config.max_body_bytes)
        self.grpc_port = await grpc.start()
        self._stack.push_async_callback(grpc.stop, 1.0)
        http = _HttpServer(
            uvicorn.Config(
                plane.app,
                http=CorkedProtocol,
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_S,
                # Bodies are limited by the applications; idle connections cost little.
                timeout_keep_alive=75,
            )
        )
        task = asyncio.create_task(http.serve(sockets=[listener]))

        async def stop() -> None:
            # Open event streams would keep the server waiting.
            plane.events.close_subscriptions()
            http.should_exit = True
            await task

        self._stack.push_async_callback(stop)
        while not http.started:
            if task.done():
                raise ServerError("the HTTP server could not start: its log says why")
            await asyncio.sleep(0.01)

    async def wait(self) -> None:
        """Wait for SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        await self._stopping.wait()

    async def stop(self) -> None:
        await self._stack.aclose()


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handling, which would take the signals of the whole process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(config: ServerConfig) -> None:
    """Run the control plane until a signal. Raises `ServerError`."""

    async def serve() -> None:
        server = Server(config)
        await server.start()
        print(f"control plane at {server.url}", file=sys.stderr, flush=True)
        try:
            await server.wait()
        finally:
            await server.stop()

    uvloop.run(serve())


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServerError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop what uses the port or choose "
            "another with --port"
        ) from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
