"""The device's side of the topics: presence, documents, goals and inference requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

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
from shoal_shared.publish import Message, PublishProperties, correlation_data, user_property
from shoal_shared.status import Presence
from shoal_shared.tensors import Buffer
from shoal_shared.topics import DeviceTopic, Topics

log = logging.getLogger("session")

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024

Reply = Callable[[list[Buffer], "int | None"], None]
Infer = Callable[[bytes, "int | None", "float | None", Reply], None]


class DeviceSession:
    """Speaks the topics of one device over a transport.

    `on_desired` receives every readable goal document, `infer` every request as
    `InferenceService.handle` takes it; `on_connection` is called with True after each
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
        on_connection: Callable[[bool], None],
        clock: Clock,
    ) -> None:
        self._transport = transport
        self._topics = Topics(fleet)
        self._identity = identity
        self._on_desired = on_desired
        self._infer = infer
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
        topic = message.response_topic
        if message.retain:
            log.warning("ignored an inference request", extra=fields(reason="it is retained"))
            return
        if topic is None or not self._topics.is_reply_topic(topic):
            log.warning(
                "ignored an inference request",
                extra=fields(reason="no valid response topic", response_topic=topic),
            )
            return
        if len(message.payload) > MAX_PAYLOAD_BYTES:
            log.warning(
                "ignored an inference request",
                extra=fields(reason="larger than the limit", bytes=len(message.payload)),
            )
            return
        length = message.user_properties.get(HEADER_LENGTH)
        header_length = None
        if length is not None:
            # A length that is no number is one that no body has: the service says so.
            number = length.isascii() and length.isdigit() and len(length) < 12
            header_length = int(length) if number else -1
        expires_at = None if message.expiry_s is None else self._clock() + message.expiry_s
        reply = partial(self._reply, topic, message.correlation)
        self._infer(message.payload, header_length, expires_at, reply)

    def _reply(
        self, topic: str, correlation: bytes | None, buffers: list[Buffer], length: int | None
    ) -> None:
        properties: list[bytes] = []
        if correlation is not None:
            properties.append(correlation_data(correlation))
        if length is not None:
            properties.append(user_property(HEADER_LENGTH, str(length)))
        # A reply that cannot be sent now is dropped: its gateway has long asked elsewhere.
        self._transport.publish(topic, b"".join(buffers), properties=PublishProperties(*properties))

    def _topic(self, topic: DeviceTopic) -> str:
        return self._topics.device(self._identity.device, topic)

    def _status(self, presence: Presence) -> bytes:
        return encode_document(Status(state=presence, boot_id=self._identity.boot_id))
