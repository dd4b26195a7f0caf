"""Which devices of a pipeline are still there, when it stays silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from shoal_controlplane.gateway.table import Pipeline

ALIVE_S = 0.5
ATTEMPTS = 3
"""How long, and how often, devices have to show that they are there."""

Alive = Callable[[Collection[str], float], Awaitable[Collection[str]]]
"""Those of some devices that answer within so many seconds."""

Suspect = Callable[[str, str], None]
"""Takes a device that does not answer, and a sentence on it."""

Doubt = Callable[[Pipeline], None]
"""Takes a pipeline whose devices all answer."""


async def all_alive(devices: Collection[str], timeout_s: float) -> Collection[str]:
    """`Alive` where devices cannot be asked."""
    return devices


class Inquiry:
    """Asks the devices of silent pipelines, one inquiry a plan at a time."""

    def __init__(self, alive: Alive, suspect: Suspect, doubt: Doubt) -> None:
        self._alive = alive
        self._suspect = suspect
        self._doubt = doubt
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def ask(self, pipeline: Pipeline) -> None:
        """Begin to ask, unless that is under way."""
        if pipeline.plan not in self._under_way:
            task = asyncio.create_task(self._ask(pipeline))
            self._under_way[pipeline.plan] = task
            task.add_done_callback(lambda _: self._under_way.pop(pipeline.plan, None))

    async def _ask(self, pipeline: Pipeline) -> None:
        missing = pipeline.devices
        for _ in range(ATTEMPTS):
            missing = missing - set(await self._alive(missing, ALIVE_S))
            if not missing:
                self._doubt(pipeline)
                return
        # If nobody answers it is the broker, or this host, that is slow.
        if missing < pipeline.devices:
            for device in sorted(missing):
                self._suspect(device, f"device {device} does not answer")
