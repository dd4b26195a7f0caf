"""The control plane's session with the broker: MQTT 5 over paho, driven by the event loop.

paho's own network thread is not used. The loop watches the socket, so that a message is handled
and a publication written without a hand-over between threads; only connecting, which blocks,
runs in a thread.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from shoal_shared.publish import Handler, Message, PublishProperties, decode_publish

log = structlog.get_logger("mqtt")

KEEPALIVE_S = 15


class Link(Protocol):
    """What the rest of the control plane asks of MQTT."""

    @property
    def connected(self) -> bool: ...

    def subscribe(self, topic_filter: str, qos: int, handler: Handler) -> None:
        """Deliver matching messages to `handler` on the loop, over all reconnects."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> bool:
        """Send now; False if there is no session, and then nothing is queued."""

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        """Call back with True after each (re)connect and False after each loss."""


class MqttLink:
    """One session, kept up with jittered backoff until `stop`."""

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        *,
        rng: random.Random | None = None,
        max_backoff_s: float = 10.0,
    ) -> None:
        self._address = (host, port)
        self._rng = rng or random.Random()
        self._max_backoff_s = max_backoff_s
        self._subscriptions: list[tuple[str, int, Handler]] = []
        self._exact: dict[str, Handler] = {}
        self._listeners: list[Callable[[bool], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._writing: socket.socket | None = None
        self.connected = False
        self._client = client = _FastClient(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_paho_message
        client.deliver = self._deliver
        client.on_socket_close = self._on_socket_close

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """Say goodbye and close."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._client.disconnect()
        self._flush()
        sock = self._client.socket()
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            sock.close()

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        self._listeners.append(callback)

    def subscribe(self, topic_filter: str, qos: int, handler: Handler) -> None:
        self._subscriptions.append((topic_filter, qos, handler))
        if "+" not in topic_filter and "#" not in topic_filter:
            self._exact[topic_filter] = handler
        if self.connected:
            self._client.subscribe(topic_filter, qos)
            self._flush()

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> bool:
        if not self.connected:
            return False
        # paho only ever calls `pack()` on the properties.
        self._client.publish(topic, payload, qos, retain, properties)  # type: ignore[arg-type]
        self._flush()
        return True

    async def _keep_up(self) -> None:
        attempt = 0
        while True:
            self._lost.clear()
            try:
                await self._loop.run_in_executor(
                    None, lambda: self._client.connect(*self._address, KEEPALIVE_S)
                )
            except (OSError, ValueError) as error:
                if attempt == 0:
                    log.warning("broker unreachable", broker=self._where, error=str(error))
                await asyncio.sleep(
                    self._rng.uniform(0.05, min(self._max_backoff_s, 0.2 * 2**attempt))
                )
                attempt = min(attempt + 1, 16)
                continue
            sock = cast(socket.socket | None, self._client.socket())
            if sock is not None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._loop.add_reader(sock, self._read)
                attempt = 0
                await self._tend()
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))

    async def _tend(self) -> None:
        """Keep-alive until the session is lost."""
        while not self._lost.is_set():
            try:
                await asyncio.wait_for(self._lost.wait(), 1.0)
            except asyncio.TimeoutError:
                self._client.loop_misc()
                self._flush()

    @property
    def _where(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    def _read(self) -> None:
        self._client.loop_read()
        self._flush()

    def _flush(self) -> None:
        """Write what paho has queued; what the socket does not take now is written later."""
        client = self._client
        if not client.want_write():
            return
        client.loop_write()
        sock = cast(socket.socket | None, client.socket())
        if client.want_write() and sock is not None and self._writing is None:
            self._writing = sock
            self._loop.add_writer(sock, self._write)

    def _write(self) -> None:
        self._client.loop_write()
        if not self._client.want_write() and self._writing is not None:
            self._loop.remove_writer(self._writing)
            self._writing = None

    def _on_socket_close(self, _client: Client, _userdata: Any, sock: Any) -> None:
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        self._writing = None

    def _on_connect(
        self,
        client: Client,
        _userdata: Any,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            log.warning("broker refused the session", broker=self._where, reason=str(reason))
            return
        for topic_filter, qos, _ in self._subscriptions:
            client.subscribe(topic_filter, qos)
        self.connected = True
        log.info("connected to the broker", broker=self._where)
        for listener in self._listeners:
            listener(True)

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: Any,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        was, self.connected = self.connected, False
        self._lost.set()
        if was:
            log.warning("lost the broker", broker=self._where, reason=str(reason))
            for listener in self._listeners:
                listener(False)

    def _on_paho_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        """A message of QoS 1: control traffic, whose properties nobody reads."""
        self._deliver(Message(message.topic, bytes(message.payload), message.retain))

    def _deliver(self, message: Message) -> None:
        handler = self._exact.get(message.topic)
        if handler is not None:
            handler(message)
            return
        for topic_filter, _, candidate in self._subscriptions:
            if topic_matches_sub(topic_filter, message.topic):
                candidate(message)
                return


class _FastClient(Client):
    """paho, except that a PUBLISH of QoS 0 is decoded by `shoal_shared.publish`."""

    deliver: Handler

    def _handle_publish(self) -> MQTTErrorCode:
        flags = self._in_packet["command"] & 0x0F
        if flags & 0x06:
            return super()._handle_publish()
        try:
            message = decode_publish(flags, self._in_packet["packet"])
        except ValueError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self.deliver(message)
        return MQTTErrorCode.MQTT_ERR_SUCCESS


_conforms: type[Link] = MqttLink
