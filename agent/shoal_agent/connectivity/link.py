"""The session with the broker: MQTT 5 over paho, driven by the event loop.

paho's own network thread is not used. The loop watches the socket, so that a message is handled
and a publication written without a hand-over between threads; only connecting, which blocks,
runs in a thread, and meanwhile the loop does not touch the client.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from typing import Any, cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from shoal_agent.connectivity.backoff import Backoff
from shoal_agent.connectivity.client import LoopClient
from shoal_agent.connectivity.transport import Transport
from shoal_agent.service.logs import fields
from shoal_shared.clock import Clock
from shoal_shared.publish import Handler, Message, PublishProperties

log = logging.getLogger("link")

KEEPALIVE_S = 15
MAX_PACKET_BYTES = 64 * 1024 * 1024 + 16 * 1024
"""The broker is told to drop what is larger: a payload of 64 MiB and its properties."""

_MAX_BACKLOG_BYTES = 64 * 1024 * 1024
_STABLE_S = 10.0
_TICK_S = 1.0
_STOP_S = 2.0
_READ_BURST = 64
_SETTLE_S = 0.5
_READ_BYTES = 64 * 1024
_SESSION_TAKEN_OVER = 0x8E


class MqttLink:
    """One session, kept up with jittered backoff until `stop`."""

    def __init__(
        self, host: str, port: int, client_id: str, *, rng: random.Random, clock: Clock
    ) -> None:
        self._address = (host, port)
        self._clock = clock
        self._backoff = Backoff(rng, base_s=0.5, cap_s=30.0)
        self._subscriptions: dict[str, tuple[int, Handler]] = {}
        self._listeners: list[Callable[[bool], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._connecting: asyncio.Future[str] | None = None
        self._lost = asyncio.Event()
        self._answered = asyncio.Event()
        self._last_question: int | None = None
        self._complained = False
        self._writing: socket.socket | None = None
        self._backlog_bytes = 0
        self.connected = False
        self._client = client = LoopClient(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.deliver = self._deliver
        client.on_socket_open = _set_no_delay
        client.on_socket_close = self._on_socket_close

    def set_will(self, topic: str, payload: bytes) -> None:
        self._client.will_set(topic, payload, qos=1, retain=True)

    def subscribe(self, topic: str, qos: int, handler: Handler) -> None:
        known = self._subscriptions.get(topic)
        self._subscriptions[topic] = (qos, handler)
        if self.connected and (known is None or known[0] != qos):
            self._client.subscribe(topic, qos)
            self._flush()

    def unsubscribe(self, topic: str) -> None:
        if self._subscriptions.pop(topic, None) is not None and self.connected:
            self._client.unsubscribe(topic)
            self._flush()

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        self._listeners.append(callback)

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
            log.warning("dropped a message: the broker reads too slowly", extra=fields(topic=topic))
            return False
        if properties is not None and qos == 0 and not retain:
            self._client.publish_now(topic, payload, properties)
        else:
            # paho only ever calls `pack()` on the properties.
            self._client.publish(topic, payload, qos, retain, cast(Any, properties))
        if self._client.want_write():
            # From within a callback of paho, or more than the socket takes.
            self._flush()
        if self._client.want_write():
            self._backlog_bytes += len(payload)
        # The write may have shown that the session is lost.
        return self.connected

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
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
                await asyncio.wait_for(self._lost.wait(), _STOP_S)
            except asyncio.TimeoutError:
                log.warning("left without a goodbye", extra=fields(broker=self._where))
        self._client.abort()

    async def _settle(self) -> None:
        """Wait until the broker has taken what was published: it answers in order.

        A broker that finds a goodbye right behind a message may drop the message.
        """
        self._answered.clear()
        _, self._last_question = self._client.subscribe("nothing", 0)
        self._flush()
        try:
            await asyncio.wait_for(self._answered.wait(), _SETTLE_S)
        except asyncio.TimeoutError:
            log.warning("left while the broker was busy", extra=fields(broker=self._where))

    async def _keep_up(self) -> None:
        while True:
            self._lost.clear()
            if await self._connect():
                began = self._clock()
                await self._tend()
                if self._clock() - began >= _STABLE_S:
                    self._backoff.reset()
            await asyncio.sleep(self._backoff.next())

    async def _connect(self) -> bool:
        """Open a connection and have the loop watch it; False if the broker is not there."""
        client = self._client
        # Documents not yet acknowledged are old news: listeners publish the present state.
        client.drop_out_messages()
        client.on_gathered = None
        self._backlog_bytes = 0
        # Where the wait is cancelled, `stop` waits for the thread and closes the socket.
        self._connecting = self._loop.run_in_executor(None, self._connect_blocking)
        error = await asyncio.shield(self._connecting)
        self._connecting = None
        if error:
            self._complain("broker unreachable", error)
            return False
        sock = cast("socket.socket | None", client.socket())
        if sock is None:
            self._complain("broker unreachable", "it closed the connection at once")
            return False
        self._loop.add_reader(sock, self._read)
        client.on_gathered = self._flush_soon
        return True

    def _connect_blocking(self) -> str:
        """Connect and send the CONNECT packet; the error in words, empty if there is none."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        host, port = self._address
        # With a clean start and no session expiry the broker keeps nothing for us: state is
        # converged from retained documents, and late requests are of no use.
        try:
            self._client.connect(host, port, KEEPALIVE_S, clean_start=True, properties=properties)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    async def _tend(self) -> None:
        """Keep-alive until the session is lost; also ends a connection without a session."""
        # Not `wait_for`, which before Python 3.12 may lose a cancellation to the event.
        self._tick()
        try:
            await self._lost.wait()
        finally:
            self._ticking.cancel()

    def _tick(self) -> None:
        self._client.loop_misc()
        self._flush()
        self._ticking = self._loop.call_later(_TICK_S, self._tick)

    def _read(self) -> None:
        client = self._client
        try:
            if client.read_burst(_READ_BURST):
                # Others get a turn; the socket need not be ready for what is buffered.
                self._loop.call_soon(self._read)
        except Exception as error:
            # paho raises what it does not expect in a packet, and would see it again for ever.
            log.warning("broker sent a packet that cannot be read", extra=fields(error=error))
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

    def _complain(self, what: str, error: str) -> None:
        """Log a failure to connect, but only the first in a row."""
        level = logging.DEBUG if self._complained else logging.WARNING
        self._complained = True
        log.log(level, what, extra=fields(broker=self._where, error=error))

    @property
    def _where(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    def _on_socket_close(self, _client: Client, _userdata: Any, sock: Any) -> None:
        if self._connecting is not None:
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
        self._complained = False
        for topic, (qos, _) in self._subscriptions.items():
            client.subscribe(topic, qos)
        self.connected = True
        log.info("connected to the broker", extra=fields(broker=self._where))
        # Not from within paho's callback: it holds a lock that a failing write needs, too.
        self._loop.call_soon(self._announce)

    def _announce(self) -> None:
        if self.connected:
            for listener in self._listeners:
                listener(True)

    def _on_subscribe(self, _client: Client, _userdata: Any, message_id: int, *_: Any) -> None:
        if message_id == self._last_question:
            self._answered.set()

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: Any,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self._connecting is not None:
            return  # In the connecting thread; `_connect` sees that there is no socket.
        was, self.connected = self.connected, False
        self._lost.set()
        if was:
            log.warning("session ended", extra=fields(broker=self._where, reason=reason))
            if reason.value == _SESSION_TAKEN_OVER:
                log.error("another agent connects under this device's name")
            for listener in self._listeners:
                listener(False)

    def _deliver(self, message: Message) -> None:
        subscription = self._subscriptions.get(message.topic)
        if subscription is None:
            return
        try:
            subscription[1](message)
        except Exception:
            # One message must not end the session: it would come again after each reconnect.
            log.exception("message handler failed", extra=fields(topic=message.topic))


def _set_no_delay(_client: Client, _userdata: Any, sock: Any) -> None:
    """Small packets go out at once; the system would hold them back for 40 ms."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


_conforms: type[Transport] = MqttLink
