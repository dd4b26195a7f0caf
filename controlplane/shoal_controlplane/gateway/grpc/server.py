"""The gRPC endpoint: a grpc.aio server around the servicer."""

from __future__ import annotations

from typing import Final

import grpc

from shoal_controlplane.gateway.grpc.servicer import Servicer
from shoal_controlplane.gateway.service import Gateway

DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024


class GrpcServer:
    """Serves the gateway on one address, in the running event loop.

    `max_bytes` bounds a message in both directions, before and after decompression.
    """

    def __init__(
        self, gateway: Gateway, host: str, port: int, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self._servicer = Servicer(gateway, max_bytes)
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._options = (
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_send_message_length", max_bytes),
            # Messages are inflated by `convert.parse`, within the limit.
            ("grpc.per_message_decompression", 0),
            # A second server on the port is a mistake, not a way to share load.
            ("grpc.so_reuseport", 0),
        )
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listen; returns the port, which matters where it was given as 0. Raises `OSError`."""
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers((self._servicer,))
        try:
            port: int = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"the gRPC endpoint cannot listen on {self._address}: {error}") from None
        await server.start()
        self._server = server
        return port

    async def stop(self, grace: float | None = None) -> None:
        """Take no more calls; those that run get `grace` seconds to end."""
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None
