"""A request as it arrived on a topic, with the ways that its answer can take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal_agent.connectivity.transport import Transport
from shoal_shared.oip import HEADER_LENGTH
from shoal_shared.publish import (
    PublishProperties,
    correlation_data,
    message_expiry,
    response_topic,
    user_property,
)
from shoal_shared.tensors import Buffer


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request. `expires_at` is a reading of the clock, None for never.

    `header_length` is that of the payload's JSON part, None where it is all JSON, and -1 where the
    message gave one that no payload has. What cannot be sent now is dropped: the gateway has long
    asked elsewhere.
    """

    transport: Transport
    payload: bytes
    header_length: int | None
    expires_at: float | None
    gateway: str
    """The topic of the gateway's replies."""
    correlation: bytes | None

    @property
    def key(self) -> tuple[str, bytes] | None:
        """What a cancel names the request by; None where it has nothing of its own."""
        return None if self.correlation is None else (self.gateway, self.correlation)

    def reply(self, buffers: list[Buffer], header_length: int | None) -> None:
        """Answer the gateway."""
        self._send(self.gateway, buffers, header_length)

    def forward(
        self, topic: str, buffers: list[Buffer], header_length: int, expiry_s: float | None
    ) -> None:
        """Hand on to whoever answers the gateway in this device's place."""
        properties = [response_topic(self.gateway)]
        if expiry_s is not None:
            properties.append(message_expiry(math.ceil(expiry_s)))
        self._send(topic, buffers, header_length, *properties)

    def _send(
        self, topic: str, buffers: list[Buffer], header_length: int | None, *properties: bytes
    ) -> None:
        own: list[bytes] = []
        if self.correlation is not None:
            own.append(correlation_data(self.correlation))
        if header_length is not None:
            own.append(user_property(HEADER_LENGTH, str(header_length)))
        packed = PublishProperties(*properties, *own)
        self.transport.publish(topic, b"".join(buffers), properties=packed)
