"""The control plane's session with the broker: MQTT 5 over paho, driven by the event loop.

paho's own network thread is not used. The loop watches the socket, so that a message is handled
and a publication written without a hand-over between threads; only connecting, which blocks,
runs in a thread, and meanwhile the loop does not touch the client.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from shoal_controlplane.mqtt.client import LoopClient
from shoal_shared.publish import Handler, Message, PublishProperties

log = structlog.get_logger("mqtt")

KEEPALIVE_S = 15
MAX_PACKET_BYTES = 64 * 1024 * 1024 + 16 * 1024
"""The broker is told to drop what is larger: a payload of 64 MiB and its properties."""

_MAX_BACKLOG_BYTES = 256 * 1024 * 1024
_READ_BYTES = 64 * 1024
_READ_BURST = 256
_STOP_S = 2.0
_SETTLE_S = 0.5


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
        """Send now; False if there is no session or no room, and then nothing is queued.

        What was sent but not acknowledged when the session is lost is not sent again: who
        publishes state does so when called back with True.
        """

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
        self._connecting: asyncio.Future[str] | None = None
        self._lost = asyncio.Event()
        self._answered = asyncio.Event()
        self._attempts = 0
        self._complained = False
        self._writing: socket.socket | None = None
        self._backlog_bytes = 0
        self.connected = False
        self._client = client = LoopClient(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = lambda *_: self._answered.set()
        client.deliver = self._deliver
        client.on_socket_close = self._on_socket_close

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """Send what was published, say goodbye and close; listeners are not called."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connecting is not None:
            await self._connecting
            self._connecting = None
        if self.connected:
            await self._settle()
            self.connected = False
            self._client.disconnect()
            self._flush()
            # paho closes once the goodbye is written; a broker that does not read is left.
            try:
                async with asyncio.timeout(_STOP_S):
                    await self._lost.wait()
            except TimeoutError:
                log.warning("left the broker without a goodbye", broker=self._where)
        self._client.abort()

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
        if self._backlog_bytes and self._backlog_bytes + len(payload) > _MAX_BACKLOG_BYTES:
            log.warning("dropped a message: the broker reads too slowly", topic=topic)
            return False
        if properties is not None and qos == 0 and not retain:
            self._client.publish_now(topic, payload, properties)
        else:
            # paho only ever calls `pack()` on the properties.
            self._client.publish(topic, payload, qos, retain, properties)  # type: ignore[arg-type]
        if self._client.want_write():
            # From within a callback of paho, or more than the socket takes.
            self._flush()
        if self._client.want_write():
            self._backlog_bytes += len(payload)
        # The write may have shown that the session is lost.
        return self.connected

    async def _settle(self) -> None:
        """Wait until the broker has taken what was published: it answers in order.

        A broker that finds a goodbye right behind a message may drop the message.
        """
        self._answered.clear()
        self._client.subscribe("nothing", 0)
        self._flush()
        try:
            async with asyncio.timeout(_SETTLE_S):
                await self._answered.wait()
        except TimeoutError:
            log.warning("left the broker while it was busy", broker=self._where)

    async def _keep_up(self) -> None:
        while True:
            self._lost.clear()
            if await self._connect():
                await self._tend()
            longest = min(self._max_backoff_s, 0.2 * 2**self._attempts)
            self._attempts = min(self._attempts + 1, 16)
            await asyncio.sleep(self._rng.uniform(0.05, longest))

    async def _connect(self) -> bool:
        """Open a connection and have the loop watch it; False if the broker is not there."""
        client = self._client
        # Documents not yet acknowledged are old news: sent again they would come after newer ones.
        client.drop_out_messages()
        client.on_gathered = None
        self._backlog_bytes = 0
        # Where the wait is cancelled, `stop` waits for the thread and closes the socket.
        self._connecting = self._loop.run_in_executor(None, self._connect_blocking)
        error = await asyncio.shield(self._connecting)
        self._connecting = None
        sock = cast("socket.socket | None", client.socket())
        if error or sock is None:
            self._complain("broker unreachable", error or "it closed the connection at once")
            return False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.add_reader(sock, self._read)
        client.on_gathered = self._flush_soon
        return True

    def _connect_blocking(self) -> str:
        """Connect and send the CONNECT packet; the error in words, empty if there is none."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        host, port = self._address
        try:
            self._client.connect(host, port, KEEPALIVE_S, clean_start=True, properties=properties)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    async def _tend(self) -> None:
        """Keep-alive until the session is lost; also ends a connection without a session."""
        while not self._lost.is_set():
            try:
                # Not `wait_for`: up to Python 3.11 it can swallow the cancellation by `stop`.
                async with asyncio.timeout(1.0):
                    await self._lost.wait()
            except TimeoutError:
                self._client.loop_misc()
                self._flush()

    @property
    def _where(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    def _complain(self, what: str, error: str) -> None:
        """Log a failure to connect, but only the first in a row."""
        if not self._complained:
            log.warning(what, broker=self._where, error=error)
        self._complained = True

    def _read(self) -> None:
        client = self._client
        try:
            if client.read_burst(_READ_BURST):
                # Others get a turn; the socket need not be ready for what is buffered.
                self._loop.call_soon(self._read)
        except Exception:
            # paho raises what it does not expect in a packet, and would see it again for ever.
            log.exception("the broker sent a packet that cannot be read", broker=self._where)
            client.abort()
            return
        self._flush()

    def _flush_soon(self) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what paho has queued; what the socket does not take now is written later."""
        client = self._client
        if client.want_write():
            client.loop_write()
        client.send_gathered()
        sock = cast("socket.socket | None", client.socket())
        if client.has_unsent and sock is not None and self._writing is None:
            self._writing = sock
            self._loop.add_writer(sock, self._write)

    def _write(self) -> None:
        self._flush()
        if not self._client.has_unsent:
            self._backlog_bytes = 0
            if self._writing is not None:
                self._loop.remove_writer(self._writing)
                self._writing = None

    def _on_socket_close(self, _client: Client, _userdata: Any, sock: Any) -> None:
        if self._connecting is not None and not self._connecting.done():
            return  # In the connecting thread, and the loop does not watch this socket yet.
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
            self._complain("broker refused the session", str(reason))
            return
        self._attempts = 0
        self._complained = False
        for topic_filter, qos, _ in self._subscriptions:
            client.subscribe(topic_filter, qos)
        self.connected = True
        log.info("connected to the broker", broker=self._where)
        # Not from within paho's callback: it holds a lock that a failing write needs, too.
        self._loop.call_soon(self._announce)

    def _announce(self) -> None:
        if self.connected:
            self._notify(True)

    def _notify(self, connected: bool) -> None:
        for listener in self._listeners:
            try:
                listener(connected)
            except Exception:
                # It must not keep the others, and the next session, from coming.
                log.exception("connection listener failed")

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: Any,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self._connecting is not None and not self._connecting.done():
            return  # In the connecting thread; `_connect` sees that there is no socket.
        was, self.connected = self.connected, False
        self._lost.set()
        if was:
            log.warning("lost the broker", broker=self._where, reason=str(reason))
            self._notify(False)

    def _deliver(self, message: Message) -> None:
        handler = self._handler(message.topic)
        if handler is None:
            return
        try:
            handler(message)
        except Exception:
            # One message must not end the session: retained, it would come again and again.
            log.exception("message handler failed", topic=message.topic[:200])

    def _handler(self, topic: str) -> Handler | None:
        handler = self._exact.get(topic)
        if handler is not None:
            return handler
        for topic_filter, _, candidate in self._subscriptions:
            if topic_matches_sub(topic_filter, topic):
                return candidate
        return None


_conforms: type[Link] = MqttLink
