"""The device's side of the topics: presence, documents, goals and inference requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from shoal_agent.connectivity.exchange import Exchange
from shoal_agent.connectivity.transport import Transport
from shoal_agent.identity.device import Identity
from shoal_agent.service.logs import fields
from shoal_shared.clock import Clock
from shoal_shared.messages import (
    Capabilities,
    Desired,
    Document,
    MessageError,
    Reported,
    Status,
    Telemetry,
    decode_document,
    encode_document,
)
from shoal_shared.oip import HEADER_LENGTH
from shoal_shared.publish import CANCEL, Message
from shoal_shared.status import Presence
from shoal_shared.tensors import Buffer
from shoal_shared.topics import DeviceTopic, Topics

log = logging.getLogger("session")

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024

Reply = Callable[[list[Buffer], "int | None"], None]
Key = tuple[str, bytes]
Infer = Callable[[bytes, "int | None", "float | None", Reply, "Key | None"], None]
ExchangeHandler = Callable[[Exchange], None]


class DeviceSession:
    """Speaks the topics of one device over a transport.

    `on_desired` receives every readable goal document, `infer` every request as
    `InferenceService.handle` takes it, and `cancel` the response topic and correlation data of
    each that nobody waits for any more; `on_connection` is called with True after each
    (re)connect, to publish the present state, and with False after each loss.
    """

    def __init__(
        self,
        transport: Transport,
        fleet: str,
        identity: Identity,
        *,
        on_desired: Callable[[Desired], None],
        infer: Infer,
        cancel: Callable[[Key], None],
        on_connection: Callable[[bool], None],
        clock: Clock,
    ) -> None:
        self._transport = transport
        self._topics = Topics(fleet)
        self._identity = identity
        self._on_desired = on_desired
        self._infer = infer
        self._cancel = cancel
        self._on_connection = on_connection
        self._clock = clock
        transport.set_will(self._topic(DeviceTopic.STATUS), self._status(Presence.OFFLINE))
        transport.subscribe(self._topic(DeviceTopic.DESIRED), 1, self._handle_desired)
        transport.subscribe(self._topic(DeviceTopic.INFER), 0, self._handle_infer)
        transport.on_connection(self._handle_connection)

    @property
    def connected(self) -> bool:
        return self._transport.connected

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        await self._transport.start()

    def say_offline(self) -> None:
        """Tell the fleet to send no more requests."""
        self._transport.publish(
            self._topic(DeviceTopic.STATUS), self._status(Presence.OFFLINE), qos=1, retain=True
        )

    async def stop(self) -> None:
        """Disconnect; what was published before still goes out."""
        await self._transport.stop()

    def listen(self, topic: str, handler: ExchangeHandler) -> None:
        """Hand requests on one more topic of the fleet to `handler`."""
        self._transport.subscribe(topic, 0, partial(self._handle_request, handler))

    def leave(self, topic: str) -> None:
        """Hand on nothing more of a topic."""
        self._transport.unsubscribe(topic)

    def publish_capabilities(self, document: Capabilities) -> bool:
        return self._publish(DeviceTopic.CAPABILITIES, document, qos=1, retain=True)

    def publish_reported(self, document: Reported) -> bool:
        return self._publish(DeviceTopic.REPORTED, document, qos=1, retain=True)

    def publish_telemetry(self, document: Telemetry) -> bool:
        return self._publish(DeviceTopic.TELEMETRY, document, qos=0, retain=False)

    def _publish(self, topic: DeviceTopic, document: Document, *, qos: int, retain: bool) -> bool:
        """False if there is no session; state is published again when there is one."""
        try:
            payload = encode_document(document)
        except MessageError as error:
            log.error("document not published", extra=fields(topic=topic.value, error=error))
            return False
        return self._transport.publish(self._topic(topic), payload, qos=qos, retain=retain)

    def _handle_connection(self, connected: bool) -> None:
        if connected:
            self._transport.publish(
                self._topic(DeviceTopic.STATUS), self._status(Presence.ONLINE), qos=1, retain=True
            )
        self._on_connection(connected)

    def _handle_desired(self, message: Message) -> None:
        if not message.payload:
            return  # The broker says that the retained document was cleared.
        try:
            desired = decode_document(Desired, message.payload)
        except MessageError as error:
            log.warning("ignored a goal document", extra=fields(reason=error))
            return
        self._on_desired(desired)

    def _handle_infer(self, message: Message) -> None:
        if CANCEL in message.user_properties:
            # Whatever it names, nothing is answered to it.
            if message.response_topic and message.correlation and not message.retain:
                self._cancel((message.response_topic, message.correlation))
            return
        exchange = self._exchange(message)
        if exchange is not None:
            self._infer(
                exchange.payload,
                exchange.header_length,
                exchange.expires_at,
                exchange.reply,
                exchange.key,
            )

    def _handle_request(self, handler: ExchangeHandler, message: Message) -> None:
        exchange = self._exchange(message)
        if exchange is not None:
            handler(exchange)

    def _exchange(self, message: Message) -> Exchange | None:
        """A request that may be answered; None, and a line, for one that may not."""
        topic, payload = message.response_topic, message.payload
        if message.retain:
            _ignore(reason="it is retained")
        elif topic is None or not self._topics.is_reply_topic(topic):
            _ignore(reason="no valid response topic", response_topic=topic)
        elif len(payload) > MAX_PAYLOAD_BYTES:
            _ignore(reason="larger than the limit", bytes=len(payload))
        else:
            length = message.user_properties.get(HEADER_LENGTH)
            header_length = None
            if length is not None:
                # A length that is no number is one that no body has: the service says so.
                number = length.isascii() and length.isdigit() and len(length) < 12
                header_length = int(length) if number else -1
            expires_at = None if message.expiry_s is None else self._clock() + message.expiry_s
            return Exchange(
                self._transport, payload, header_length, expires_at, topic, message.correlation
            )
        return None

    def _topic(self, topic: DeviceTopic) -> str:
        return self._topics.device(self._identity.device, topic)

    def _status(self, presence: Presence) -> bytes:
        return encode_document(Status(state=presence, boot_id=self._identity.boot_id))


def _ignore(**why: object) -> None:
    log.warning("ignored an inference request", extra=fields(**why))
