"""Requests as messages, to a device or to the first stage of a pipeline, and who waits for the
answers."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from shoal_controlplane.gateway.call import Call
from shoal_controlplane.gateway.router import Ticket
from shoal_controlplane.mqtt.link import Link
from shoal_shared import oip
from shoal_shared.publish import (
    CANCEL,
    PublishProperties,
    correlation_data,
    message_expiry,
    response_topic,
    user_property,
)
from shoal_shared.topics import DeviceTopic, Topics

_CANCEL_EXPIRY = message_expiry(1)


class Sender:
    """Publishes requests whose answers come to the topic of one gateway, and knows the attempts
    that may still be answered by the keys that answers are matched by."""

    def __init__(self, link: Link, topics: Topics, gateway_id: str) -> None:
        self._link = link
        self._topics = topics
        self._reply_to = response_topic(topics.replies(gateway_id))
        self._infer_topics: dict[str, str] = {}
        self._pending: dict[bytes, Call] = {}

    def __len__(self) -> int:
        """Attempts that may still be answered."""
        return len(self._pending)

    def attempts(self, which: Callable[[Ticket], bool]) -> list[tuple[bytes, Call, Ticket]]:
        """Those that may still be answered, with their keys."""
        attempts = ((key, call, call.waiting[key]) for key, call in self._pending.items())
        return [attempt for attempt in attempts if which(attempt[2])]

    def settle(self, key: bytes) -> tuple[Call, Ticket] | None:
        """Take out the attempt that `key` names, if it is still waited for."""
        call = self._pending.pop(key, None)
        return None if call is None else (call, call.waiting.pop(key))

    def send(self, call: Call, ticket: Ticket, replica: int, remaining_s: float) -> bool:
        """Send to the place of a ticket, to `replica` of the first stage where it is a pipeline;
        False if there is no session, and then there is no attempt."""
        # Not to be guessed: one device must not answer for another, nor a reply to an earlier
        # process for this one.
        key = secrets.token_bytes(8)
        parameters: dict[str, Any] = {"timeout": int(remaining_s * 1e6)}
        pipeline = ticket.pipeline
        if pipeline is not None:
            parameters["epoch"] = pipeline.epoch
            topic = self._topics.stage(pipeline.plan, pipeline.epoch, 0, replica)
        else:
            topic = self._infer_topic(ticket.device)
        call.request.parameters = parameters
        buffers, header_length = oip.encode_request(call.request)
        properties = PublishProperties(
            self._reply_to,
            correlation_data(key),
            message_expiry(int(remaining_s) + 1),
            user_property(oip.HEADER_LENGTH, str(header_length)),
        )
        self._pending[key] = call
        call.waiting[key] = ticket
        if self._link.publish(topic, b"".join(buffers), properties=properties):
            return True
        self.settle(key)
        return False

    def cancel(self, device: str, key: bytes) -> None:
        """Tell a device that nobody waits any more for the answer that `key` names."""
        properties = PublishProperties(
            self._reply_to, correlation_data(key), _CANCEL_EXPIRY, user_property(CANCEL, "1")
        )
        self._link.publish(self._infer_topic(device), b"", properties=properties)

    def _infer_topic(self, device: str) -> str:
        topic = self._infer_topics.get(device)
        if topic is None:
            topic = self._infer_topics[device] = self._topics.device(device, DeviceTopic.INFER)
        return topic
