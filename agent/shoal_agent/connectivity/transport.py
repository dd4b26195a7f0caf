"""What the agent asks of its way to the fleet; the simulator brings its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shoal_shared.publish import Handler, PublishProperties


class Transport(Protocol):
    """Publish and subscribe over a session that comes and goes. All calls are on the loop.

    Nothing is queued while there is no session: whoever publishes state does so again when
    `on_connection` calls back with True.
    """

    @property
    def connected(self) -> bool: ...

    def set_will(self, topic: str, payload: bytes) -> None:
        """What the broker publishes, retained, when the session ends unexpectedly."""

    def subscribe(self, topic: str, qos: int, handler: Handler) -> None:
        """Deliver messages on exactly `topic` to `handler`, over all reconnects.

        At any time; the broker knows of it before anything that is published afterwards. A topic
        that is subscribed already gets another handler.
        """

    def unsubscribe(self, topic: str) -> None:
        """Deliver nothing more of `topic`, from now on."""

    def on_connection(self, callback: Callable[[bool], None]) -> None:
        """Call back with True after each (re)connect and False after each loss."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> bool:
        """Send now; False if there is no session or no room, and then it is dropped."""

    async def start(self) -> None:
        """Begin to connect, and keep at it; returns at once."""

    async def stop(self) -> None:
        """Send what was published, say goodbye so that no last will follows, and close."""
