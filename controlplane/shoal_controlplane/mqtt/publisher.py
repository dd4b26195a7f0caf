"""Goals of devices, kept retained on the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from shoal_shared.messages import Desired, encode_document
from shoal_shared.topics import DeviceTopic, Topics

BURST = 200
"""Goals that are published at once after a reconnect, before others get a turn."""

_RETAINED = (
    DeviceTopic.STATUS,
    DeviceTopic.CAPABILITIES,
    DeviceTopic.DESIRED,
    DeviceTopic.REPORTED,
)


class Publishing(Protocol):
    """What the publisher asks of the link."""

    @property
    def connected(self) -> bool: ...

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False
    ) -> object: ...

    def on_connection(self, callback: Callable[[bool], None]) -> None: ...


class GoalPublisher:
    """Publishes the goal of a device when it changed, and all goals when the link is back.

    The latter because the embedded broker forgets what it retained when it restarts.
    """

    def __init__(self, link: Publishing, topics: Topics) -> None:
        self._link = link
        self._topics = topics
        self._goals: dict[str, bytes] = {}
        self._resending: asyncio.Task[None] | None = None
        link.on_connection(self._connection_changed)

    @property
    def connected(self) -> bool:
        return self._link.connected

    def set(self, device: str, desired: Desired) -> None:
        """Make `desired` the goal of a device. Raises `MessageError` if it is too large."""
        payload = encode_document(desired)
        if self._goals.get(device) != payload:
            self._goals[device] = payload
            self._publish(device)

    def forget(self, device: str) -> None:
        """Clear all that the broker retains about a device."""
        self._goals.pop(device, None)
        for topic in _RETAINED:
            self._link.publish(self._topics.device(device, topic), b"", qos=1, retain=True)

    def stop(self) -> None:
        if self._resending is not None:
            self._resending.cancel()

    def _publish(self, device: str) -> None:
        topic = self._topics.device(device, DeviceTopic.DESIRED)
        self._link.publish(topic, self._goals[device], qos=1, retain=True)

    def _connection_changed(self, connected: bool) -> None:
        self.stop()
        if connected:
            self._resending = asyncio.get_running_loop().create_task(self._resend())

    async def _resend(self) -> None:
        for count, device in enumerate(sorted(self._goals), start=1):
            if device in self._goals:
                self._publish(device)
            if count % BURST == 0:
                await asyncio.sleep(0)
