"""paho's client for an event loop: fewer system calls, and a short way for PUBLISH of QoS 0.

paho reads the first bytes of each packet one by one, takes one packet for each time that the
socket is ready, and sends each packet by itself. Here a read takes what there is, and what is
published within one turn of the loop goes out together. Messages of QoS 0, the data path, are
encoded and decoded by `shoal_shared.publish`; all else is paho's. The methods overridden are
paho's own choke points for its socket and for PUBLISH packets, stable since version 1; paho is
bounded below 3, and the tests of the link run against real brokers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import MalformedPacket  # type: ignore[attr-defined]

from shoal_shared.publish import (
    Handler,
    Message,
    PublishProperties,
    decode_publish,
    encode_publish,
    first_publish,
)

_READ_BYTES = 64 * 1024
_GATHER_BYTES = 64 * 1024


class LoopClient(Client):
    """`deliver` gets every message; `buffered` is what was read and not yet taken.

    Once `on_gathered` is set, small writes are gathered and it is called for the first of them:
    whoever sets it calls `send_gathered` soon after.
    """

    deliver: Handler
    on_gathered: Callable[[], None] | None = None
    buffered = memoryview(b"")

    def __init__(self, *arguments: object, **options: object) -> None:
        self._gathered = bytearray()
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits to be written."""
        return bool(self._gathered) or self.want_write()

    def abort(self) -> None:
        """Close the connection, if there is one, and call back."""
        if self.socket() is not None:
            self._gathered.clear()
            self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_PROTOCOL)

    def reconnect(self) -> MQTTErrorCode:
        self.buffered = memoryview(b"")
        self._gathered.clear()
        return super().reconnect()

    def publish_now(self, topic: str, payload: bytes, properties: PublishProperties) -> None:
        """Publish at QoS 0, not retained, ahead of nothing that was published before."""
        if self.on_gathered is None or self.want_write() or len(payload) > _GATHER_BYTES // 2:
            # paho only ever calls `pack()` on the properties.
            self.publish(topic, payload, 0, False, properties)  # type: ignore[arg-type]
        else:
            self._sock_send(encode_publish(topic, payload, properties))

    def read_burst(self, limit: int) -> bool:
        """Handle what the socket has, `limit` packets at most; True if some are left over."""
        for _ in range(limit):
            if self._in_packet["command"]:
                self.loop_read()  # The rest of a packet that paho has begun.
            elif not self.buffered and not self._fill():
                return False
            elif (span := first_publish(self.buffered)) is not None:
                packet, self.buffered = self.buffered[: span[1]], self.buffered[span[1] :]
                self._take(packet[0] & 0x0F, packet[span[0] :])
            else:
                self.loop_read()
            if not self.buffered or self.socket() is None:
                return False
        return True

    def _fill(self) -> bool:
        """Read what there is; False if there is nothing, or the connection is gone."""
        try:
            self.buffered = memoryview(super()._sock_recv(_READ_BYTES))
        except BlockingIOError:
            return False
        except OSError:
            self.buffered = memoryview(b"")
        if not self.buffered:
            self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        return bool(self.buffered)

    def _take(self, flags: int, packet: bytes | bytearray | memoryview) -> None:
        """Deliver a PUBLISH of QoS 0."""
        try:
            message = decode_publish(flags, packet)
        except ValueError as error:
            raise MalformedPacket(str(error)) from None
        self.deliver(message)

    def send_gathered(self) -> None:
        """Write what was gathered, as far as the socket takes it.

        A broken connection is closed, with the callbacks that paho makes for it.
        """
        try:
            while self._gathered:
                sent = super()._sock_send(self._gathered)
                del self._gathered[:sent]
        except BlockingIOError:
            return
        except OSError:
            self.abort()

    def _sock_send(self, buf: bytes | bytearray) -> int:
        if self.on_gathered is None:
            return super()._sock_send(buf)
        if self._gathered and len(self._gathered) + len(buf) > _GATHER_BYTES:
            self.send_gathered()
            if self._gathered:
                raise BlockingIOError
        if len(buf) > _GATHER_BYTES:
            return super()._sock_send(buf)
        if not self._gathered:
            self.on_gathered()
        self._gathered += buf
        return len(buf)

    def _sock_close(self) -> None:
        # paho closes as soon as its DISCONNECT is written.
        if self._gathered and self._sock is not None:
            try:
                super()._sock_send(self._gathered)
            except OSError:
                pass  # It goes the way of the connection.
            self._gathered.clear()
        super()._sock_close()

    def _sock_recv(self, bufsize: int) -> bytes:
        if not self.buffered:
            if bufsize >= _READ_BYTES:
                return super()._sock_recv(bufsize)
            self.buffered = memoryview(super()._sock_recv(_READ_BYTES))
        head, self.buffered = self.buffered[:bufsize], self.buffered[bufsize:]
        return cast(bytes, head)

    def _handle_publish(self) -> MQTTErrorCode:
        flags = self._in_packet["command"] & 0x0F
        if flags & 0x06:
            return super()._handle_publish()
        self._take(flags, self._in_packet["packet"])
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_on_message(self, message: MQTTMessage) -> None:
        """A message of QoS 1: control traffic, whose properties nobody reads."""
        self.deliver(Message(message.topic, bytes(message.payload), message.retain))
