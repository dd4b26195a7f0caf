"""A request as a message: to a device, or to the first stage of a pipeline."""

from __future__ import annotations

from typing import Any

from shoal_controlplane.gateway.router import Ticket
from shoal_controlplane.mqtt.link import Link
from shoal_shared import oip
from shoal_shared.oip import InferRequest
from shoal_shared.publish import (
    PublishProperties,
    correlation_data,
    message_expiry,
    response_topic,
    user_property,
)
from shoal_shared.topics import DeviceTopic, Topics


class Sender:
    """Publishes requests whose answers come to the topic of one gateway."""

    def __init__(self, link: Link, topics: Topics, gateway_id: str) -> None:
        self._link = link
        self._topics = topics
        self._reply_to = response_topic(topics.replies(gateway_id))
        self._infer_topics: dict[str, str] = {}

    def send(
        self, request: InferRequest, ticket: Ticket, replica: int, key: bytes, remaining_s: float
    ) -> bool:
        """Send to the place of a ticket, to `replica` of the first stage where it is a pipeline;
        False if there is no session. `key` is what the answer is matched by."""
        parameters: dict[str, Any] = {"timeout": int(remaining_s * 1e6)}
        pipeline = ticket.pipeline
        if pipeline is not None:
            parameters["epoch"] = pipeline.epoch
            topic = self._topics.stage(pipeline.plan, pipeline.epoch, 0, replica)
        else:
            topic = self._infer_topic(ticket.device)
        request.parameters = parameters
        buffers, header_length = oip.encode_request(request)
        properties = PublishProperties(
            self._reply_to,
            correlation_data(key),
            message_expiry(int(remaining_s) + 1),
            user_property(oip.HEADER_LENGTH, str(header_length)),
        )
        return self._link.publish(topic, b"".join(buffers), properties=properties)

    def _infer_topic(self, device: str) -> str:
        topic = self._infer_topics.get(device)
        if topic is None:
            topic = self._infer_topics[device] = self._topics.device(device, DeviceTopic.INFER)
        return topic
